"""Additive Gaussian noise whose field depends on a seed per sample alone."""

from __future__ import annotations

import torch
from torch import Tensor

GREY_LEVELS = 255.0


def gaussian_noise(x: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """Add white Gaussian noise, drawn once per pixel and channel; the sum is neither clamped nor rounded.

    The field of a sample is drawn by a generator of its own on the CPU, so that it depends neither on the rest of the
    batch nor on the device.

    Args:
        x: Images in [0, 1], shape (B, …).
        level: Standard deviations on the 0–255 scale, shape (B,), ≥ 0; 0 leaves the sample as it is.
        seed: A seed in [0, 2^63) for each sample, int64, shape (B,).

    Returns:
        Tensor: Noisy images, shape of `x`.
    """
    noisy = [index for index, value in enumerate(level.tolist()) if value > 0]
    if not noisy:
        return x
    field = torch.zeros(x.shape, dtype=x.dtype)
    for index in noisy:
        generator = torch.Generator().manual_seed(int(seed[index]))
        field[index] = torch.randn(x.shape[1:], generator=generator, dtype=torch.float32).to(x.dtype)
    amplitude = (level.to(x.device, x.dtype) / GREY_LEVELS).view(-1, *[1] * (x.dim() - 1))
    return x + field.to(x.device) * amplitude
