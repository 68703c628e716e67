"""Training steps in parts, for tests that look in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def snapshot(network: nn.Module) -> list[Tensor]:
    """Copy the parameters of a network."""
    return [parameter.detach().clone() for parameter in network.parameters()]


def moved(network: nn.Module, before: list[Tensor]) -> list[bool]:
    """Say of each parameter whether it is another than before."""
    return [not torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True)]


def prepare(model: Any, gt: Tensor, iteration: int) -> Tensor:
    """Prepare a batch as a step does; returns all LR views."""
    model.current_iter, model.figures = iteration, {}
    gt, lq, params = model.degrade(gt)
    model.prepare_batch(gt, lq, params)
    degraded: Tensor = lq
    return degraded
