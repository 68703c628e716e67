"""Whether what BasicSR's trainer and its models read for training can be used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from bsr_plugins.engine.faults import Faults
from bsr_plugins.engine.named_blocks import OPTIMISERS, SCHEDULERS, is_loss, registered, stock_optimisers
from bsr_plugins.engine.perceptual import check_perceptual
from bsr_plugins.engine.trial import build_on_trial
from bsr_plugins.errors import OptionError


def check_train_options(train_opt: Mapping[str, Any], model: Any, optimisers: set[str], faults: Faults) -> None:
    """Check the block `train`.

    Args:
        train_opt: The block; its losses, optimisers and schedule are known to name something.
        model: The model's class; optimisers and schedule are checked where it takes BasicSR's.
        optimisers: Keys of the optimisers that the model cannot do without.
        faults: Takes what is wrong.
    """
    for key, block in train_opt.items():
        if is_loss(key, block, model) and faults.free(("train", key)):
            with faults.noted("train", key):
                _check_loss(f"train.{key}", block)
    if issubclass(model, SRModel) and not (train_opt.get("pixel_opt") or train_opt.get("perceptual_opt")):
        faults.at(("train", "pixel_opt"), "expected this block, train.perceptual_opt or both")
    if issubclass(model, SRGANModel) and not train_opt.get("gan_opt"):
        faults.at(("train", "gan_opt"), f"the block is missing, {model.__name__} needs it")
    if not stock_optimisers(model):
        return
    optimiser = None
    for key in sorted({*optimisers, *(key for key in train_opt if key.startswith("optim_") and train_opt[key])}):
        if not faults.free(("train", key)):
            continue
        with faults.noted("train", key):
            optimiser = _build(train_opt, key, OPTIMISERS, [nn.Parameter(torch.zeros(1))])
    if optimisers and faults.free(("train", "scheduler")) and optimiser is not None:
        with faults.noted("train", "scheduler"):
            _check_periods(train_opt, _build(train_opt, "scheduler", SCHEDULERS, optimiser), faults)


def _build(train_opt: Mapping[str, Any], key: str, known: Mapping[str, Any], first: object) -> Any:
    """Build the optimiser or schedule of `train.KEY`, with `first` as the argument that is not an option."""
    block = train_opt.get(key)
    if block is None:
        raise OptionError(f"train.{key}: expected a block with the key 'type', got None")
    return build_on_trial(block, partial(known[block["type"]], first), f"train.{key}")


def _check_periods(train_opt: Mapping[str, Any], scheduler: object, faults: Faults) -> None:
    """Check that a cosine schedule lasts as long as the run; BasicSR has no learning rate beyond its last period."""
    if not isinstance(scheduler, CosineAnnealingRestartLR) or not faults.free(("train", "total_iter")):
        return
    phase = train_opt.get("encoder_phase")
    alone = phase.get("iters", 0) if isinstance(phase, Mapping) else 0
    needed = train_opt["total_iter"] - (alone if isinstance(alone, int) else 0)
    if sum(scheduler.periods) < needed:
        raise OptionError(
            f"train.scheduler.periods: {scheduler.periods!r} sum to {sum(scheduler.periods)}, expected at least "
            f"{needed}, the iterations of the schedule"
        )


def _check_loss(place: str, block: Mapping[str, Any]) -> None:
    loss = registered(LOSS_REGISTRY, block["type"])
    if isinstance(loss, type) and issubclass(loss, PerceptualLoss):
        check_perceptual(block, place)  # building it reads, and may fetch, the weights of a large network
    else:
        build_on_trial(block, loss, place)
