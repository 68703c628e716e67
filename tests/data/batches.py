"""Batches of items that are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    """Check that two runs of batches are equal, tensors bit for bit."""
    assert len(one) == len(other) > 0
    for batch, match in zip(one, other, strict=True):
        assert batch.keys() == match.keys()
        for key, value in batch.items():
            assert torch.equal(value, match[key]) if isinstance(value, Tensor) else value == match[key], key
