"""Models of every kind with small batches, good and bad, and strangers' networks, losses and models."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

import bsr_plugins  # noqa: F401  # isort: skip  (BasicSR cannot be imported before it, in a spawned process)
from basicsr.models import build_model
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.engine.guard import StepWatch, guard_of

if TYPE_CHECKING:
    from tests.conftest import Options

Batch = dict[str, Any]
State = dict[str, Tensor]
INF, NAN = float("inf"), float("nan")


class NormedNet(nn.Module):
    """A ×2 network of a stranger: batch normalisation, and a buffer that every pass replaces."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm, self.tail = nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 12, 3, 1, 1)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes = self.passes + 1
        return F.pixel_shuffle(self.tail(F.relu(self.norm(self.head(x)))), 2)


class SwitchedLoss(nn.Module):
    """An L1 loss with a number added, which has no gradient; as a perceptual loss, it is the second of two."""

    def __init__(self, perceptual: bool = False) -> None:
        super().__init__()
        self.perceptual, self.added = perceptual, 0.0

    def forward(self, output: Tensor, gt: Tensor) -> Any:
        loss = F.l1_loss(output, gt) + self.added
        return (None, loss) if self.perceptual else loss


class SteepLoss(nn.Module):
    """A finite loss whose gradient is `slope` times that of the sum of the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = 1.0

    def forward(self, output: Tensor, gt: Tensor) -> Tensor:
        output.register_hook(lambda gradient: gradient * self.slope)
        return F.l1_loss(output, gt)


class CarefulModel(SRModel):  # type: ignore[misc]
    """A model that takes every error in a step lightly, and logs a figure that is no loss and not finite."""

    def optimize_parameters(self, current_iter: int) -> None:
        try:
            super().optimize_parameters(current_iter)
        except Exception:
            self.log_dict: dict[str, float] = {}
        self.log_dict["figure"] = INF


def register_strangers(add: Callable[[dict[str, Any], str, Any], None] = dict.__setitem__) -> None:
    """Register them; `add` puts a value under a name into a registry's dictionary."""
    add(ARCH_REGISTRY._obj_map, "NormedNet", NormedNet)
    for loss in (SwitchedLoss, SteepLoss):
        add(LOSS_REGISTRY._obj_map, loss.__name__, loss)


def options_of_all_kinds(aacl: Options, redsr: Options, as_read: Callable[[Options], Options]) -> dict[str, Options]:
    """Options of each kind of model; AACL's first two iterations are the encoder's own."""
    sr = copy.deepcopy(redsr)
    for key in ("degradation", "network_degrader"):
        del sr[key]
    del sr["train"]["redegradation_opt"], sr["train"]["representation_opt"]
    sr |= {"model_type": "SRModel", "network_g": {"type": "NormedNet"}}
    sr["train"]["pixel_opt"] = {"type": "L1Loss"}
    align = copy.deepcopy(sr) | {"model_type": "SimpleAlignModel", "degradation": redsr["degradation"]}
    align["network_g"] = {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 2}
    align["train"]["align_opt"] = {"type": "AlignmentLoss"}
    sr["datasets"]["train"]["degrade_on"] = "worker"
    gan = copy.deepcopy(sr) | {"model_type": "ESRGANModel"}
    gan["network_d"] = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4}
    gan["train"] |= {"optim_d": {"type": "Adam", "lr": 0.002}}
    gan["train"]["gan_opt"] = {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.1}
    made = {"sr": sr, "gan": gan, "aacl": aacl, "redsr": redsr, "align": align}
    return {kind: as_read(options) for kind, options in made.items()}


def make(options: Options) -> Any:
    torch.manual_seed(1)
    return build_model(copy.deepcopy(options))


def batch_at(options: Options, iteration: int, rank: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(100 * iteration + rank)
    dataset_opt, names = options["datasets"]["train"], [f"{rank}_{place}.png" for place in range(4)]
    size = dataset_opt["gt_size"]
    if dataset_opt["degrade_on"] == "device":
        return {"gt": torch.rand(4, dataset_opt["num_views"], 3, size, size, generator=generator), "gt_path": names}
    lq, gt = (torch.rand(4, 3, side, side, generator=generator) for side in (size // 2, size))
    return {"lq": lq, "gt": gt, "lq_path": [f"lq_{name}" for name in names], "gt_path": names}


def spoilt(batch: Batch) -> Batch:
    """The batch with one pixel of one image that is not a number."""
    images = {key: value.clone() for key, value in batch.items() if isinstance(value, Tensor)}
    for image in images.values():
        image[1, ..., 5, 5] = NAN
    return batch | images


def step(model: Any, iteration: int, batch: Batch) -> bool:
    """Make a step as the loop does; returns whether it was made."""
    model.update_learning_rate(iteration)
    model.feed_data(batch)
    guard = guard_of(model)
    if isinstance(guard, StepWatch):
        guard.step(iteration, batch)
        return True
    model.optimize_parameters(iteration)
    return bool(model.step_made)


def state_of(model: Any) -> State:
    """Copy all that a model keeps between steps: networks, EMA, queue, optimisers."""
    networks = {name: value for name, value in vars(model).items() if name.startswith("net_") and value is not None}
    networks = {name: value for name, value in networks.items() if isinstance(value, nn.Module)}
    networks |= getattr(model, "training_networks", {})
    state = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    for place, optimiser in enumerate(model.optimizers):
        for number, moments in optimiser.state_dict()["state"].items():
            state |= {f"optimiser {place}.{number}.{key}": value for key, value in moments.items()}
    return {key: value.clone() for key, value in state.items()}


def gradients_of(model: Any) -> list[Tensor]:
    return [p.grad for optimiser in model.optimizers for group in optimiser.param_groups for p in group["params"]]


def keep_message(messages: list[str], record: logging.LogRecord) -> bool:
    """A filter of a logger that lets nothing through."""
    messages.append(record.getMessage())
    return False
