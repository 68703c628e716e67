"""Blur with reflected borders, and blur with bicubic downsampling as one linear map.

All ways below are exact, borders included (float rounding aside), and far cheaper than a convolution with the kernel
followed by a gather; `tools/bench/degradations.py` measures them against that.

* A separable kernel g gᵀ and the bicubic are both separable, so together they are `A_y X A_xᵀ` with one banded matrix
  per axis: `A = W · R(g)`, W the bicubic, R(g) the blur with reflected borders.
* Any other kernel is applied together with the bicubic as one strided convolution (below) where that is fast: to
  float32 images on a CPU. Elsewhere it is applied in the frequency domain on the reflect-padded image, and the bicubic
  follows as `W Y Wᵀ`.

Images have the shape (B, …, H, W), sides larger than the kernels' radius and, where `scale` is given, multiples of it;
they become (B, …, H/s, W/s). Kernel b, shape (k, k), k odd, is for all of image b. All is differentiable in the images.
Kernels are applied as by `conv2d` (correlation); the field's are symmetric, where this is the convolution of Eq. 1.

Away from the borders, blur and bicubic together are one filter: every LR pixel reads the same K×K window of HR pixels
(K = 36 for 21 taps at scale 4), s pixels further on than its neighbour. That is a convolution of one channel by one
filter, which no library does fast; so space becomes channels. LR tiles of 4×4 pixels become 16 output channels, HR
blocks of b×b pixels, b = 4·s, become b² input channels, and the filter becomes a dense convolution of q×q blocks:

    tile[i, j] = Σ_yx Σ_uv S[i, y, u] k[u, v] S[j, x, v] · window[y, x],    window = q·b HR pixels per axis,

where `S[i, y, u]` is the weight that LR pixel i of a tile gives to HR pixel y of its window through tap u of the blur.

At the borders the blur needs only a reflected image, but the bicubic clamps or mirrors *blurred* pixels, for which the
filter is another. This concerns the outer two LR rows and columns on each side, which are computed apart, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from bsr_plugins.degradations.base import GREY_LEVELS
from bsr_plugins.degradations.kernels import gaussian_profiles
from bsr_plugins.degradations.resize import (
    BandedMatrix,
    banded,
    bicubic_matrix,
    bicubic_resize,
    blurred_rows,
    reflected_indices,
    row_slices,
)
from bsr_plugins.errors import BSRError

_PIXELS_IN_CACHE = 1 << 18  # on a CPU, spectra of more pixels at once fall out of the cache (2 to 3 times slower)
_TILE = 4  # LR pixels per axis; 16 output channels fill one vector register
_EDGE = 2  # LR pixels per side whose bicubic window (2·s to each side of the centre) leaves the image
_MOST_PRODUCTS = 300  # per HR pixel; with more (large kernels, small scales) the FFT is as fast (measured)
_FEWEST_PIXELS = 1 << 13  # with fewer the edges cost more than the convolution saves (measured)
_USM_RADIUS = 25  # BasicSR names a kernel by its width, made odd: its `radius=50` is this
_USM_SIGMA = 0.3 * (_USM_RADIUS - 1) + 0.8  # in pixels, as OpenCV derives it from the number of taps


def blur(x: Tensor, kernels: Tensor) -> Tensor:
    """Blur images with reflected borders (the edge pixel is not doubled)."""
    height, width = _sides(x, kernels)
    radius = kernels.shape[-1] // 2
    size = tuple(scipy.fft.next_fast_len(side + 2 * radius, real=True) for side in (height, width))
    padded = F.pad(x.reshape(x.shape[0], -1, height, width), (radius,) * 4, mode="reflect")
    # Only the rows of the kernels that are not padding are transformed.
    spectra = torch.fft.fft(torch.fft.rfft(kernels.flip(-2, -1), size[1]), size[0], dim=-2)
    spectrum = torch.fft.rfft2(padded, s=size) * spectra[:, None]
    # A circular convolution wraps the kernel's tail round into the first 2·radius rows and columns only.
    inside = slice(2 * radius, 2 * radius + height), slice(2 * radius, 2 * radius + width)
    blurred: Tensor = torch.fft.irfft2(spectrum, s=size)
    return blurred[(..., *inside)].reshape(x.shape)


def blur_bicubic(x: Tensor, kernels: Tensor, scale: int, border: str = "clamp") -> Tensor:
    """Blur with any kernels, then downsample by MATLAB's bicubic: `(x ⊗ k) ↓s` of Eq. 1.

    `border` is the bicubic's, `clamp` or `mirror`; the blur's is always reflected.
    """
    height, width = _sides(x, kernels)
    size = (height // scale, width // scale)
    images = x.reshape(x.shape[0], -1, height, width)
    if worth_fusing(x, kernels.shape[-1], scale):
        pairs = zip(images, kernels, strict=True)
        lq = torch.stack([fused_blur_bicubic(image, kernel, scale, border) for image, kernel in pairs])
    elif x.is_cuda:
        lq = bicubic_resize(blur(images, kernels), size, border)
    else:
        planes = max(1, _PIXELS_IN_CACHE // (height * width))
        pairs = zip(images.split(1), kernels.split(1), strict=True)
        parts = [(part, kernel) for image, kernel in pairs for part in image.split(planes, dim=1)]
        lq = torch.cat([bicubic_resize(blur(part, kernel), size, border).flatten(0, 1) for part, kernel in parts])
    return lq.reshape(*x.shape[:-2], *size)


def separable_blur_bicubic(x: Tensor, profiles: Tensor, scale: int, border: str = "clamp") -> Tensor:
    """Do as `blur_bicubic` with the outer products of profiles, 1-D kernels, shape (B, k)."""
    height, width = _sides(x, profiles)
    images = x.reshape(x.shape[0], -1, height, width)
    rows = _blurred_bicubic(profiles, height, scale, border)
    columns = rows if width == height else _blurred_bicubic(profiles, width, scale, border)
    return columns.apply_columns(rows.apply_rows(images)).reshape(*x.shape[:-2], height // scale, width // scale)


def _sides(x: Tensor, kernels: Tensor) -> torch.Size:
    """Return the (height, width) of images; refuse those too small for the kernels."""
    (height, width), radius = x.shape[-2:], kernels.shape[-1] // 2
    if min(height, width) <= radius:
        raise BSRError(
            f"blur: an image of {height}x{width} pixels is too small for a kernel of {2 * radius + 1} taps, "
            f"expected sides above {radius}"
        )
    return x.shape[-2:]


def _blurred_bicubic(profiles: Tensor, in_size: int, scale: int, border: str) -> BandedMatrix:
    """Return `W · R(g)` for each profile g: blocks of shape (B, 1, rows, width)."""
    basis = _tap_basis(in_size, scale, profiles.shape[-1], border, profiles.dtype, profiles.device)
    blocks = tuple((profiles @ taps.flatten(1)).view(-1, 1, *taps.shape[1:]) for taps in basis.blocks)
    return BandedMatrix(blocks, basis.starts)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _tap_basis(
    in_size: int, scale: int, taps: int, border: str, dtype: torch.dtype, device: torch.device
) -> BandedMatrix:
    """Return `W · R(e_t)` for each unit impulse e_t: blocks of shape (taps, rows, width)."""
    parts = [blurred_rows(in_size, scale, taps, border, rows) for rows in row_slices(in_size // scale)]
    return BandedMatrix(tuple(block.to(device, dtype) for block, _ in parts), tuple(start for _, start in parts))


def sharpen(x: Tensor, weight: float = 0.5, threshold: float = 10.0) -> Tensor:
    """Sharpen images where they differ much from their blur, as Real-ESRGAN and BasicSR's `USMSharp` do.

       Where an image differs from its blur by more than `threshold` grey levels it is taken further away from it, by
       `weight` times the difference; the mask of such pixels is blurred too.

       Blurs are Gaussian with a width of 8 pixels and 51 taps, done one axis at a time. Borders are reflected without
       doubling the edge pixel, to and fro where an image is smaller than the radius: so does OpenCV, whereas `USMSharp`
       refuses such images.
    Images are in [0, 1], shape (…, C, H, W), float32 or float64.
    """
    residual = x - _usm_blur(x)
    mask = _usm_blur((residual.abs() * GREY_LEVELS > threshold).to(x.dtype))
    sharp = torch.add(x, residual, alpha=weight).clamp(0, 1)
    return torch.lerp(x, sharp, mask)


def _usm_blur(x: Tensor) -> Tensor:
    rows, columns = (_usm_matrix(size, x.dtype, x.device) for size in x.shape[-2:])
    return columns.apply_columns(rows.apply_rows(x))


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _usm_matrix(size: int, dtype: torch.dtype, device: torch.device) -> BandedMatrix:
    profile = gaussian_profiles(torch.tensor([_USM_SIGMA], dtype=torch.float64), 2 * _USM_RADIUS + 1)
    sources = reflected_indices(torch.arange(size)[:, None] + torch.arange(-_USM_RADIUS, _USM_RADIUS + 1), size)
    matrix = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, sources, profile.expand(size, -1))
    return banded(matrix.to(device, dtype))


@dataclass(frozen=True)
class _Tiling:
    """How an axis is cut, for one scale, kernel size and dtype."""

    basis: Tensor  # S, shape (tile, window, taps)
    block: int  # HR pixels per block, b
    blocks: int  # blocks per window, q
    before: int  # HR pixels of padding before the image

    def after(self, size: int) -> int:
        """Count the HR pixels of padding after an axis of `size` pixels."""
        return (-(-size // self.block) + self.blocks - 1) * self.block - self.before - size

    def fits(self, *sizes: int) -> bool:
        """Say whether axes of so many HR pixels are long enough to be reflected that far."""
        return all(max(self.before, self.after(size)) < size for size in sizes)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _tiling(scale: int, taps: int, dtype: torch.dtype) -> _Tiling:
    inner = _EDGE + -(-(taps // 2) // scale)  # the first LR pixel that no border touches
    rows = slice(inner, inner + _TILE)
    responses, first = blurred_rows((2 * inner + _TILE) * scale, scale, taps, "clamp", rows)
    block = _TILE * scale
    blocks = -(-responses.shape[-1] // block)
    window = F.pad(responses, (0, blocks * block - responses.shape[-1]))
    return _Tiling(window.permute(1, 2, 0).to(dtype).contiguous(), block, blocks, inner * scale - first)


def worth_fusing(x: Tensor, taps: int, scale: int) -> bool:
    """Say whether `fused_blur_bicubic` can take these images, shape (…, H, W), and is faster than an FFT."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    height, width = x.shape[-2:]
    tiling = _tiling(scale, taps, x.dtype)
    products = (tiling.blocks * tiling.block / scale) ** 2
    return tiling.fits(height, width) and height * width >= _FEWEST_PIXELS and products <= _MOST_PRODUCTS


