"""Whether what BasicSR's trainer and its models read for training can be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.models.base_model import BaseModel
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from bsr_plugins.errors import BSRError, OptionError, unknown_name
from bsr_plugins.options import call_with, check_arguments, integer, number

_OPTIMISERS: dict[str, Callable[..., Any]] = {"Adam": torch.optim.Adam}
_SCHEDULERS: dict[str, Callable[..., Any]] = {
    "MultiStepLR": MultiStepRestartLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingRestartLR": CosineAnnealingRestartLR,
}
_NUMBERS = frozenset({"lr", "gamma", "eta_min"})
_LISTS = frozenset({"milestones", "periods", "restarts", "restart_weights"})
_PREFETCH_MODES = ("cpu", "cuda")
T = TypeVar("T")


def check_train_options(train_opt: Mapping[str, Any], model: Any) -> None:
    """Check the block `train`.

    Args:
        train_opt: The block; its losses are known to name registered classes.
        model: The model's class; optimiser and schedule are checked where it takes BasicSR's.

    Raises:
        OptionError: Something cannot be used.
    """
    number(train_opt["total_iter"], "train.total_iter", 1)
    number(train_opt.get("ema_decay", 0), "train.ema_decay", 0, 1)
    number(train_opt.get("warmup_iter", -1), "train.warmup_iter", -1)
    for key, block in train_opt.items():
        if key.endswith("_opt") and block is not None:
            _check_loss(f"train.{key}", block)
    if not issubclass(model, SRModel):
        return
    if not (train_opt.get("pixel_opt") or train_opt.get("perceptual_opt")):
        raise OptionError("train.pixel_opt: expected this block, train.perceptual_opt or both")
    if model.get_optimizer is BaseModel.get_optimizer and model.setup_schedulers is BaseModel.setup_schedulers:
        optimiser = _build_by_type(train_opt, "optim_g", _OPTIMISERS, [nn.Parameter(torch.zeros(1))])
        _check_periods(train_opt, _build_by_type(train_opt, "scheduler", _SCHEDULERS, optimiser))


def check_loading(place: str, dataset_opt: Mapping[str, Any]) -> None:
    """Check how a training dataset is to be loaded.

    Args:
        place: The dataset's place in the option file.
        dataset_opt: Its block.

    Raises:
        OptionError: Something cannot be used.
    """
    integer(dataset_opt["batch_size_per_gpu"], f"{place}.batch_size_per_gpu", 1)
    integer(dataset_opt["num_worker_per_gpu"], f"{place}.num_worker_per_gpu", 0)
    number(dataset_opt.get("dataset_enlarge_ratio", 1), f"{place}.dataset_enlarge_ratio", 0)
    mode = dataset_opt.get("prefetch_mode")
    if mode is not None and mode not in _PREFETCH_MODES:
        raise unknown_name(f"{place}.prefetch_mode", mode, _PREFETCH_MODES)
    if mode == "cuda" and dataset_opt.get("pin_memory") is not True:
        raise OptionError(
            f"{place}.pin_memory: {dataset_opt.get('pin_memory')!r}, expected true with prefetch_mode: cuda"
        )


def check_epochs(images: int, place: str, opt: Mapping[str, Any]) -> None:
    """Check that the epochs of a run have enough whole batches for it: BasicSR's trainer ends early, or at once.

    It counts epochs with incomplete batches, which its loader then leaves out.

    Args:
        images: Number of images in the training dataset.
        place: The dataset's place in the option file.
        opt: The run's options.

    Raises:
        OptionError: The run would end before `total_iter`.
    """
    dataset_opt, total = opt["datasets"]["train"], int(opt["train"]["total_iter"])
    batch, ratio = dataset_opt["batch_size_per_gpu"], dataset_opt.get("dataset_enlarge_ratio", 1)
    samples = images * ratio
    epochs = math.ceil(total / max(math.ceil(samples / (batch * opt["world_size"])), 1)) + 1
    reached = epochs * (math.ceil(samples / opt["world_size"]) // batch)
    if reached < total:
        raise OptionError(
            f"{place}.dataset_enlarge_ratio: {ratio}, expected more: {images} images in whole batches of "
            f"{batch * opt['world_size']} end the run after {reached} of {total} iterations"
        )


def build_on_trial(block: Mapping[str, Any], factory: Callable[..., T], place: str) -> T:
    """Build what a block describes, with one line for whatever a stranger's class says of its arguments.

    Args:
        block: Options; all but `type` are arguments.
        factory: What takes them.
        place: The block's place in the option file.

    Raises:
        OptionError: An argument is unknown, missing, or not to the liking of the class.
    """
    arguments = {key: value for key, value in block.items() if key != "type"}
    try:
        return call_with(factory, arguments, place)
    except BSRError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise OptionError(f"{place}: {block['type']} cannot be built from this block ({reason})") from error


def _build_by_type(
    train_opt: Mapping[str, Any], key: str, known: Mapping[str, Callable[..., Any]], first: object
) -> Any:
    """Build the optimiser or schedule of `train.KEY`, with `first` as the argument that is not an option."""
    place, block = f"train.{key}", train_opt.get(key)
    if not isinstance(block, Mapping) or "type" not in block:
        raise OptionError(f"{place}: expected a block with the key 'type', got {block!r}")
    if not isinstance(block["type"], str) or block["type"] not in known:
        raise unknown_name(f"{place}.type", block["type"], known)
    for name in _NUMBERS.intersection(block):
        number(block[name], f"{place}.{name}", 0)
    for name in _LISTS.intersection(block):
        if not isinstance(block[name], list):
            raise OptionError(f"{place}.{name}: {block[name]!r}, expected a list of numbers")
        for value in block[name]:
            number(value, f"{place}.{name}", 0)
    return build_on_trial(block, partial(known[block["type"]], first), place)


def _check_periods(train_opt: Mapping[str, Any], scheduler: object) -> None:
    """Check that a cosine schedule lasts as long as the run; BasicSR has no learning rate beyond its last period."""
    if not isinstance(scheduler, CosineAnnealingRestartLR):
        return
    needed = int(train_opt["total_iter"]) - (train_opt.get("encoder_phase") or {}).get("iters", 0)
    if sum(scheduler.periods) < needed:
        raise OptionError(
            f"train.scheduler.periods: {scheduler.periods!r} sum to {sum(scheduler.periods)}, expected at least "
            f"{needed}, the iterations of the schedule"
        )


def _check_loss(place: str, block: Mapping[str, Any]) -> None:
    if "loss_weight" in block:
        number(block["loss_weight"], f"{place}.loss_weight")
    loss = LOSS_REGISTRY.get(block["type"])
    if isinstance(loss, type) and issubclass(loss, PerceptualLoss):
        # Building it reads, and may fetch, the weights of a large network.
        check_arguments(loss, {key: value for key, value in block.items() if key != "type"}, place)
    else:
        build_on_trial(block, loss, place)
