"""Banded matrices along image axes: a resize touches few input pixels per output pixel, so most of its matrix is zero.

A matrix is kept as blocks of rows, each with the columns it touches. Multiplying block by block is exact and does a
fraction of the dense product's work; the blocks stay matrix products, which every device does well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS_PER_BLOCK = (
    16  # wide enough for efficient products, narrow enough to skip most zeros (measured: 8 to 32 are close)
)


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


def row_blocks(nonzero: Tensor) -> list[tuple[slice, slice]]:
    """Cut a matrix into blocks of rows with the columns each touches.

    Args:
        nonzero: Where the matrix may differ from zero, boolean, shape (out, in).

    Returns:
        list[tuple[slice, slice]]: Rows and columns of each block.
    """
    blocks = []
    for first in range(0, nonzero.shape[0], _ROWS_PER_BLOCK):
        rows = slice(first, min(first + _ROWS_PER_BLOCK, nonzero.shape[0]))
        touched = nonzero[rows].any(0).nonzero().flatten()
        blocks.append((rows, slice(int(touched[0]), int(touched[-1]) + 1)))
    return blocks


def banded(matrix: Tensor) -> BandedMatrix:
    """Split a dense matrix, shape (out, in), into a `BandedMatrix`."""
    cuts = row_blocks(matrix != 0)
    return BandedMatrix(
        tuple(matrix[rows, columns].contiguous() for rows, columns in cuts),
        tuple(columns.start for _, columns in cuts),
    )