def fused_blur_bicubic(x: Tensor, kernel: Tensor, scale: int, border: str) -> Tensor:
    """Do as `blur_bicubic` for planes (N, H, W), long enough for the padding (see `worth_fusing`), and one kernel."""
    height, width = x.shape[-2:]
    tiling = _tiling(scale, kernel.shape[-1], x.dtype)
    before = tiling.before
    padded = F.pad(x, (before, tiling.after(width), before, tiling.after(height)), mode="reflect")

    block, blocks = tiling.block, tiling.blocks
    flat = tiling.basis.flatten(0, 1)
    weights = (flat @ kernel @ flat.T).view(_TILE, blocks, block, _TILE, blocks, block)
    weights = weights.permute(0, 3, 1, 4, 2, 5).reshape(_TILE**2, blocks, blocks, block**2)
    cut = padded.unflatten(2, (-1, block)).unflatten(1, (-1, block)).transpose(2, 3)  # N, blocks, blocks, b, b
    tiles = F.conv2d(cut.flatten(3).permute(0, 3, 1, 2), weights.permute(0, 3, 1, 2))  # channels last: contiguous reads
    shuffled: Tensor = tiles.unflatten(1, (_TILE, _TILE)).permute(0, 3, 1, 4, 2)
    lq = shuffled.flatten(3).flatten(1, 2)[:, : height // scale, : width // scale]

    rows = _edge_rows(padded, kernel, before, (height, width), scale, border)
    columns = _edge_rows(padded.mT, kernel.mT, before, (width, height), scale, border).mT
    lq[:, :_EDGE], lq[:, -_EDGE:] = rows[:, :_EDGE], rows[:, -_EDGE:]
    lq[:, :, :_EDGE], lq[:, :, -_EDGE:] = columns[:, :, :_EDGE], columns[:, :, -_EDGE:]
    return lq


def _edge_rows(padded: Tensor, kernel: Tensor, before: int, size: tuple[int, int], scale: int, border: str) -> Tensor:
    """Return the outer LR rows, top and bottom, shape (N, 2·edge, W/s).

    Column v of the kernel turns the HR rows near an edge into `P_v · rows`, P_v holding blur and bicubic of the height.
    Shifting P_v's result by v and summing over v is the blur of the width; the bicubic of the width follows.
    """
    height, width = size
    taps = kernel.shape[-1]
    basis, starts = _edge_basis(height, scale, taps, border, padded.dtype)
    columns = slice(before - taps // 2, before + width + taps // 2)
    strips = [padded[:, before + start : before + start + basis.shape[2], columns] for start in starts]
    mixed = (basis @ kernel).transpose(2, 3).flatten(1, 2) @ torch.stack(strips, dim=1)  # N, 2, edge·taps, columns
    shifted: Tensor = mixed.unflatten(2, (_EDGE, taps)).unfold(-1, width, 1).diagonal(dim1=3, dim2=4)
    return shifted.sum(-1).flatten(1, 2) @ _bicubic_columns(width, scale, border, padded.dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _edge_basis(size: int, scale: int, taps: int, border: str, dtype: torch.dtype) -> tuple[Tensor, tuple[int, int]]:
    """Return `blurred_rows` of both edges, shape (2, edge, width, taps), and where they start."""
    top, top_start = blurred_rows(size, scale, taps, border, slice(0, _EDGE))
    bottom, bottom_start = blurred_rows(size, scale, taps, border, slice(-_EDGE, None))
    return torch.stack([top, bottom]).permute(0, 2, 3, 1).to(dtype).contiguous(), (top_start, bottom_start)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _bicubic_columns(size: int, scale: int, border: str, dtype: torch.dtype) -> Tensor:
    return bicubic_matrix(size, size // scale, border).T.to(dtype).contiguous()
