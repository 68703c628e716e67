"""What can be known about a run's options before anything is made: names, blocks, folders, files, the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
)

from bsr_plugins.data.dataset_options import PatchOptions, read_options
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.data.whole_images import WholeImages
from bsr_plugins.degradations import build_degradation
from bsr_plugins.errors import OptionError, unknown_name
from bsr_plugins.models.blind_sr_model import check_device
from bsr_plugins.options import build_from_block


def check_options(opt: Mapping[str, Any]) -> None:
    """Check a run's options, as BasicSR's `parse_options` returns them.

    Networks are built for trial, and images found and their headers read, as these are what most often fails later.
    The random state is left as it was.

    Raises:
        BSRError: Something cannot be used.
    """
    check_device(opt)
    for place, block, registry in _named_blocks(opt):
        if not isinstance(block, Mapping) or "type" not in block:
            raise OptionError(f"{place}: expected a block with the key 'type', got {block!r}")
        _check_name(f"{place}.type", block["type"], registry)
    _check_name("model_type", opt.get("model_type"), MODEL_REGISTRY)
    _check_files(opt)
    if "degradation" in opt:
        build_degradation({"scale": opt.get("scale"), **opt["degradation"]})
    for dataset_opt in opt["datasets"].values():
        if issubclass(DATASET_REGISTRY.get(dataset_opt["type"]), PairedDegradationDataset):
            _check_dataset(dataset_opt)
    _check_networks(opt)
    model = MODEL_REGISTRY.get(opt["model_type"])
    if hasattr(model, "check_options"):
        model.check_options(opt)


def _named_blocks(opt: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield every block that names a registered class: its place, the block, the registry."""
    for key, block in opt.items():
        if key.startswith("network_"):
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
        if value is not None and (key.startswith("pretrain_network") or key == "resume_state"):
            if not Path(value).is_file():
                raise OptionError(f"path.{key}: {value}: there is no such file")


def _check_dataset(dataset_opt: Mapping[str, Any]) -> None:
    options = read_options(dataset_opt)
    if not isinstance(options, PatchOptions):
        WholeImages(options)
        return
    options.find_images()
    if options.degrade_on == "worker":
        options.build_degradation()


def _check_networks(opt: Mapping[str, Any]) -> None:
    with torch.random.fork_rng(devices=[]):
        for key, block in opt.items():
            if key.startswith("network_"):
                build_from_block(block, dict(iter(ARCH_REGISTRY)), key)
