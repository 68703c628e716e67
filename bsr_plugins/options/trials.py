"""Losses, optimisers, the schedule and metrics, built and run for trial: whether they take what their blocks say."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
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

from bsr_plugins.blocks import build_on_trial, check_arguments, named_by, one_line, placed
from bsr_plugins.errors import OptionError, unknown_name
from bsr_plugins.options.datasets import Built
from bsr_plugins.options.declared import OptionBlock
from bsr_plugins.options.faults import Faults, Place, dotted
from bsr_plugins.options.keys import check_values
from bsr_plugins.options.schema import OPTIMISERS, SCHEDULERS, losses_of, metrics_of, registered, stock_optimisers
from bsr_plugins.torch_cache import cached_file, download

_TRIAL_SIDE = 256  # of images whose sizes are not known; larger ones are not tried
_LEVELS = 256


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


def check_train(opt: Mapping[str, Any], model: Any, faults: Faults) -> None:
    """Check the losses, the optimisers and the schedule of a run by building them, perceptual losses without."""
    train_opt = opt["train"]
    for key, block in losses_of(opt, model):
        place = ("train", key)
        with faults.gathered(*place):
            if faults.clear(place):
                _check_loss(block, place, faults)
    stock, gan = (isinstance(model, type) and issubclass(model, kind) for kind in (SRModel, SRGANModel))
    if stock and not (train_opt.get("pixel_opt") or train_opt.get("perceptual_opt")):
        faults.at(("train", "pixel_opt"), "expected this block, train.perceptual_opt or both")
    if gan and not train_opt.get("gan_opt"):
        faults.at(("train", "gan_opt"), f"the block is missing, {model.__name__} needs it")
    if not stock_optimisers(model):
        return
    needed = {key for key, wanted in (("optim_g", stock), ("optim_d", gan)) if wanted}
    optimiser = None
    for key in sorted(needed | {key for key in train_opt if key.startswith("optim_") and train_opt[key]}):
        with faults.gathered("train", key):
            if faults.clear(("train", key)):
                parameters = {"params": [nn.Parameter(torch.zeros(1))]}
                optimiser = build_on_trial(train_opt.get(key), OPTIMISERS, f"train.{key}", parameters)
    with faults.gathered("train", "scheduler"):
        if stock and optimiser is not None and faults.clear(("train", "scheduler")):
            given = {"optimizer": optimiser}
            scheduler = build_on_trial(train_opt.get("scheduler"), SCHEDULERS, "train.scheduler", given)
            if isinstance(scheduler, CosineAnnealingRestartLR) and faults.clear(("train", "total_iter")):
                _check_periods(train_opt, scheduler.periods)


def fetch_vggs(opt: Mapping[str, Any], model: Any, only_check: bool, faults: Faults) -> list[str]:
    """Have the weights that perceptual losses need in torch's cache; of a check, return what it lacks."""
    missing = []
    for key, block in losses_of(opt, model) if opt["is_train"] and not Path(VGG_PRETRAIN_PATH).exists() else ():
        if not _is_perceptual(registered(LOSS_REGISTRY, block)):
            continue
        vgg = block.get("vgg_type", "vgg19")
        url = get_model_weights(vgg).IMAGENET1K_V1.url
        file, of_vgg = cached_file(url), f"train.{key}: the weights of {vgg} are"
        if only_check and not file.is_file():
            missing.append(f"{of_vgg} not in {file}; a run fetches them, the check builds no model")
        elif not file.is_file():
            with faults.gathered("train", key):
                expected = f"them in {file} (for any vgg_type, BasicSR takes {VGG_PRETRAIN_PATH} where that is)"
                download(url, of_vgg, expected)
    return missing


def check_metrics(opt: Mapping[str, Any], model: Any, datasets: Mapping[str, Built], faults: Faults) -> None:
    """Check every metric in the block `val`, on two small images."""
    validated = {key: built for key, built in datasets.items() if opt["datasets"][key]["phase"] != "train"}
    for name, block in metrics_of(opt).items():
        place = ("val", "metrics", name)
        with faults.gathered(*place):
            if faults.clear(place):
                _check_metric(block, dotted(place), validated, isinstance(model, type) and issubclass(model, SRModel))


def _is_perceptual(loss: Any) -> bool:
    return isinstance(loss, type) and issubclass(loss, PerceptualLoss)


def _check_loss(block: Any, place: Place, faults: Faults) -> None:
    losses = dict(iter(LOSS_REGISTRY))
    if not _is_perceptual(registered(LOSS_REGISTRY, block)):
        build_on_trial(block, losses, dotted(place))
        return
    arguments = {key: value for key, value in block.items() if key != "type"}
    check_arguments(named_by(block, losses, dotted(place)), arguments, dotted(place))
    check_values(PerceptualOptions, block, place, faults)


def _check_periods(train_opt: Mapping[str, Any], periods: list[int]) -> None:
    """Check that a cosine schedule lasts as long as the run; BasicSR has no learning rate beyond its last period."""
    phase = train_opt.get("encoder_phase")
    alone = phase.get("iters", 0) if isinstance(phase, Mapping) else 0
    needed = train_opt["total_iter"] - (alone if isinstance(alone, int) else 0)
    if sum(periods) < needed:
        raise OptionError(
            f"train.scheduler.periods: {periods!r} sum to {sum(periods)}, expected at least {needed}, the iterations "
            "of the schedule"
        )


def _check_metric(block: Any, where: str, datasets: Mapping[str, Built], of_images: bool) -> None:
    """Check the block of a metric, and run it on two images as the datasets' if the model has it compare images."""
    metric = named_by(block, dict(iter(METRIC_REGISTRY)), where)
    kind, arguments = block["type"], {key: value for key, value in block.items() if key != "type"}
    images = [name for name in ("img", "img2") if name in inspect.signature(metric).parameters]
    keys = {key: value for key, value in arguments.items() if key != "better"}  # which BasicSR reads too
    check_arguments(metric, keys, where, [*images, "better"])
    better = inspect.signature(metric).parameters.get("better")
    if better is not None and better.default == "lower" and "better" not in block:
        raise OptionError(f"{where}.better: the key is missing, expected 'lower', as BasicSR assumes 'higher'")
    if not of_images:
        return
    for key, built in datasets.items():
        if "img2" in images and built.has_gt is False:
            raise OptionError(f"{where}.type: {kind!r} compares with HR images, which datasets.{key} has not")
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
    height, width = min(height, _TRIAL_SIDE), min(width, _TRIAL_SIDE)
    draws = np.random.default_rng(0)
    given = {name: draws.integers(0, _LEVELS, (height, width, 3), dtype=np.uint8) for name in images}
    what = f"{where}: {kind} on images of {width}x{height}"
    with placed(where), warnings.catch_warnings(), one_line(f"{what} cannot be used"):
        warnings.simplefilter("ignore")
        result = float(metric(**given, **arguments))
    if math.isnan(result):
        raise OptionError(f"{what} gives no number, expected one")
