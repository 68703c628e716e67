"""Unsharp masking, with which Real-ESRGAN sharpens the images that it trains towards (Wang et al., 2021)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from bsr_plugins.degradations.base import GREY_LEVELS
from bsr_plugins.degradations.kernels import gaussian_profiles
from bsr_plugins.degradations.resize import BandedMatrix, banded, reflected_indices

_RADIUS = 25  # BasicSR names a kernel by its width, made odd: its `radius=50` is this
_SIGMA = 0.3 * (_RADIUS - 1) + 0.8  # in pixels, as OpenCV derives it from the number of taps


def sharpen(x: Tensor, weight: float = 0.5, threshold: float = 10.0) -> Tensor:
    """Sharpen images where they differ much from their blur, as `USMSharp` of BasicSR does.

       Where an image differs from its blur by more than `threshold` grey levels it is taken further away from it, by
       `weight` times the difference; the mask of such pixels is blurred too.

       Blurs are Gaussian with a width of 8 pixels and 51 taps, done one axis at a time. Borders are reflected without
       doubling the edge pixel, to and fro where an image is smaller than the radius: so does OpenCV, whereas `USMSharp`
       refuses such images.
    Images are in [0, 1], shape (…, C, H, W), float32 or float64.
    """
    residual = x - _blur(x)
    mask = _blur((residual.abs() * GREY_LEVELS > threshold).to(x.dtype))
    sharp = torch.add(x, residual, alpha=weight).clamp(0, 1)
    return torch.lerp(x, sharp, mask)


def _blur(x: Tensor) -> Tensor:
    rows, columns = (_gaussian(size, x.dtype, x.device) for size in x.shape[-2:])
    return columns.apply_columns(rows.apply_rows(x))


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _gaussian(size: int, dtype: torch.dtype, device: torch.device) -> BandedMatrix:
    profile = gaussian_profiles(torch.tensor([_SIGMA], dtype=torch.float64), 2 * _RADIUS + 1)
    sources = reflected_indices(torch.arange(size)[:, None] + torch.arange(-_RADIUS, _RADIUS + 1), size)
    matrix = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, sources, profile.expand(size, -1))
    return banded(matrix.to(device, dtype))
