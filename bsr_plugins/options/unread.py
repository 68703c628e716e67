"""Keys that nobody has read: which of them are slips, and which are only told of later."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bsr_plugins.data.dataset_options import options_of
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.options import schema
from bsr_plugins.options.datasets import Built
from bsr_plugins.options.declared import OptionBlock
from bsr_plugins.options.faults import Place
from bsr_plugins.options.key_checks import unread_line
from bsr_plugins.options.named_blocks import losses_of
from bsr_plugins.options.recorded import Reads
from bsr_plugins.options.schema import (
    NETWORK,
    SET_BY_TRAINER,
    declared_by,
    is_closed,
    is_own,
    path_options,
    stock_optimisers,
)

_NEAR = 0.8


class Unread(NamedTuple):
    """A key that nobody has read.

    Attributes:
        place: Where it is.
        line: What is to be said of it.
        slip: Whether it is a fault: it is near a name that is known, or whoever it is for has read all that it reads.
    """

    place: Place
    line: str
    slip: bool


def unread_by_model(options: Mapping[str, Any], model: Any, reads: Reads | None, is_train: bool) -> Iterator[Unread]:
    """Yield the keys outside of the datasets that neither the trainer nor the model has read.

    Args:
        options: The options as the file has them.
        model: The model's class.
        reads: What the model has read; None if it could not be built. Then slips alone are yielded.
        is_train: Whether this is a training run; in another one nobody reads the block `train` and its networks.
    """
    top, train = declared_by(model)
    declared = {
        (): _names(schema.RunOptions, *top) | {*SET_BY_TRAINER},
        ("path",): _names(path_options(options)),
        ("train",): _names(schema.TrainOptions, *train),
        ("val",): _names(schema.ValOptions),
        ("logger",): _names(schema.LoggerOptions),
        ("logger", "wandb"): _names(schema.WandbOptions),
        ("dist_params",): _names(schema.DistOptions),
    }
    parts = {("train", key) for key, _ in losses_of(options.get("train") or {}, model)}
    if stock_optimisers(model):
        parts |= {("train", key) for key in options.get("train") or {} if key.startswith("optim_")}
    final = is_closed(model) and reads is not None
    reads = reads or Reads()
    reads.taken |= declared.keys()  # whoever reads these blocks, their keys are looked at
    for place in reads.unread(options):
        of_training = place[0] == "train" or str(place[0]).startswith(NETWORK)
        inside = [place[:length] for length in range(1, len(place))]
        covered = any(
            above in parts or (above not in declared and _is_declared(above, declared)) or above[0] == "datasets"
            for above in inside
        )
        named = len(place) > 1 and str(place[0]).startswith(NETWORK)
        if not (covered or named or _is_declared(place, declared) or (of_training and not is_train)):
            known = declared.get(place[:-1], set()) | reads.names(place[:-1])
            yield _unread(place, model.__name__, known, final)


def unread_by_dataset(phase: str, block: Mapping[str, Any], kind: Any, built: Built | None) -> Iterator[Unread]:
    """Yield the keys of a dataset's block that neither the loader nor the dataset has read.

    Args:
        phase: The block's key.
        block: The block.
        kind: The dataset's class.
        built: The dataset; None if it could not be built.
    """
    reads, tried = (built.reads, built.tried) if built is not None else (Reads(), False)
    if reads is None or kind is PairedDegradationDataset:
        return
    declared = _names(schema.TrainDatasetOptions) - ({"on_bad_image"} if block["phase"] != "train" else set())
    if issubclass(kind, PairedDegradationDataset):
        declared |= _names(options_of(block["phase"]))
    elif is_own(kind):
        declared |= _names(schema.StockDatasetOptions)
    for place in reads.unread(block):
        if place[0] not in declared:
            known = reads.names(place[:-1]) | (declared if len(place) == 1 else set())
            found = _unread(("datasets", phase, *place), kind.__name__, known, final=is_own(kind) and tried)
            yield found if tried or is_own(kind) else found._replace(slip=False)


def _names(*kinds: type[OptionBlock]) -> set[str]:
    return {name for kind in kinds for name in kind.model_fields}


def _is_declared(place: Place, declared: Mapping[Place, set[str]]) -> bool:
    return place[-1] in declared.get(place[:-1], ())


def _unread(place: Place, reader: str, known: set[str], final: bool) -> Unread:
    slip = final or bool(difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=_NEAR))
    return Unread(place, unread_line(place[-1], reader, known), slip)
