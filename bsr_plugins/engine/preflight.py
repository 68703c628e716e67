"""What can be known about a run's options before anything is made: names, blocks, folders, files, the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
)
from torch import nn

from bsr_plugins.data.dataset_options import PatchOptions, read_options
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.data.whole_images import WholeImages
from bsr_plugins.degradations import build_degradation
from bsr_plugins.engine.pretrained import check_weights
from bsr_plugins.engine.train_options import build_on_trial, check_epochs, check_loading, check_train_options
from bsr_plugins.engine.validation_options import check_logging, check_validation
from bsr_plugins.errors import OptionError, unknown_name
from bsr_plugins.models.alignment import TAPPING
from bsr_plugins.models.blind_sr_model import BlindSRModel, check_device


def check_options(opt: Mapping[str, Any]) -> None:
    """Check a run's options, as BasicSR's `parse_options` returns them.

    Networks, losses and optimisers are built for trial, and images found and their headers read, as these are what most
    often fails later. The random state is left as it was.

    Raises:
        BSRError: Something cannot be used.
    """
    check_device(opt)
    for place, block, registry in _named_blocks(opt):
        if not isinstance(block, Mapping) or "type" not in block:
            raise OptionError(f"{place}: expected a block with the key 'type', got {block!r}")
        _check_name(f"{place}.type", block["type"], registry)
    _check_name("model_type", opt["model_type"], MODEL_REGISTRY)
    model = MODEL_REGISTRY.get(opt["model_type"])
    if issubclass(model, SRModel) and opt.get("network_g") is None:
        raise OptionError(f"network_g: the block is missing, {opt['model_type']} needs it")
    _check_files(opt)
    if opt.get("degradation") is not None:
        build_degradation(opt["degradation"], opt.get("scale"))
    check_validation(opt)
    with torch.random.fork_rng(devices=[]):
        if opt["is_train"]:
            check_logging(opt["logger"])
            check_train_options(opt["train"], model)
        networks = {key: _build_network(key, opt) for key in opt if key.startswith("network_") and opt[key] is not None}
    for key, network in networks.items():
        check_weights(key, network, opt["path"])
    if not opt["datasets"]:
        raise OptionError("datasets: {}, expected at least one dataset")
    for phase, dataset_opt in opt["datasets"].items():
        _check_dataset(f"datasets.{phase}", dataset_opt, opt)
    if opt["is_train"] and not issubclass(model, BlindSRModel):
        _check_stock(opt)
    if issubclass(model, BlindSRModel):
        model.check_options(opt)
        model.check_networks(opt, networks)


def _named_blocks(opt: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield every block that names a registered class: its place, the block, the registry."""
    for key, block in opt.items():
        if key.startswith("network_") and block is not None:
            yield key, block, ARCH_REGISTRY
    for phase, block in opt["datasets"].items():
        yield f"datasets.{phase}", block, DATASET_REGISTRY
    for key, block in opt.get("train", {}).items():
        if key.endswith("_opt") and block is not None:
            yield f"train.{key}", block, LOSS_REGISTRY
    for name, block in ((opt.get("val") or {}).get("metrics") or {}).items():
        yield f"val.metrics.{name}", block, METRIC_REGISTRY


def _check_name(place: str, name: object, registry: Any) -> None:
    known = list(registry.keys())
    if name not in known and f"{name}_basicsr" not in known:
        raise unknown_name(place, name, known)


def _check_files(opt: Mapping[str, Any]) -> None:
    for key, value in opt["path"].items():
        names_file = key.startswith("pretrain_network") or key == "resume_state"
        if names_file and value is not None and not Path(value).is_file():
            raise OptionError(f"path.{key}: {value}: there is no such file")


def _check_stock(opt: Mapping[str, Any]) -> None:
    for key in (*TAPPING, "representation_opt"):
        if opt["train"].get(key) is not None:
            raise OptionError(f"train.{key}: {opt['model_type']} does not know it, expected a model of this package")


def _check_dataset(place: str, dataset_opt: Mapping[str, Any], opt: Mapping[str, Any]) -> None:
    phases = ("train", "val") if opt["is_train"] else ("test",)
    if dataset_opt["phase"] not in phases:
        raise OptionError(f"{place}: expected a name that begins with {' or '.join(phases)} in this kind of run")
    if dataset_opt["phase"] == "train":
        check_loading(place, dataset_opt)
    if not issubclass(DATASET_REGISTRY.get(dataset_opt["type"]), PairedDegradationDataset):
        return
    options = read_options(dataset_opt)
    if not isinstance(options, PatchOptions):
        WholeImages(options)
        return
    if options.degrade_on == "worker":
        options.check_degradation(options.build_degradation())
    elif opt.get("degradation") is not None:
        options.check_degradation(build_degradation(opt["degradation"], opt.get("scale")))
    if options.degrade_on == "device" and not issubclass(MODEL_REGISTRY.get(opt["model_type"]), BlindSRModel):
        raise OptionError(
            f"{place}.degrade_on: 'device', expected 'worker', as {opt['model_type']} takes images with LR"
        )
    check_epochs(len(options.find_images()), place, opt)


def _build_network(key: str, opt: Mapping[str, Any]) -> nn.Module:
    block = opt[key]
    scale = opt.get("scale")
    names = ("upscale", "scale") if key == "network_g" else ("upscale",)
    for name in names:
        if scale is not None and block.get(name) not in (None, scale):
            raise OptionError(f"{key}.{name}: {block[name]!r}, expected scale, which is {scale!r}")
    network: nn.Module = build_on_trial(block, ARCH_REGISTRY.get(block["type"]), key)
    return network
