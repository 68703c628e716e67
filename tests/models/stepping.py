"""Training steps in parts, for tests that look in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bsr_plugins.degradations import Params


def snapshot(network: nn.Module) -> list[Tensor]:
    """Copy the parameters of a network."""
    return [parameter.detach().clone() for parameter in network.parameters()]


def moved(network: nn.Module, before: list[Tensor]) -> list[bool]:
    """Say of each parameter whether it is another than before."""
    return [not torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True)]


def prepare(model: Any, gt: Tensor, iteration: int) -> Tensor:
    """Prepare a batch as a step does; returns all LR views."""
    return prepare_and_tell(model, gt, iteration)[0]


def prepare_and_tell(model: Any, gt: Tensor, iteration: int) -> tuple[Tensor, Params]:
    """Prepare a batch as a step does; returns all LR views and the drawn parameters."""
    model.current_iter, model.figures = iteration, {}
    gt, lq, params = model.degrade(gt)
    model.prepare_batch(gt, lq, params)
    return lq, params


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Copy the state of a network."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Check that two states are the same, bit for bit."""
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
