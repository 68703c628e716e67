"""Losses, optimisers, the schedule and metrics, built and run for trial: whether they take what their blocks say."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from basicsr.archs.vgg_arch import NAMES, VGG_PRETRAIN_PATH, insert_bn
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import LOSS_REGISTRY, METRIC_REGISTRY
from pydantic import AfterValidator, Field, model_validator
from torch import nn
from torchvision.models import get_model_weights

from bsr_plugins.blocks import call_with, placed
from bsr_plugins.errors import OptionError, unknown_name
from bsr_plugins.options.datasets import Built
from bsr_plugins.options.declared import OptionBlock
from bsr_plugins.options.faults import Faults
from bsr_plugins.options.key_checks import check_values
from bsr_plugins.options.named_blocks import OPTIMISERS, SCHEDULERS, losses_of, metrics_of, registered
from bsr_plugins.options.networks import on_trial, suspects
from bsr_plugins.options.schema import stock_optimisers
from bsr_plugins.torch_cache import cached_file, download

_TRIAL_SIDE = 256  # of images whose sizes are not known; larger ones are not tried
_LEVELS = 256
_NIQE_SIDE = 192


def _check_layers(layers: dict[str, float]) -> dict[str, float]:
    if not layers:
        raise ValueError("expected layers with their weights, as {conv5_4: 1}")
    return layers


class PerceptualOptions(OptionBlock):
    """What may be asked of BasicSR's `PerceptualLoss`, which reads a large network when it is built."""

    layer_weights: Annotated[dict[str, float], AfterValidator(_check_layers)] = Field(
        description="Layers of the VGG, and their weights."
    )
    vgg_type: str = Field("vgg19", description="The VGG.")
    use_input_norm: bool = Field(True, description="Whether images are normalised as in ImageNet.")
    range_norm: bool = Field(False, description="Whether images are in [-1, 1].")
    perceptual_weight: float = Field(1, ge=0, description="Factor on the perceptual loss.")
    style_weight: float = Field(0, ge=0, description="Factor on the style loss.")
    criterion: Literal["l1", "fro"] = Field("l1", description="The norm.")  # BasicSR's l2 names what torch has not

    @model_validator(mode="after")
    def _layers_exist(self) -> PerceptualOptions:
        kinds = [f"{name}{norm}" for name in NAMES for norm in ("", "_bn")]
        if self.vgg_type not in kinds:
            raise unknown_name("vgg_type", self.vgg_type, kinds)
        names = NAMES[self.vgg_type.removesuffix("_bn")]
        names = insert_bn(names) if self.vgg_type.endswith("_bn") else names
        for layer in self.layer_weights:
            if layer not in names:
                raise unknown_name("layer_weights", layer, map(str, names))
        return self


def check_train(train_opt: Mapping[str, Any], model: Any, faults: Faults) -> None:
    """Check the losses, the optimisers and the schedule of a run.

    Args:
        train_opt: The block `train`.
        model: The model's class; optimisers and schedule are checked where it takes BasicSR's.
        faults: Takes what is wrong.
    """
    for key, block in losses_of(train_opt, model):
        loss = registered(LOSS_REGISTRY, block.get("type")) if isinstance(block, Mapping) else None
        if loss is None or not faults.clear(("train", key)):
            continue
        if _is_perceptual(loss):
            check_values(PerceptualOptions, block, ("train", key), faults)
        else:
            with faults.gathered("train", key):
                _build(f"train.{key}", block, loss)
    if issubclass(model, SRModel) and not (train_opt.get("pixel_opt") or train_opt.get("perceptual_opt")):
        faults.at(("train", "pixel_opt"), "expected this block, train.perceptual_opt or both")
    if issubclass(model, SRGANModel) and not train_opt.get("gan_opt"):
        faults.at(("train", "gan_opt"), f"the block is missing, {model.__name__} needs it")
    if not stock_optimisers(model):
        return
    needed = {"optim_g"} if issubclass(model, SRModel) else set()
    needed |= {"optim_d"} if issubclass(model, SRGANModel) else set()
    optimiser = None
    for key in sorted(needed | {key for key in train_opt if key.startswith("optim_") and train_opt[key]}):
        if faults.clear(("train", key)):
            with faults.gathered("train", key):
                optimiser = _build_stock(train_opt, key, OPTIMISERS, [nn.Parameter(torch.zeros(1))])
    if needed and optimiser is not None and faults.clear(("train", "scheduler")):
        with faults.gathered("train", "scheduler"):
            _check_periods(train_opt, _build_stock(train_opt, "scheduler", SCHEDULERS, optimiser), faults)


def missing_vggs(train_opt: Mapping[str, Any], model: Any) -> dict[str, tuple[str, Path]]:
    """Return the VGGs of perceptual losses whose weights are not on this machine: place to name and file."""
    missing = {}
    for key, block in losses_of(train_opt, model):
        if _is_perceptual(registered(LOSS_REGISTRY, block["type"])) and not Path(VGG_PRETRAIN_PATH).exists():
            vgg = block.get("vgg_type", "vgg19")
            file = cached_file(get_model_weights(vgg).IMAGENET1K_V1.url)
            if not file.is_file():
                missing[f"train.{key}"] = (vgg, file)
    return missing


