"""Whether what BasicSR reads for validation can be used on the images that there are."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import METRIC_REGISTRY

from bsr_plugins.blocks import build_from_block
from bsr_plugins.engine.faults import Faults
from bsr_plugins.engine.image_sizes import Found
from bsr_plugins.engine.named_blocks import registered
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.metrics import METRIC_CHECKS

_TRIAL_SIDE = 256  # of images whose sizes are not known; larger ones are not tried
_LEVELS = 256
_NIQE_SIDE = 192


def check_validation(opt: Mapping[str, Any], model: Any, found: Mapping[str, Found], faults: Faults) -> None:
    """Check every metric in the block `val`, on two small images.

    Args:
        opt: The run's options; metrics are known to name registered functions and to take their keys.
        model: The class that `model_type` names, or None.
        found: What is known of the datasets, by their keys.
        faults: Takes what is wrong.
    """
    validated = {key: dataset for key, dataset in found.items() if opt["datasets"][key]["phase"] != "train"}
    for name, block in ((opt.get("val") or {}).get("metrics") or {}).items():
        place = ("val", "metrics", name)
        if not faults.free(place):
            continue
        with faults.noted(*place):
            where = ".".join(place)
            if block["type"] in METRIC_CHECKS:
                build_from_block(block, METRIC_CHECKS, where)
            if isinstance(model, type) and issubclass(model, SRModel):
                _check_metric(block, where, validated)


def _check_metric(block: Mapping[str, Any], where: str, found: Mapping[str, Found]) -> None:
    metric = registered(METRIC_REGISTRY, block["type"])
    names = inspect.signature(metric).parameters
    for key, dataset in found.items():
        if "img2" in names and dataset.has_gt is False:
            raise OptionError(f"{where}.type: {block['type']!r} compares with HR images, which datasets.{key} has not")
    if block.get("input_order", "HWC") != "HWC":
        raise OptionError(
            f"{where}.input_order: {block['input_order']!r}, expected 'HWC', as images come in that order"
        )
    sizes = [size for dataset in found.values() for size in dataset.gt_sizes or ()]
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = float(metric(**images, **arguments))
    except BSRError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise OptionError(f"{what} cannot be used ({reason})") from error
    if math.isnan(result):
        raise OptionError(f"{what} gives no number, expected one")
