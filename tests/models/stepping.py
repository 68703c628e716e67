"""Training steps in parts, for tests that look in between."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from basicsr.models import build_model
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


def make(options: dict[str, Any]) -> Any:
    """Build the model of some options."""
    torch.manual_seed(1)
    return build_model(copy.deepcopy(options))


def batch_at(options: dict[str, Any], iteration: int, rank: int = 0) -> dict[str, Any]:
    """A batch of noise with the names of its files: views, or pairs."""
    generator = torch.Generator().manual_seed(100 * iteration + rank)
    dataset_opt, names = options["datasets"]["train"], [f"{rank}_{place}.png" for place in range(4)]
    size = dataset_opt["gt_size"]
    if dataset_opt["degrade_on"] == "device":
        return {"gt": torch.rand(4, dataset_opt["num_views"], 3, size, size, generator=generator), "gt_path": names}
    lq, gt = (torch.rand(4, 3, side, side, generator=generator) for side in (size // 2, size))
    return {"lq": lq, "gt": gt, "lq_path": [f"lq_{name}" for name in names], "gt_path": names}


def spoilt(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with one pixel of one image that is not a number."""
    images = {key: value.clone() for key, value in batch.items() if isinstance(value, Tensor)}
    for image in images.values():
        image[1, ..., 5, 5] = float("nan")
    return batch | images


def state_of(model: Any) -> dict[str, Tensor]:
    """Copy all that a model keeps between steps: networks, EMA, queue, optimiser."""
    networks = {"net_g": model.net_g, "net_g_ema": model.net_g_ema, **model.training_networks}
    state = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    for number, moments in model.optimizer_g.state_dict()["state"].items():
        state |= {f"optimiser.{number}.{key}": value for key, value in moments.items()}
    return {key: value.clone() for key, value in state.items()}


def gradients_of(model: Any) -> list[Tensor]:
    """The gradients of all that learns."""
    return [p.grad for group in model.optimizer_g.param_groups for p in group["params"]]


def keep_message(messages: list[str], record: logging.LogRecord) -> bool:
    """A filter of a logger that lets nothing through."""
    messages.append(record.getMessage())
    return False
