"""Cut patches out of images, flip and turn them, and make tensors of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bsr_plugins.data.decode import Pixels


def to_tensor(pixels: Pixels) -> Tensor:
    """Turn (H, W, 3) pixels of 8 or 16 bits into a contiguous float32 tensor (3, H, W) in [0, 1]."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(planes / np.float32(np.iinfo(pixels.dtype).max))


def random_crop(pixels: Pixels, size: int, generator: torch.Generator) -> Pixels:
    """Cut a square of `size` pixels a side anywhere out of (H, W, 3) pixels with H, W ≥ size."""
    height, width, _ = pixels.shape
    top = _randint(height - size + 1, generator)
    left = _randint(width - size + 1, generator)
    return pixels[top : top + size, left : left + size]


def random_flip(pixels: Pixels, hflip: bool, rot: bool, generator: torch.Generator) -> Pixels:
    """Flip and turn pixels as BasicSR does, each way with probability 1/2.

    Args:
        pixels: (H, W, 3).
        hflip: May mirror left and right.
        rot: May mirror top and bottom, and may swap rows and columns; with `hflip`, all eight positions.
        generator: Three numbers are drawn from it in any case.
    """
    mirror, upset, transpose = (_randint(2, generator) == 1 for _ in range(3))
    if hflip and mirror:
        pixels = pixels[:, ::-1]
    if rot and upset:
        pixels = pixels[::-1]
    if rot and transpose:
        pixels = pixels.transpose(1, 0, 2)
    return pixels


def _randint(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))
