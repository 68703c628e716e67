"""Whether what BasicSR reads for logging, saving and validation can be used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from basicsr.utils.registry import METRIC_REGISTRY

from bsr_plugins.errors import unknown_name
from bsr_plugins.metrics import METRIC_CHECKS
from bsr_plugins.options import check_arguments, number

_BETTER = ("higher", "lower")
_IMAGES = {"img": None, "img2": None}


def check_logging(logger_opt: Mapping[str, Any]) -> None:
    """Check how often a run is to log and save.

    Raises:
        OptionError: A frequency is no number of at least 1.
    """
    for key in ("print_freq", "save_checkpoint_freq"):
        number(logger_opt[key], f"logger.{key}", 1)


def check_validation(opt: Mapping[str, Any]) -> None:
    """Check the block `val`: the frequency and every metric's arguments.

    Args:
        opt: The run's options; metrics are known to name registered functions.

    Raises:
        OptionError: Something cannot be used.
    """
    val_opt = opt.get("val") or {}
    if opt["is_train"] and val_opt:
        number(val_opt["val_freq"], "val.val_freq", 1)
    for name, block in (val_opt.get("metrics") or {}).items():
        place, metric = f"val.metrics.{name}", METRIC_REGISTRY.get(block["type"])
        if block.get("better", "higher") not in _BETTER:
            raise unknown_name(f"{place}.better", block["better"], _BETTER)
        arguments = {key: value for key, value in block.items() if key not in ("type", "better")}
        check_arguments(partial(metric, **_images_of(metric)), arguments, place)
        if block["type"] in METRIC_CHECKS:
            METRIC_CHECKS[block["type"]](block, place)


def _images_of(metric: Any) -> dict[str, None]:
    """Return placeholders for the images that BasicSR hands to a metric."""
    code = metric.__code__
    return {name: None for name in _IMAGES if name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}
