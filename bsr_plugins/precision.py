"""What is computed in single precision at least."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return half-precision numbers as float32, and others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
