"""The blocks of an option file that name a registered class or function, and whether it takes what they say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from bsr_plugins.degradations import DEGRADATIONS
from bsr_plugins.engine.faults import Faults, dotted
from bsr_plugins.engine.option_reads import unread_keywords
from bsr_plugins.engine.option_yaml import Place
from bsr_plugins.errors import unknown_key, unknown_name

OPTIMISERS: dict[str, Callable[..., Any]] = {"Adam": torch.optim.Adam}
SCHEDULERS: dict[str, Callable[..., Any]] = {
    "MultiStepLR": MultiStepRestartLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingRestartLR": CosineAnnealingRestartLR,
}
_GIVEN_TO_OPTIMISERS, _GIVEN_TO_SCHEDULERS = frozenset({"params"}), frozenset({"optimizer", "last_epoch"})
_IMAGES = frozenset({"img", "img2"})  # what BasicSR hands to a metric, as far as it asks for it
_READ_BY_BASICSR = frozenset({"type", "better"})  # out of a metric's block
_OWN = ("basicsr", "bsr_plugins")


def registered(registry: Any, name: object) -> Any:
    """Return what is registered under a name, as BasicSR would find it, or None."""
    return _found(dict(iter(registry)), name)


def model_class(options: Mapping[str, Any]) -> Any:
    """Return the class that `model_type` names, or None."""
    return registered(MODEL_REGISTRY, options.get("model_type"))


def is_own(kind: Any) -> bool:
    """Whether a class is BasicSR's or this package's, whose blocks are known to be what their names say."""
    return (getattr(kind, "__module__", "") or "").partition(".")[0] in _OWN


def stock_optimisers(model: Any) -> bool:
    """Whether a model makes its optimisers and schedules as BasicSR does."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return False
    return all(getattr(model, name) is getattr(BaseModel, name) for name in ("get_optimizer", "setup_schedulers"))


def is_loss(key: str, block: Any, model: Any) -> bool:
    """Whether a block under `train` describes a loss."""
    if not key.endswith("_opt") or block is None:
        return False
    if is_own(model) or not isinstance(block, Mapping):
        return is_own(model)
    return registered(LOSS_REGISTRY, block.get("type")) is not None


def check_named_blocks(options: Mapping[str, Any], model: Any, faults: Faults) -> None:
    """Check that all such blocks name something that there is, and have the keys that it takes.

    Args:
        options: Resolved options, whose outer blocks are blocks.
        model: The class that `model_type` names.
        faults: Takes what is wrong.
    """
    for key, block in options.items():
        if key.startswith("network_") and block is not None:
            _check(block, (key,), dict(iter(ARCH_REGISTRY)), faults)
    if options.get("degradation") is not None:
        _check(options["degradation"], ("degradation",), DEGRADATIONS, faults, optional={"scale"})
    for phase, block in options["datasets"].items():
        _named(block, ("datasets", phase), dict(iter(DATASET_REGISTRY)), faults)
    train = options.get("train") or {}
    for key, block in train.items():
        if is_loss(key, block, model):
            _check(block, ("train", key), dict(iter(LOSS_REGISTRY)), faults)
        elif stock_optimisers(model) and key.startswith("optim_") and block is not None:
            _check(block, ("train", key), OPTIMISERS, faults, given=_GIVEN_TO_OPTIMISERS, needed={"lr"})
        elif stock_optimisers(model) and key == "scheduler" and block is not None:
            _check(block, ("train", key), SCHEDULERS, faults, given=_GIVEN_TO_SCHEDULERS)
    for name, block in ((options.get("val") or {}).get("metrics") or {}).items():
        place, known = ("val", "metrics", name), dict(iter(METRIC_REGISTRY))
        _check(block, place, known, faults, given=_IMAGES, optional=_READ_BY_BASICSR)


def _found(known: Mapping[str, Any], name: object) -> Any:
    """Look a name up as BasicSR's registries do."""
    return (known.get(name) or known.get(f"{name}_basicsr")) if isinstance(name, str) else None


def _named(block: Any, place: Place, known: Mapping[str, Any], faults: Faults) -> Any:
    """Return what a block names, or None after noting why it names nothing."""
    if not isinstance(block, Mapping):
        faults.at(place, f"expected a block with the key 'type', got {block!r}")
    elif "type" not in block:
        faults.at((*place, "type"), "the key is missing")
    else:
        found = _found(known, block["type"])
        if found is None:
            faults.add(str(unknown_name(dotted((*place, "type")), block["type"], known)), (*place, "type"))
        return found
    return None


def _check(
    block: Any,
    place: Place,
    known: Mapping[str, Any],
    faults: Faults,
    given: Iterable[str] = (),
    optional: Iterable[str] = (),
    needed: Iterable[str] = (),
) -> None:
    """Check a block against the signature of what it names.

    Args:
        block: The block.
        place: Its place.
        known: What it may name.
        faults: Takes what is wrong.
        given: Arguments that come from elsewhere.
        optional: Keys that it may have besides, and need not have even if the signature has no default.
        needed: Keys that it needs although the signature has a default.
    """
    factory = _named(block, place, known, faults)
    if factory is None:
        return
    parameters = inspect.signature(factory).parameters
    any_ = any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and not unread_keywords(factory)
    named = [
        name
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in given
    ]
    keys = sorted({*named, *optional} - {"type"})
    for key in block:
        if key not in (*keys, "type") and not any_:
            faults.add(str(unknown_key(dotted((*place, key)), keys)), (*place, key))
    for name in named:
        required = parameters[name].default is inspect.Parameter.empty or name in needed
        if required and name not in block and name not in optional:
            faults.at((*place, name), "the key is missing")
