"""Blur and bicubic downsampling the plain way, which `bsr_plugins.degradations` is checked and timed against."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bsr_plugins.degradations import Params
from bsr_plugins.degradations.kernels import gaussian_kernels
from bsr_plugins.degradations.resize import border_indices, cubic


def gaussian_kernels_of(params: Params, kernel_size: int, like: Tensor) -> Tensor:
    """Return the 2-D kernels (B, k, k) of parameters that all blur, with the dtype and device of `like`."""
    return gaussian_kernels(params["lambda1"], params["lambda2"], params["theta"], kernel_size).to(like)


def plain_blur_bicubic(x: Tensor, kernels: Tensor, scale: int, border: str = "clamp") -> Tensor:
    """Blur at every HR pixel by a grouped `conv2d`, then gather 4·s taps per axis.

    Args:
        x: Images (B, V, C, H, W), H and W multiples of the scale.
        kernels: Kernels (B, k, k), one for the views of a sample.
        scale: Downsampling factor s.
        border: Border of the bicubic, `clamp` or `mirror`; the blur's is reflected.

    Returns:
        Images (B, V, C, H/s, W/s).
    """
    planes = x.flatten(0, 2)
    padded = F.pad(planes, (kernels.shape[-1] // 2,) * 4, mode="reflect")
    filters = kernels.repeat_interleave(len(planes) // len(x), 0)[:, None]
    blurred = F.conv2d(padded[None], filters, groups=len(planes))[0]
    indices, weights = _taps(x.shape[-2], scale, border, x.dtype, x.device)
    rows = (blurred[:, indices] * weights[:, :, None]).sum(2)
    indices, weights = _taps(x.shape[-1], scale, border, x.dtype, x.device)
    return (rows[:, :, indices] * weights).sum(-1).view(*x.shape[:3], rows.shape[1], len(indices))


@lru_cache
def _taps(size: int, scale: int, border: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where the bicubic reads and with which weights, both of shape (size / scale, 4 · scale)."""
    centres = (torch.arange(size // scale, dtype=torch.float64) + 0.5) * scale - 0.5
    indices = torch.ceil(centres - 2 * scale).long()[:, None] + torch.arange(4 * scale)
    weights = cubic((centres[:, None] - indices) / scale)
    weights /= weights.sum(1, keepdim=True)
    return border_indices(indices, size, border).to(device), weights.to(device, dtype)
