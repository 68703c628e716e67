"""The bicubic of a blurred axis as a matrix: `W · R(g)`, W the bicubic and R(g) the blur with reflected borders.

It is linear in the taps of g: any blur is the sum of `W · R(e_t)`, e_t the unit impulses, weighted by its taps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bsr_plugins.degradations.resize import bicubic_matrix


def blurred_rows(in_size: int, scale: int, taps: int, border: str, rows: slice) -> tuple[Tensor, int]:
    """Return some rows of `W · R(e_t)`, for every tap t of a blur.

    Args:
        in_size: Length of the HR axis, a multiple of `scale`, longer than the blur's radius.
        scale: Downsampling factor s.
        taps: Taps of the blur, odd.
        border: Border of the bicubic, `clamp` or `mirror`; the blur's is always reflected.
        rows: Which LR pixels.

    Returns:
        tuple[Tensor, int]: float64, shape (taps, rows, width), and the HR pixel that its first column stands for; no
        row touches a pixel outside.
    """
    bicubic = bicubic_matrix(in_size, in_size // scale, border)[rows]
    touched = (bicubic != 0).any(0).nonzero().flatten()
    shifts = torch.arange(taps) - taps // 2
    sources = _reflect(touched + shifts[:, None], in_size)
    first, last = int(sources.min()), int(sources.max())
    responses = torch.zeros(taps, bicubic.shape[0], last - first + 1, dtype=torch.float64)
    for response, positions in zip(responses, sources, strict=True):
        response.index_add_(1, positions - first, bicubic[:, touched])
    return responses, first


def _reflect(indices: Tensor, size: int) -> Tensor:
    indices = indices.abs()
    return torch.where(indices < size, indices, 2 * (size - 1) - indices)
