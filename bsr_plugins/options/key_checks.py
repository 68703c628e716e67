"""Whether an option file has the keys that it needs, no others, and values that they can have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from bsr_plugins.data.dataset_options import options_of
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.errors import OptionError, did_you_mean, unknown_name
from bsr_plugins.options import schema
from bsr_plugins.options.declared import OptionBlock, read_block
from bsr_plugins.options.faults import Faults, Place, dotted
from bsr_plugins.options.named_blocks import (
    check_named_blocks,
    losses_of,
    metrics_of,
    model_class,
    registered,
)
from bsr_plugins.options.schema import (
    NETWORK,
    SET_BY_TRAINER,
    declared_by,
    is_closed,
    is_own,
    path_options,
    stock_optimisers,
)

Kinds = Iterable[type[OptionBlock]]


def check_keys(options: dict[str, Any], is_train: bool, switched_off: set[Place], faults: Faults) -> bool:
    """Check keys and values of resolved options.

    Args:
        options: The options; whole numbers that are written as `5e3` become whole numbers.
        is_train: Whether they are for training.
        switched_off: Keys that are set to null to take an inherited one back; these need not be known.
        faults: Takes what is wrong.

    Returns:
        Whether all outer blocks are blocks, so that others may look into them.
    """
    _check_texts(options, (), faults)
    kind = schema.TrainRunOptions if is_train else schema.TestRunOptions
    check_values(kind, options, (), faults)
    sound = all(isinstance(key, str) for key in options)
    sound &= all(isinstance(options.get(key), Mapping) for key in ("path", "datasets"))
    sound &= all(isinstance(options.get(key) or {}, Mapping) for key in ("train", "val", "logger", "dist_params"))
    datasets = options.get("datasets")
    for phase, block in datasets.items() if isinstance(datasets, Mapping) else ():
        if not isinstance(block, Mapping):
            faults.at(("datasets", phase), f"{block!r}, expected a block of keys")
            sound = False
    if sound:
        _Keys(options, is_train, switched_off, faults).check()
    return sound


class _Keys:
    """The blocks of one option file, all of which are blocks."""

    def __init__(self, options: dict[str, Any], is_train: bool, switched_off: set[Place], faults: Faults) -> None:
        self.options, self.is_train, self.switched_off, self.faults = options, is_train, switched_off, faults
        self.model = model_class(options)

    def check(self) -> None:
        options, faults, model = self.options, self.faults, self.model
        if model is None and faults.clear(("model_type",)):
            faults.add(str(unknown_name("model_type", options["model_type"], dict(iter(MODEL_REGISTRY)))))
        top, train = declared_by(model)
        self.block((), [schema.TrainRunOptions, *top], lambda key: key.startswith(NETWORK))
        self.block(("path",), [path_options(options)])
        losses = dict(losses_of(options.get("train") or {}, model))
        self.block(("train",), [schema.TrainOptions, *train], losses.__contains__)
        self.block(("val",), [schema.TrainValOptions if self.is_train else schema.ValOptions])
        self.block(("logger",), [schema.LoggerOptions])
        self.block(("logger", "wandb"), [schema.WandbOptions])
        self.block(("dist_params",), [schema.DistOptions])
        check_named_blocks(options, model, faults)
        self._check_parts(losses)
        if self.is_train and "train" not in options["datasets"]:
            faults.at(("datasets", "train"), "the key is missing")
        for phase, block in options["datasets"].items():
            self._check_dataset(phase, block)

    def block(self, place: Place, kinds: Kinds, allowed: Callable[[str], bool] = lambda _key: False) -> None:
        """Check a block of the file against what declares its keys; `allowed` ones are checked elsewhere."""
        block: Any = self.options
        for key in place:
            block = block.get(key) if isinstance(block, Mapping) else None
        if not isinstance(block, Mapping):
            if block is not None:
                self.faults.at(place, f"{block!r}, expected a block of keys")
            return
        known = {key for kind in kinds for key in kind.model_fields}
        for kind in kinds if place else list(kinds)[1:]:
            check_values(kind, block, place, self.faults)
        for key, value in block.items():
            if place == () and key in SET_BY_TRAINER:
                self.faults.at((key,), f"{value!r}, expected no such key, as the trainer sets it")
            elif key not in known and not allowed(key) and is_closed(self.model):
                self.refuse((*place, key), known)

    def refuse(self, place: Place, known: Iterable[str], reader: str = "") -> None:
        """Refuse a key that nothing reads."""
        if place not in self.switched_off:
            self.faults.at(place, unread_line(place[-1], reader or self.model.__name__, known))

    def _check_parts(self, losses: Mapping[str, Any]) -> None:
        """Check the values of optimisers, the schedule, losses and metrics that are declared here."""
        train = self.options.get("train") or {}
        for key, block in train.items() if stock_optimisers(self.model) else ():
            if key.startswith("optim_") or key == "scheduler":
                kind = schema.OptimiserOptions if key.startswith("optim_") else schema.SchedulerOptions
                self._check_part(kind, block, ("train", key))
        for key, block in losses.items():
            if is_own(registered(LOSS_REGISTRY, block.get("type") if isinstance(block, Mapping) else None)):
                self._check_part(schema.LossOptions, block, ("train", key))
        for name, block in metrics_of(self.options).items():
            if is_own(registered(METRIC_REGISTRY, block.get("type") if isinstance(block, Mapping) else None)):
                self._check_part(schema.MetricOptions, block, ("val", "metrics", name))

    def _check_part(self, kind: type[OptionBlock], block: Any, place: Place) -> None:
        if isinstance(block, Mapping):
            check_values(kind, block, place, self.faults)

    def _check_dataset(self, phase: str, block: dict[str, Any]) -> None:
        place, begin = ("datasets", phase), str(phase).partition("_")[0]
        for name, value in (("phase", begin), ("scale", self.options.get("scale"))):
            if value is not None and block.get(name, value) != value:
                self.faults.at((*place, name), f"{block[name]!r}, expected {value!r}, which the trainer puts there")
        kinds: list[type[OptionBlock]] = [
            schema.TrainDatasetOptions if begin == "train" else schema.WholeDatasetOptions
        ]
        kind = registered(DATASET_REGISTRY, block.get("type"))
        if kind is None or not isinstance(kind, type):
            pass
        elif issubclass(kind, PairedDegradationDataset):
            own = options_of(begin if begin in ("train", "val", "test") else "test")
            known = {name for one in (*kinds, own) for name in one.model_fields}
            for key in block if kind is PairedDegradationDataset else ():
                if key not in known:
                    self.refuse((*place, key), known, block["type"])
        elif is_own(kind):
            kinds.append(schema.StockDatasetOptions)
        for one in kinds:
            check_values(one, block, place, self.faults)


def check_values(kind: type[OptionBlock], block: Any, place: Place, faults: Faults) -> None:
    """Check those keys of a block that a class declares; the others are left to others."""
    given = {key: block[key] for key in kind.model_fields if key in block}
    if "type" in kind.model_fields:
        given["type"] = str(given.get("type"))  # what it may be is checked with the name
    try:
        read = read_block(kind, given, dotted(place))
    except OptionError as error:
        for line in error.lines:
            faults.add(line)
        return
    for key in given:
        value = getattr(read, key)
        if (type(value) is int and type(block[key]) is float) or (isinstance(value, list) and value == block[key]):
            block[key] = value


def unread_line(key: object, reader: str, known: Iterable[str]) -> str:
    """Say that nothing reads a key."""
    known = sorted({*known} - {*SET_BY_TRAINER})
    return (
        f"unknown key, which neither {reader} nor the trainer reads, expected one of {', '.join(known)}"
        f"{did_you_mean(key, known)}"
    )


def _check_texts(value: Any, place: Place, faults: Faults) -> None:
    """Check that keys are text: BasicSR writes all of them into the log."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check_texts(item, (*place, number), faults)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                faults.at((*place, key), f"the key is {key!r}, expected text; put it in quotes")
            _check_texts(item, (*place, key), faults)
