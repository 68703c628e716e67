"""Images for tests of networks."""

from __future__ import annotations

import torch
from skimage import data
from torch import Tensor


def photograph(batch: int, height: int, width: int) -> Tensor:
    """Cut parts (batch, 3, height, width) out of scikit-image's coffee, RGB in [0, 1]."""
    pixels = torch.from_numpy(data.coffee()).permute(2, 0, 1).float() / 255
    return torch.stack([pixels[:, 50 * n : 50 * n + height, 60 * n : 60 * n + width] for n in range(1, batch + 1)])
