"""Blur with reflected borders, and blur with bicubic downsampling as one linear map.

All ways below are exact, borders included (float rounding aside), and far cheaper than a convolution with the kernel
followed by a gather; `tools/bench/degradations.py` measures them against that.

* A separable kernel g gᵀ and the bicubic are both separable, so together they are `A_y X A_xᵀ` with one banded matrix
  per axis: `A = W · R(g)`, W the bicubic, R(g) the blur with reflected borders.
* Any other kernel is applied together with the bicubic as one strided convolution (`fused.py`) where that is fast: to
  float32 images on a CPU. Elsewhere it is applied in the frequency domain on the reflect-padded image, and the bicubic
  follows as `W Y Wᵀ`.

Images have the shape (B, …, H, W), sides larger than the kernels' radius and, where `scale` is given, multiples of it;
they become (B, …, H/s, W/s). Kernel b, shape (k, k), k odd, is for all of image b. All is differentiable in the images.
Kernels are applied as `conv2d` and OpenCV's `filter2D` apply them (correlation); the field's kernels are symmetric
about their centre, where this is the convolution of Eq. 1.
"""

from __future__ import annotations

from functools import lru_cache

import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from bsr_plugins.degradations.fused import fused_blur_bicubic, worth_fusing
from bsr_plugins.degradations.resize import BandedMatrix, bicubic_resize, blurred_rows, row_slices
from bsr_plugins.errors import BSRError

_PIXELS_IN_CACHE = 1 << 18  # on a CPU, spectra of more pixels at once fall out of the cache (2 to 3 times slower)


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
