"""The blocks of an option file that name a registered class or function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

from bsr_plugins.blocks import is_own, named_in
from bsr_plugins.options.schema import STOCK_MODELS

OPTIMISERS: dict[str, Callable[..., Any]] = {"Adam": torch.optim.Adam}
SCHEDULERS: dict[str, Callable[..., Any]] = {
    "MultiStepLR": MultiStepRestartLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingRestartLR": CosineAnnealingRestartLR,
}


def registered(registry: Any, block: object) -> Any:
    """Return what a block's `type` names in one of BasicSR's registries, or None."""
    return named_in(dict(iter(registry)), block.get("type") if isinstance(block, Mapping) else None)


def model_class(options: Mapping[str, Any]) -> Any:
    """Return the class that `model_type` names, or None."""
    return named_in(dict(iter(MODEL_REGISTRY)), options.get("model_type"))


def dataset_class(block: object) -> Any:
    """Return the dataset that a block names, or None."""
    return registered(DATASET_REGISTRY, block)


def losses_of(options: Mapping[str, Any], model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the blocks under `train` that are losses, with their keys.

    Of a model of BasicSR's or ours these are all that are called so, of another's those that name a registered loss.
    """
    for key, block in (options.get("train") or {}).items():
        known = key.endswith("_opt") and (model not in STOCK_MODELS or key in STOCK_MODELS[model].model_fields)
        if known and block is not None and (is_own(model) or registered(LOSS_REGISTRY, block) is not None):
            yield key, block


def metrics_of(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the blocks of the metrics."""
    metrics = (options.get("val") or {}).get("metrics")
    return metrics if isinstance(metrics, Mapping) else {}
