"""The blocks of an option file that name a registered class or function, and whether it takes what they say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from bsr_plugins.degradations import DEGRADATIONS
from bsr_plugins.errors import did_you_mean, unknown_key, unknown_name
from bsr_plugins.options.faults import Faults, Place, dotted
from bsr_plugins.options.schema import NETWORK, STOCK_MODELS, is_own, stock_optimisers

OPTIMISERS: dict[str, Callable[..., Any]] = {"Adam": torch.optim.Adam}
SCHEDULERS: dict[str, Callable[..., Any]] = {
    "MultiStepLR": MultiStepRestartLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingRestartLR": CosineAnnealingRestartLR,
}
_GIVEN_TO_OPTIMISERS, _GIVEN_TO_SCHEDULERS = ("params",), ("optimizer", "last_epoch")
_IMAGES = ("img", "img2")  # what BasicSR hands to a metric, as far as it asks for it
_READ_BY_BASICSR = ("type", "better")  # out of a metric's block


def registered(registry: Any, name: object) -> Any:
    """Return what is registered under a name, as BasicSR would find it, or None."""
    return _found(dict(iter(registry)), name)


def model_class(options: Mapping[str, Any]) -> Any:
    """Return the class that `model_type` names, or None."""
    return registered(MODEL_REGISTRY, options.get("model_type"))


def networks_of(options: Mapping[str, Any]) -> list[str]:
    """Return the keys of the networks that the options have."""
    return [key for key, block in options.items() if key.startswith(NETWORK) and block is not None]


def losses_of(train_opt: Mapping[str, Any], model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the blocks under `train` that are losses, with their keys.

    Of a model of BasicSR's or ours these are all that are called so, of another's those that name a registered loss.
    """
    for key, block in train_opt.items():
        known = key.endswith("_opt") and (model not in STOCK_MODELS or key in STOCK_MODELS[model].model_fields)
        if not known or block is None:
            continue
        if is_own(model) or (isinstance(block, Mapping) and registered(LOSS_REGISTRY, block.get("type")) is not None):
            yield key, block


def metrics_of(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the blocks of the metrics."""
    metrics = (options.get("val") or {}).get("metrics")
    return metrics if isinstance(metrics, Mapping) else {}


def check_named_blocks(options: Mapping[str, Any], model: Any, faults: Faults) -> None:
    """Check that all such blocks name something that there is, and have the keys that it takes.

    Args:
        options: Resolved options, whose outer blocks are blocks.
        model: The class that `model_type` names.
        faults: Takes what is wrong.
    """
    for key in networks_of(options):
        check_named(options[key], (key,), dict(iter(ARCH_REGISTRY)), faults)
    if options.get("degradation") is not None:
        check_named(options["degradation"], ("degradation",), DEGRADATIONS, faults, optional=("scale",))
    for phase, block in options["datasets"].items():
        _named(block, ("datasets", phase), dict(iter(DATASET_REGISTRY)), faults)
    train = options.get("train") or {}
    for key, block in losses_of(train, model):
        check_named(block, ("train", key), dict(iter(LOSS_REGISTRY)), faults)
    for key, block in train.items() if stock_optimisers(model) else ():
        if block is not None and key.startswith("optim_"):
            check_named(block, ("train", key), OPTIMISERS, faults, _GIVEN_TO_OPTIMISERS)
        elif block is not None and key == "scheduler":
            check_named(block, ("train", key), SCHEDULERS, faults, _GIVEN_TO_SCHEDULERS)
    for name, block in metrics_of(options).items():
        place, known = ("val", "metrics", name), dict(iter(METRIC_REGISTRY))
        check_named(block, place, known, faults, _IMAGES, _READ_BY_BASICSR)


def check_named(
    block: Any,
    place: Place,
    known: Mapping[str, Any],
    faults: Faults,
    given: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> None:
    """Check a block against the signature of what it names.

    Keyword arguments of any name (`**kwargs`) may be anything in other people's classes, unless they are near a name
    that the signature has; in BasicSR's and ours they are swallowed, so that the names of the signature are all.

    Args:
        block: The block.
        place: Its place.
        known: What it may name.
        faults: Takes what is wrong.
        given: Arguments that come from elsewhere.
        optional: Keys that it may have besides, and need not have even if the signature has no default.
    """
    factory = _named(block, place, known, faults)
    if factory is None:
        return
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and not is_own(factory)
    named = [
        name
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in given
    ]
    keys = sorted({*named, *optional} - {"type"})
    for key in block:
        if key not in (*keys, "type") and (not takes_any or did_you_mean(key, keys)):
            faults.add(str(unknown_key(dotted((*place, key)), keys)))
    for name in named:
        if parameters[name].default is inspect.Parameter.empty and name not in block and name not in optional:
            faults.at((*place, name), "the key is missing")


def _found(known: Mapping[str, Any], name: object) -> Any:
    """Look a name up as BasicSR's registries do."""
    return (known.get(name) or known.get(f"{name}_basicsr")) if isinstance(name, str) else None


def _named(block: Any, place: Place, known: Mapping[str, Any], faults: Faults) -> Any:
    """Return what a block names, or None after saying why it names nothing."""
    if not isinstance(block, Mapping):
        faults.at(place, f"expected a block with the key 'type', got {block!r}")
    elif "type" not in block:
        faults.at((*place, "type"), "the key is missing")
    else:
        found = _found(known, block["type"])
        if found is None:
            faults.add(str(unknown_name(dotted((*place, "type")), block["type"], known)))
        return found
    return None