def fetch_vgg(place: str, vgg: str, file: Path) -> None:
    """Have the weights of a VGG in torch's cache, as building the loss would.

    Raises:
        BSRError: They cannot be fetched.
    """
    expected = f"them in {file} (for any vgg_type, BasicSR takes {VGG_PRETRAIN_PATH} where that is)"
    download(get_model_weights(vgg).IMAGENET1K_V1.url, f"{place}: the weights of {vgg} are", expected)


def check_metrics(opt: Mapping[str, Any], model: Any, datasets: Mapping[str, Built], faults: Faults) -> None:
    """Check every metric in the block `val`, on two small images.

    Args:
        opt: The run's options; metrics are known to name registered functions and to take their keys.
        model: The class that `model_type` names, or None.
        datasets: What is known of the datasets, by their keys.
        faults: Takes what is wrong.
    """
    validated = {key: built for key, built in datasets.items() if opt["datasets"][key]["phase"] != "train"}
    for name, block in metrics_of(opt).items():
        place = ("val", "metrics", name)
        if not faults.clear(place):
            continue
        with faults.gathered(*place):
            where = ".".join(place)
            better = inspect.signature(registered(METRIC_REGISTRY, block["type"])).parameters.get("better")
            if better is not None and better.default == "lower" and "better" not in block:
                raise OptionError(f"{where}.better: the key is missing, expected 'lower', as BasicSR assumes 'higher'")
            if isinstance(model, type) and issubclass(model, SRModel):
                _check_metric(block, where, validated)


def _is_perceptual(loss: Any) -> bool:
    return isinstance(loss, type) and issubclass(loss, PerceptualLoss)


def _build(place: str, block: Mapping[str, Any], factory: Any) -> Any:
    arguments = {key: value for key, value in block.items() if key != "type"}
    what = f"{place}: {block['type']} cannot be built from this block{suspects(factory, arguments)}"
    return on_trial(lambda: call_with(factory, arguments, place), what)


def _build_stock(train_opt: Mapping[str, Any], key: str, known: Mapping[str, Any], first: object) -> Any:
    """Build the optimiser or schedule of `train.KEY`, with `first` as the argument that is not an option."""
    block = train_opt.get(key)
    if block is None:
        raise OptionError(f"train.{key}: expected a block with the key 'type', got None")
    return _build(f"train.{key}", block, partial(known[block["type"]], first))


def _check_periods(train_opt: Mapping[str, Any], scheduler: object, faults: Faults) -> None:
    """Check that a cosine schedule lasts as long as the run; BasicSR has no learning rate beyond its last period."""
    if not isinstance(scheduler, CosineAnnealingRestartLR) or not faults.clear(("train", "total_iter")):
        return
    phase = train_opt.get("encoder_phase")
    alone = phase.get("iters", 0) if isinstance(phase, Mapping) else 0
    needed = train_opt["total_iter"] - (alone if isinstance(alone, int) else 0)
    if sum(scheduler.periods) < needed:
        raise OptionError(
            f"train.scheduler.periods: {scheduler.periods!r} sum to {sum(scheduler.periods)}, expected at least "
            f"{needed}, the iterations of the schedule"
        )


def _check_metric(block: Mapping[str, Any], where: str, datasets: Mapping[str, Built]) -> None:
    metric = registered(METRIC_REGISTRY, block["type"])
    names = inspect.signature(metric).parameters
    for key, built in datasets.items():
        if "img2" in names and built.has_gt is False:
            raise OptionError(f"{where}.type: {block['type']!r} compares with HR images, which datasets.{key} has not")
    if block.get("input_order", "HWC") != "HWC":
        raise OptionError(
            f"{where}.input_order: {block['input_order']!r}, expected 'HWC', as images come in that order"
        )
    sizes = [size for built in datasets.values() for size in built.gt_sizes]
    height, width = min(sizes, key=min, default=(_TRIAL_SIDE, _TRIAL_SIDE))
    border = block.get("crop_border", 0)
    if isinstance(border, int) and 2 * border >= min(height, width):
        raise OptionError(
            f"{where}.crop_border: {border}, which leaves nothing of the smallest image, {width}x{height}"
        )
    if block["type"] == "calculate_niqe" and min(height, width) - 2 * border < _NIQE_SIDE:
        raise OptionError(
            f"{where}.type: 'calculate_niqe' on an image of {width}x{height}, expected at least {_NIQE_SIDE} pixels a "
            "side inside crop_border"
        )
    _try(metric, block, where, (min(height, _TRIAL_SIDE), min(width, _TRIAL_SIDE)), [*names])


def _try(metric: Any, block: Mapping[str, Any], where: str, size: tuple[int, int], names: Iterable[str]) -> None:
    """Run a metric on two images."""
    draws = np.random.default_rng(0)
    images = {name: draws.integers(0, _LEVELS, (*size, 3), dtype=np.uint8) for name in ("img", "img2") if name in names}
    arguments = {key: value for key, value in block.items() if key != "type"}
    what = f"{where}: {block['type']} on images of {size[1]}x{size[0]}"
    with placed(where), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = on_trial(lambda: float(metric(**images, **arguments)), f"{what} cannot be used")
    if math.isnan(result):
        raise OptionError(f"{what} gives no number, expected one")
