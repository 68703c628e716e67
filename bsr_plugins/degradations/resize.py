"""MATLAB's bicubic `imresize`, as one banded matrix per axis.

Cubic convolution with a = −0.5, half-pixel centres (no shift), and antialiasing when it shrinks: the cubic is stretched
by the scale, so that its support is 4·s input pixels. OpenCV's bicubic (a = −0.75, no antialiasing) and PyTorch's
`interpolate` without antialiasing are other functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bsr_plugins.errors import unknown_name

BORDERS = ("clamp", "mirror")
_CUBIC_SUPPORT = 4  # input pixels under the cubic when nothing is stretched
_ROWS_PER_BLOCK = 16  # wide enough for efficient products, narrow enough to skip most zeros (measured)


@dataclass(frozen=True)
class BandedMatrix:
    """A matrix, or a batch of them, that is mostly zero, as blocks of rows with the columns that they touch.

    Block b holds columns `starts[b]` … and has shape (…, rows, width).
    """

    blocks: tuple[Tensor, ...]
    starts: tuple[int, ...]

    def apply_rows(self, x: Tensor) -> Tensor:
        """Multiply along the height: (…, in, W) -> (…, out, W)."""
        parts = zip(self.blocks, self.starts, strict=True)
        return torch.cat([block @ x[..., first : first + block.shape[-1], :] for block, first in parts], dim=-2)

    def apply_columns(self, x: Tensor) -> Tensor:
        """Multiply along the width: (…, H, in) -> (…, H, out)."""
        parts = zip(self.blocks, self.starts, strict=True)
        return torch.cat([x[..., first : first + block.shape[-1]] @ block.mT for block, first in parts], dim=-1)


def row_slices(rows: int) -> list[slice]:
    return [slice(first, min(first + _ROWS_PER_BLOCK, rows)) for first in range(0, rows, _ROWS_PER_BLOCK)]


def banded(matrix: Tensor) -> BandedMatrix:
    """Split a dense matrix, shape (out, in), into a `BandedMatrix`."""
    blocks, starts = [], []
    for rows in row_slices(matrix.shape[0]):
        touched = (matrix[rows] != 0).any(0).nonzero().flatten()
        starts.append(int(touched[0]))
        blocks.append(matrix[rows, starts[-1] : int(touched[-1]) + 1].contiguous())
    return BandedMatrix(tuple(blocks), tuple(starts))


def cubic(x: Tensor) -> Tensor:
    """Return the cubic convolution kernel with a = −0.5 (Keys, 1981) at `x`."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x.square() + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, inner, torch.where(x < 2, outer, torch.zeros_like(x)))


def border_indices(indices: Tensor, size: int, border: str) -> Tensor:
    """Bring indices outside [0, size) back inside.

    `clamp` repeats the edge pixel (the released blind-SR codes); `mirror` reflects with it doubled (MATLAB).
    """
    if border == "clamp":
        return indices.clamp(0, size - 1)
    if border == "mirror":
        wrapped = indices % (2 * size)
        return torch.where(wrapped < size, wrapped, 2 * size - 1 - wrapped)
    raise unknown_name("border", border, BORDERS)


def reflected_indices(indices: Tensor, size: int) -> Tensor:
    """Bring indices outside [0, size) back by reflection that does not double the edge pixel, to and fro if need be."""
    period = max(2 * (size - 1), 1)
    places = indices.remainder(period)
    return torch.where(places < size, places, period - places)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def bicubic_matrix(in_size: int, out_size: int, border: str = "clamp") -> Tensor:
    """Return the matrix of the resize of one axis, float64 on the CPU, shape (out_size, in_size); rows sum to 1."""
    stretch = max(in_size / out_size, 1.0)
    centres = (torch.arange(out_size, dtype=torch.float64) + 0.5) * (in_size / out_size) - 0.5
    taps = math.ceil(_CUBIC_SUPPORT * stretch) + 2
    first = torch.floor(centres - _CUBIC_SUPPORT * stretch / 2).long()
    indices = first[:, None] + torch.arange(taps)
    weights = cubic((centres[:, None] - indices) / stretch)
    weights /= weights.sum(1, keepdim=True)
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    return matrix.scatter_add_(1, border_indices(indices, in_size, border), weights)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _banded_bicubic(in_size: int, out_size: int, border: str, dtype: torch.dtype, device: torch.device) -> BandedMatrix:
    return banded(bicubic_matrix(in_size, out_size, border).to(device, dtype))


def bicubic_resize(x: Tensor, size: tuple[int, int], border: str = "clamp") -> Tensor:
    """Resize images, shape (…, H, W), as MATLAB's `imresize(x, size, 'bicubic')` does, without rounding."""
    rows = _banded_bicubic(x.shape[-2], size[0], border, x.dtype, x.device)
    columns = _banded_bicubic(x.shape[-1], size[1], border, x.dtype, x.device)
    return columns.apply_columns(rows.apply_rows(x))


def blurred_rows(in_size: int, scale: int, taps: int, border: str, rows: slice) -> tuple[Tensor, int]:
    """Return some rows (LR pixels) of `W · R(e_t)` for every tap t, and the HR pixel of their first column.

    The bicubic of a blurred axis is a matrix, `W · R(g)`, W the bicubic and R(g) the blur with reflected borders. It is
    linear in the taps of g: the sum of `W · R(e_t)`, e_t the unit impulses, weighted by them. The shape is (taps, rows,
    width), float64; no row touches a pixel outside.
    """
    bicubic = bicubic_matrix(in_size, in_size // scale, border)[rows]
    touched = (bicubic != 0).any(0).nonzero().flatten()
    shifts = torch.arange(taps) - taps // 2
    sources = reflected_indices(touched + shifts[:, None], in_size)
    first, last = int(sources.min()), int(sources.max())
    responses = torch.zeros(taps, bicubic.shape[0], last - first + 1, dtype=torch.float64)
    for response, positions in zip(responses, sources, strict=True):
        response.index_add_(1, positions - first, bicubic[:, touched])
    return responses, first
