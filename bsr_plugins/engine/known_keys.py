"""Keys that nothing reads: misspelt ones, and blocks of another model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from basicsr.utils.registry import DATASET_REGISTRY

from bsr_plugins.data.dataset_options import TRAINER_KEYS, PatchOptions, WholeImageOptions
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.engine.faults import Faults, listed
from bsr_plugins.engine.named_blocks import is_loss, is_own, registered, stock_optimisers
from bsr_plugins.engine.option_reads import Reads, reads_of
from bsr_plugins.engine.option_yaml import Place
from bsr_plugins.errors import did_you_mean

_TRAINER: dict[Place, frozenset[str]] = {
    (): frozenset(
        [
            "name",
            "model_type",
            "scale",
            "num_gpu",
            "manual_seed",
            "datasets",
            "path",
            "train",
            "val",
            "logger",
            "dist_params",
            "find_unused_parameters",
        ]
    ),
    ("path",): frozenset(
        [
            "resume_state",
            "ignore_resume_networks",
            "experiments_root",
            "results_root",
            "models",
            "training_states",
            "log",
            "visualization",
        ]
    ),
    ("train",): frozenset(["total_iter", "warmup_iter", "clip_grad_norm", "log_grad_norm", "max_nonfinite_steps"]),
    ("val",): frozenset(["val_freq", "save_img", "suffix", "metrics", "pbar"]),
    ("logger",): frozenset(["print_freq", "save_checkpoint_freq", "save_last_n", "use_tb_logger", "wandb"]),
    ("logger", "wandb"): frozenset(("project", "resume_id")),
    ("dist_params",): frozenset(("backend", "port")),
}
"""What BasicSR's trainer and ours read."""

_OF_DATASETS = frozenset((*TRAINER_KEYS, "name", "phase", "scale"))
_OF_TRAINING_DATASETS = frozenset(("on_bad_image",))
_OF_GANS = frozenset(("net_d_iters", "net_d_init_iters"))
"""What the option files of all of BasicSR's GANs have; one of its models reads neither."""

_OF_STOCK_DATASETS = frozenset(("dataroot_flow", "gt_size", "interval_list"))
"""What the option files of BasicSR's training datasets have; not all of these read them."""

_SET_BY_TRAINER = frozenset(("auto_resume", "dist", "is_train", "rank", "root_path", "world_size"))
_OF_NETWORKS = ("pretrain_network_", "strict_load_", "param_key_")


def check_keys(options: Mapping[str, Any], model: Any, switched_off: set[Place], faults: Faults) -> None:
    """Check that every key is one that the trainer, the model or a dataset reads.

    Args:
        options: Resolved options, whose outer blocks are blocks.
        model: The class that `model_type` names.
        switched_off: Keys that are set to null to take an inherited one back; these need not be read.
        faults: Takes what is wrong.
    """
    known = _Known(options, model, switched_off, faults)
    for place in _TRAINER:
        block = _at(options, place)
        if isinstance(block, Mapping):
            known.check(block, place)
    for phase, block in options["datasets"].items():
        _check_given(options, block, phase, faults)
        kind = registered(DATASET_REGISTRY, block.get("type")) if isinstance(block, Mapping) else None
        if kind is not None:
            known.check_dataset(block, ("datasets", phase), kind)


def _check_given(options: Mapping[str, Any], block: Mapping[str, Any], key: str, faults: Faults) -> None:
    """Check keys that the trainer puts into a dataset's block itself."""
    for name, value in (("phase", key.partition("_")[0]), ("scale", options.get("scale"))):
        if value is not None and block.get(name, value) != value:
            faults.at(("datasets", key, name), f"{block[name]!r}, expected {value!r}, which the trainer puts there")


class _Known:
    """What is read in one run."""

    def __init__(self, options: Mapping[str, Any], model: Any, switched_off: set[Place], faults: Faults) -> None:
        self.model, self.faults, self.switched_off = model, faults, switched_off
        self.reads = reads_of(model)
        self.networks = {
            key
            for key in (*options, *self.reads.keys_of(()))
            if key.startswith("network_") and self.reads.knows((key,))
        }

    def check(self, block: Mapping[str, Any], place: Place) -> None:
        """Check the keys of a block that the trainer or the model reads."""
        of_trainer = _TRAINER.get(place, frozenset())
        if place == ("train",) and self.reads.names(("train", "optim_d")):
            of_trainer |= _OF_GANS
        for key, value in block.items():
            below = (*place, key)
            if place == () and key in _SET_BY_TRAINER:
                self.faults.at(below, f"{value!r}, expected no such key, as the trainer sets it")
            elif key in of_trainer or self.reads.knows(below) or self._is_path_of_network(below):
                if below not in _TRAINER and place == ("train",):
                    self._check_inner(key, value)
            elif below not in self.switched_off:
                self._refuse(below, {*of_trainer, *self.reads.keys_of(place), *self._paths_of_networks(place)})

    def check_dataset(self, block: Mapping[str, Any], place: Place, kind: Any) -> None:
        """Check the keys of a dataset's block."""
        reads = reads_of(kind, is_dataset=True)
        known = set(_OF_DATASETS)
        if issubclass(kind, PairedDegradationDataset):
            known |= {field.name for options in (PatchOptions, WholeImageOptions) for field in fields(options)}
            reads = Reads()
        elif is_own(kind):
            known |= _OF_STOCK_DATASETS
        known -= _OF_TRAINING_DATASETS
        if place[-1].partition("_")[0] == "train":
            known |= _OF_TRAINING_DATASETS
        for key in block:
            below = (*place, key)
            read = key in known or reads.knows((key,)) or self.reads.names(below)
            if not read and below not in self.switched_off:
                self._refuse(below, {*known, *reads.keys_of(())}, block["type"])

    def _check_inner(self, key: str, value: Any) -> None:
        """Check the keys of a block under `train` that the model reads key by key."""
        place = ("train", key)
        taken_elsewhere = is_loss(key, value, self.model) or (
            stock_optimisers(self.model) and (key.startswith("optim_") or key == "scheduler")
        )
        read = self.reads.keys_of(place)
        if taken_elsewhere or not isinstance(value, Mapping) or not read or self.reads.takes_all(place):
            return
        for name in value:
            if not self.reads.knows((*place, name)):
                self._refuse((*place, name), read)

    def _paths_of_networks(self, place: Place) -> Iterable[str]:
        if place != ("path",):
            return ()
        names = [key.removeprefix("network_") for key in self.networks]
        return [f"{begin}{name}" for begin in _OF_NETWORKS for name in names]

    def _is_path_of_network(self, place: Place) -> bool:
        return place[-1] in self._paths_of_networks(place[:-1])

    def _refuse(self, place: Place, known: set[str], reader: object = None) -> None:
        reader = reader or self.model.__name__
        known -= _SET_BY_TRAINER
        hint = did_you_mean(place[-1], known)
        self.faults.at(
            place, f"unknown key, which neither {reader} nor the trainer reads, expected one of {listed(known)}{hint}"
        )


def _at(options: Mapping[str, Any], place: Place) -> Any:
    block: Any = options
    for key in place:
        block = block.get(key) if isinstance(block, Mapping) else None
    return block
