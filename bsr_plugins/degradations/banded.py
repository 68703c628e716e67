"""Banded matrices along image axes: a resize touches few input pixels per output pixel, so most of its matrix is zero.

A matrix is kept as blocks of rows, each with the columns it touches. Multiplying block by block is exact and does a
fraction of the dense product's work; the blocks stay matrix products, which every device does well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS_PER_BLOCK = 16  # wide enough for efficient products, narrow enough to skip most zeros (measured)


@dataclass(frozen=True)
class BandedMatrix:
    """Blocks of consecutive rows; block b holds columns `starts[b]` … and has shape (…, rows, width).

    Leading dimensions of the blocks, if any, are a batch of matrices of the same band.
    """

    blocks: tuple[Tensor, ...]
    starts: tuple[int, ...]

    def apply_rows(self, x: Tensor) -> Tensor:
        """Multiply along the height: (…, in, W) -> (…, out, W)."""
        pieces = [
            block @ x[..., start : start + block.shape[-1], :]
            for block, start in zip(self.blocks, self.starts, strict=True)
        ]
        return torch.cat(pieces, dim=-2)

    def apply_columns(self, x: Tensor) -> Tensor:
        """Multiply along the width: (…, H, in) -> (…, H, out)."""
        pieces = [
            x[..., start : start + block.shape[-1]] @ block.mT
            for block, start in zip(self.blocks, self.starts, strict=True)
        ]
        return torch.cat(pieces, dim=-1)


def row_slices(rows: int) -> list[slice]:
    """Cut `rows` consecutive rows into blocks."""
    return [slice(first, min(first + _ROWS_PER_BLOCK, rows)) for first in range(0, rows, _ROWS_PER_BLOCK)]


def banded(matrix: Tensor) -> BandedMatrix:
    """Split a dense matrix, shape (out, in), into a `BandedMatrix`."""
    blocks, starts = [], []
    for rows in row_slices(matrix.shape[0]):
        touched = (matrix[rows] != 0).any(0).nonzero().flatten()
        first, last = int(touched[0]), int(touched[-1])
        blocks.append(matrix[rows, first : last + 1].contiguous())
        starts.append(first)
    return BandedMatrix(tuple(blocks), tuple(starts))
