"""Which keys an option file has: those that are declared, with their values, and those that nothing reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from basicsr.utils.registry import LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from bsr_plugins.blocks import is_own
from bsr_plugins.data.dataset_options import options_of
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.errors import OptionError, did_you_mean, nearest, unknown_name
from bsr_plugins.options import schema
from bsr_plugins.options.declared import OptionBlock, read_block
from bsr_plugins.options.faults import Faults, Place, dotted
from bsr_plugins.options.recorded import Reads
from bsr_plugins.options.schema import (
    NETWORK,
    SET_BY_TRAINER,
    dataset_class,
    losses_of,
    metrics_of,
    model_class,
    registered,
)

_NEAR = 0.8
_NEEDED_TO_TRAIN = (("train",), ("logger",), ("val", "val_freq"), ("datasets", "train"))
_NEEDED_TO_TEST = (("val",),)


class Unread(NamedTuple):
    """A key that nothing has read: where it is, what to say of it, and whether it is a fault already."""

    place: Place
    line: str
    slip: bool


class Keys:
    """The keys of one option file; those that are `switched_off`, to take back an inherited one, need not be known."""

    def __init__(self, options: dict[str, Any], is_train: bool, switched_off: set[Place]) -> None:
        self._options, self._is_train, self._switched_off = options, is_train, switched_off
        self._model = model_class(options)
        top, train = schema.declared_by(self._model)
        self._kinds: dict[Place, list[type[OptionBlock]]] = {
            (): [schema.RunOptions, *top],
            ("path",): [schema.path_options(options)],
            ("train",): [schema.TrainOptions, *train],
            ("val",): [schema.ValOptions],
            ("logger",): [schema.LoggerOptions],
            ("logger", "wandb"): [schema.WandbOptions],
            ("dist_params",): [schema.DistOptions],
        }

    def check(self, faults: Faults) -> bool:
        """Check keys and values as far as they are declared; return whether the outer blocks are blocks."""
        if not _are_blocks(self._options, faults):
            check_values(self._kinds[()][0], self._options, (), faults)
            return False
        if self._model is None and isinstance(self._options.get("model_type"), str):
            faults.add(str(unknown_name("model_type", self._options["model_type"], dict(iter(MODEL_REGISTRY)))))
        for place, kinds in [*self._kinds.items(), *self._parts()]:
            block = self._at(place)
            for kind in kinds if isinstance(block, Mapping) else ():
                check_values(kind, block, place, faults)
        for place in _NEEDED_TO_TRAIN if self._is_train else _NEEDED_TO_TEST:
            above = self._at(place[:-1])
            if isinstance(above, Mapping) and above.get(place[-1]) is None:
                line = "the key is missing" if place[-1] not in above else "None, expected a block of keys"
                faults.at(place, line)
        for key in SET_BY_TRAINER:
            if key in self._options:
                faults.at((key,), f"{self._options[key]!r}, expected no such key, as the trainer sets it")
        for unread in self.unread_by_model(None):
            faults.at(unread.place, unread.line)
        for phase, block in self._options["datasets"].items():
            begin = phase.partition("_")[0]
            for name, value in (("phase", begin), ("scale", self._options.get("scale"))):
                if value is not None and block.get(name, value) != value:
                    line = f"{block[name]!r}, expected {value!r}, which the trainer puts there"
                    faults.at(("datasets", phase, name), line)
        return True

    def _at(self, place: Place) -> Any:
        block: Any = self._options
        for key in place:
            block = block.get(key) if isinstance(block, Mapping) else None
        return block

    def _parts(self) -> Iterator[tuple[Place, list[type[OptionBlock]]]]:
        """Yield the places of datasets, optimisers, the schedule, losses and metrics, and what declares their keys."""
        options = self._options
        for phase, block in options["datasets"].items():
            declared = schema.TrainDatasetOptions if phase.partition("_")[0] == "train" else schema.WholeDatasetOptions
            kind = dataset_class(block)
            stock = is_own(kind) and not issubclass(kind, PairedDegradationDataset)
            yield ("datasets", phase), [declared, schema.StockDatasetOptions] if stock else [declared]
        for key in options.get("train") or {} if schema.stock_optimisers(self._model) else ():
            if key.startswith("optim_"):
                yield ("train", key), [schema.OptimiserOptions]
        if schema.stock_optimisers(self._model):
            yield ("train", "scheduler"), [schema.SchedulerOptions]
        for key, block in losses_of(options, self._model):
            if is_own(registered(LOSS_REGISTRY, block)):
                yield ("train", key), [schema.LossOptions]
        for name, block in metrics_of(options).items():
            if is_own(registered(METRIC_REGISTRY, block)):
                yield ("val", "metrics", name), [schema.MetricOptions]

    def unread_by_model(self, reads: Reads | None) -> Iterator[Unread]:
        """Yield the keys outside of the datasets that neither the trainer nor the model reads.

        Without reads, as there is no model, they are those that are not declared, of a model whose keys all are.
        """
        options, model = self._options, self._model
        closed = schema.is_closed(model)
        if reads is None and not closed:
            return
        known = {place: {name for kind in kinds for name in kind.model_fields} for place, kinds in self._kinds.items()}
        trained = ("g", *getattr(model, "training_network_names", ()))
        known[()] |= {*SET_BY_TRAINER, *(f"{NETWORK}{name}" for name in trained)}
        losses = {("train", key) for key, block in (options.get("train") or {}).items() if key.endswith("_opt")}
        if not is_own(model) or model in schema.STOCK_MODELS:
            losses = {("train", key) for key, _ in losses_of(options, model)}
        optimisers = {("train", key) for key in options.get("train") or {} if key.startswith("optim_")}
        built, reads = reads is not None, reads or Reads()
        reads.taken |= known.keys()  # whoever reads these blocks, their keys are looked at
        for place in reads.unread(options):
            above = [place[:length] for length in range(1, len(place))]
            network = str(place[0]).startswith(NETWORK)
            if (
                place[-1] in known.get(place[:-1], ())
                or (not self._is_train and (place[0] == "train" or network))
                or (network and (above or not built))
                or (place in losses and not built)
                or any(one in losses or one in optimisers or one == ("datasets",) for one in above)
                or any(one not in known and one[-1] in known.get(one[:-1], ()) for one in above)
                or place in self._switched_off
            ):
                continue
            names = known.get(place[:-1], set()) | reads.names(place[:-1])
            yield _unread(place, model.__name__, names, closed)

    def unread_by_dataset(self, phase: str, reads: Reads | None, tried: bool) -> Iterator[Unread]:
        """Yield the keys of a dataset's block that neither the loader nor the dataset has read.

        If an item was tried, what has not been read by then is not read at all. Without reads, as there is no dataset,
        they are those of BasicSR's datasets, of which near ones are slips.
        """
        block = self._options["datasets"][phase]
        kind, begin = dataset_class(block), phase.partition("_")[0]
        if kind is None or kind is PairedDegradationDataset or (reads is None and not is_own(kind)):
            return
        declared = {*schema.TrainDatasetOptions.model_fields}
        declared -= {"on_bad_image"} if begin != "train" else set()
        if issubclass(kind, PairedDegradationDataset):
            declared |= options_of(begin).model_fields.keys()
        elif is_own(kind):
            declared |= schema.StockDatasetOptions.model_fields.keys()
        reads = reads or Reads()
        for place in reads.unread(block):
            below = ("datasets", phase, *place)
            if place[0] not in declared and below not in self._switched_off:
                names = reads.names(place[:-1]) | (declared if len(place) == 1 else set())
                found = _unread(below, kind.__name__, names, is_own(kind) and tried)
                yield found if tried or is_own(kind) else found._replace(slip=False)


def check_values(kind: type[OptionBlock], block: dict[str, Any], place: Place, faults: Faults) -> None:
    """Check those keys of a block that a class declares; the others are left to others."""
    given = {key: block[key] for key in kind.model_fields if key in block}
    if "type" in given:
        given["type"] = str(given["type"])  # what it may be is checked with the name
    try:
        read = read_block(kind, given, dotted(place))
    except OptionError as error:
        faults.take(error)
        return
    for key in given:
        value = getattr(read, key)
        if (type(value) is int and type(block[key]) is float) or (isinstance(value, list) and value == block[key]):
            block[key] = value


def _unread(place: Place, reader: str, known: set[str], final: bool) -> Unread:
    known -= {*SET_BY_TRAINER}
    line = (
        f"unknown key, which neither {reader} nor the trainer reads, expected one of {', '.join(sorted(known))}"
        f"{did_you_mean(place[-1], sorted(known))}"
    )
    return Unread(place, line, final or nearest(place[-1], known, _NEAR) is not None)


def _are_blocks(options: Mapping[str, Any], faults: Faults) -> bool:
    _check_texts(options, (), faults)
    sound = all(isinstance(options.get(key), Mapping) for key in ("path", "datasets"))
    sound &= all(isinstance(options.get(key) or {}, Mapping) for key in ("train", "val", "logger", "dist_params"))
    datasets = options["datasets"] if sound else {}
    sound &= all(isinstance(key, str) for key in (*options, *datasets))
    for phase, block in datasets.items():
        if not isinstance(block, Mapping):
            faults.at(("datasets", phase), f"{block!r}, expected a block of keys")
            sound = False
    return sound


def _check_texts(value: Any, place: Place, faults: Faults) -> None:
    """Check that keys are text: BasicSR writes all of them into the log."""
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        if isinstance(value, Mapping) and not isinstance(key, str):
            faults.at((*place, key), f"the key is {key!r}, expected text; put it in quotes")
        if isinstance(item, list | Mapping):
            _check_texts(item, (*place, key), faults)
