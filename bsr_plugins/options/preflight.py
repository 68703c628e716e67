"""The preparation of a run: its options read and checked, its datasets and model built, before anything is written."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch
from basicsr.models import build_model
from basicsr.models.sr_model import SRModel
from basicsr.utils import set_random_seed
from basicsr.utils.dist_util import get_dist_info, init_dist
from basicsr.utils.logger import initialized_logger
from mmengine.dist import broadcast_object_list

from bsr_plugins.blocks import integer, is_own
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.degradations import build_degradation
from bsr_plugins.errors import BSRError, OptionError, described
from bsr_plugins.options.command_line import launched, read_arguments
from bsr_plugins.options.datasets import Built, build_datasets
from bsr_plugins.options.faults import Faults, OptionFaults, Place, dotted
from bsr_plugins.options.files import Resolved, apply_overrides, resolve_marked
from bsr_plugins.options.keys import Keys, Unread
from bsr_plugins.options.networks import check_networks
from bsr_plugins.options.recorded import Reads, Recorded, plain
from bsr_plugins.options.schema import MAX_SEED, NETWORK, dataset_class, model_class
from bsr_plugins.options.trials import check_metrics, check_train, fetch_vggs
from bsr_plugins.options.yaml_text import as_yaml
from bsr_plugins.random_states import random_states_kept

_MAX_DRAWN_SEED = 10_000
_DEBUG_NAME, _DEBUG_FREQUENCY = "debug", 8
_HELPER = "x-"  # what keys at the top begin with that only hold anchors for others
_LOGGER, _MANY = "basicsr", 1 << 30
Resume = Callable[[dict[str, Any]], None]


@dataclass
class Prepared:
    """What a run is to do, and what it does it with.

    Attributes:
        opt: The options as BasicSR's `parse_options` returns them.
        file: The option file of the command line.
        resolved: YAML of what the file says with all that it inherits and what the command line sets, to be kept with
            the run: it can be run by itself.
        only_check: Whether there is nothing left to do: the options were only to be checked, or printed.
        datasets: The datasets by their keys.
        model: The model.
        warnings: Lines for the log.
        late_reads: Returns a line for every key that nobody has read so far; to be called after the first step.
    """

    opt: dict[str, Any]
    file: Path
    resolved: bytes
    only_check: bool
    datasets: dict[str, Any] = field(default_factory=dict)
    model: Any = None
    warnings: list[str] = field(default_factory=list)
    _held: list[logging.LogRecord] = field(default_factory=list)
    late_reads: Callable[[], list[str]] = list

    def replay(self, logger: logging.Logger) -> None:
        """Hand over what was logged while datasets and model were built, and there was no log yet."""
        for record in self._held:
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        self._held.clear()


def prepare(root_path: str, is_train: bool, resume: Resume | None = None) -> Prepared:
    """Read and check the options of the command line, join the other processes, and build datasets and model.

    As in BasicSR, paths in an option file are relative to the current directory (only `_base_` is relative to its
    file), `~` in them is the home folder, and the folders of the run are under `root_path`. Without a `manual_seed`
    one is drawn, the same for all processes; a `PairedDegradationDataset` without a `seed` takes it too. Keys at the
    top that begin with `x-` may hold anchors; they are no options. Only `--debug` makes a run for debugging; in BasicSR
    a name that holds the word does too. Nothing is made, moved or written.

    Args:
        root_path: Folder of `experiments/` and `results/`.
        is_train: Whether this is a training run.
        resume: Called once the keys are checked and the processes have joined, if the run is to be made. It may point
            `path` at the networks of a checkpoint, set a `manual_seed` that is None, and raise a BSRError.

    Raises:
        BSRError: This is a worker process that imports the script that began the run.
        OptionFaults: The options cannot be used. All that is wrong is listed, each with file and line.
    """
    # A worker that is only to import the script would wait for the other processes; Python's own check asks for this.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise BSRError(
            f"{Path(sys.argv[0]).name}: starts its pipeline again in every worker process, expected the call below "
            "`if __name__ == '__main__':`"
        )
    arguments = read_arguments()
    resolved, faults = _resolve(arguments)
    if arguments.print_only:
        faults.raise_any()
        sys.stdout.write(as_yaml(resolved.options).decode())
        return Prepared(resolved.options, arguments.file, resolved.as_bytes(), True)
    try:
        rank, world_size = launched(arguments.launcher)
    except OptionError as error:
        raise OptionFaults(str(error)) from error
    prepared = Prepared({}, arguments.file, resolved.as_bytes(), arguments.check)
    keys = Keys(resolved.options, is_train, resolved.switched_off)
    if keys.check(faults):
        prepared.opt = _as_basicsr(plain(resolved.options), arguments, root_path, is_train)
        prepared.opt |= {"rank": rank, "world_size": world_size}
        with _held_back(prepared._held):
            _Preparation(prepared, arguments, keys, faults).make(resume)
    faults.raise_any()
    if arguments.check and rank == 0:
        for warning in prepared.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(f"{arguments.file}: no faults found")
    return prepared


class _Preparation:
    """The checks of options whose outer blocks are blocks, and what they build."""

    def __init__(self, prepared: Prepared, arguments: argparse.Namespace, keys: Keys, faults: Faults) -> None:
        self.prepared, self.arguments, self.keys, self.faults = prepared, arguments, keys, faults
        self.opt, self.model = prepared.opt, model_class(prepared.opt)
        self.datasets: dict[str, Built] = {}
        self.reads = Reads()

    def make(self, resume: Resume | None) -> None:
        """Check and build all that can be, whatever else is wrong; the model only if nothing is."""
        opt, faults = self.opt, self.faults
        self._check_machine()
        self._check_files()
        resumed = self._start(resume)
        with random_states_kept():
            with faults.gathered("degradation"):
                if opt.get("degradation") is not None and faults.clear(("degradation",), ("scale",)):
                    build_degradation(opt["degradation"], opt.get("scale"))
            sound = opt if faults.clear(("degradation",)) else opt | {"degradation": None}
            self.datasets = build_datasets(sound, self.model, faults)
            if self.model is not None and opt["is_train"] and isinstance(opt.get("train"), Mapping):
                check_train(opt, self.model, faults)
            self.prepared.warnings += check_networks(opt, self.model, self.datasets, resumed, faults)
            check_metrics(opt, self.model, self.datasets, faults)
        missing = fetch_vggs(opt, self.model, self.arguments.check, faults) if not faults.lines else []
        self.prepared.warnings += missing
        if not missing and not faults.lines:
            self._build_model()
        self._report_unread()
        self.prepared.datasets = {key: built.dataset for key, built in self.datasets.items()}

    def _check_machine(self) -> None:
        opt, faults = self.opt, self.faults
        if faults.clear(("num_gpu",)) and opt["num_gpu"] != 0 and not torch.cuda.is_available():
            faults.at(("num_gpu",), f"{opt['num_gpu']}, but there is no CUDA device here, expected 0")
        seed, processes = opt["manual_seed"], opt["world_size"]
        if faults.clear(("manual_seed",)) and seed is not None and seed + processes - 1 > MAX_SEED:
            faults.at(("manual_seed",), f"{seed}, expected room for {processes} processes up to {MAX_SEED}")
        with faults.gathered("scale"):
            if is_own(self.model) and issubclass(self.model, SRModel) and "scale" in opt and faults.clear(("scale",)):
                integer(opt["scale"], "scale", 1)

    def _check_files(self) -> None:
        opt, faults = self.opt, self.faults
        for key, value in opt["path"].items():
            looked_for = key == "resume_state" and not opt["auto_resume"]  # otherwise only without a checkpoint
            names_file = key.startswith(f"pretrain_{NETWORK}") or looked_for
            if names_file and isinstance(value, str) and not Path(value).is_file():
                faults.at(("path", key), f"{value}: there is no such file")
        logs = (opt.get("logger") or {}) if opt["is_train"] else {}
        if logs.get("use_tb_logger") is True and find_spec("tensorboard") is None:
            faults.at(("logger", "use_tb_logger"), "true, but the package tensorboard is not installed, expected false")
        wandb = logs.get("wandb")
        if not isinstance(wandb, Mapping) or wandb.get("project") is None:
            return
        if logs.get("use_tb_logger") is not True:
            faults.at(("logger", "use_tb_logger"), "false, expected true with logger.wandb.project")
        if find_spec("wandb") is None:
            faults.at(("logger", "wandb", "project"), "given, but the package wandb is not installed, expected null")

    def _start(self, resume: Resume | None) -> bool:
        """Join the other processes, find what the run goes on from, and seed; return whether it goes on."""
        opt, faults, checks = self.opt, self.faults, self.arguments.check
        if not faults.lines and not checks:
            if opt["dist"]:
                params = opt.get("dist_params") or {} if self.arguments.launcher == "slurm" else {}
                init_dist(self.arguments.launcher, **params)
                opt["rank"], opt["world_size"] = get_dist_info()
            if resume is not None:
                try:
                    resume(opt)
                except BSRError as error:
                    faults.take(error)
        if opt["manual_seed"] is None and faults.clear(("manual_seed",)):
            seeds = [random.randint(1, _MAX_DRAWN_SEED)]
            broadcast_object_list(seeds)
            opt["manual_seed"] = seeds[0]
        for dataset in opt["datasets"].values():
            if issubclass(dataset_class(dataset) or object, PairedDegradationDataset):
                dataset.setdefault("seed", opt["manual_seed"])
        return not checks and resume is not None and opt["path"].get("resume_state") is not None

    def _build_model(self) -> None:
        opt, faults, name = self.opt, self.faults, self.model.__name__
        set_random_seed(opt["manual_seed"] + opt["rank"])
        given = opt | {"dist": False} if self.arguments.check else opt  # in a check there is no process group
        try:
            self.prepared.model = build_model(Recorded(given, self.reads))
        except BSRError as error:
            faults.take(error)
        except Exception as error:
            missing = self.reads.missing(error)
            if missing is not None:
                faults.at(missing, f"the key is missing, {name} needs it")
            elif opt["num_gpu"] == 0 and any(word in str(error) for word in ("CUDA", "NVIDIA", "cuda")):
                faults.at(("num_gpu",), f"0, expected a CUDA device, without which {name} does not run")
            else:
                what = f"{name} cannot be built from these options ({described(error, placed=True)})"
                faults.at(("model_type",), what)

    def _report_unread(self) -> None:
        """Refuse unread keys that are slips, and see to it that the others are told of later."""
        later: set[Place] = set()
        for unread in self._unread():
            if unread.slip:
                self.faults.at(unread.place, unread.line)
            else:
                later.add(unread.place)

        def lines() -> list[str]:
            left = [one for one in self._unread() if one.place in later]
            return [self.faults.positioned(one.place, f"{dotted(one.place)}: {one.line}") for one in left]

        self.prepared.late_reads = lines

    def _unread(self) -> Iterator[Unread]:
        for phase in self.opt["datasets"]:
            built = self.datasets.get(phase) or Built(None)
            yield from self.keys.unread_by_dataset(phase, built.reads, built.tried)
        if self.prepared.model is not None:
            yield from self.keys.unread_by_model(self.reads)


@contextmanager
def _held_back(records: list[logging.LogRecord]) -> Iterator[None]:
    """Collect what BasicSR's logger gets, and leave the logger as it was; Python's warnings are collected with it."""
    logger, handler = logging.getLogger(_LOGGER), MemoryHandler(_MANY, logging.CRITICAL + 1)
    handler.buffer = records
    before, known = (logger.handlers, logger.propagate, logger.level), _LOGGER in initialized_logger
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    initialized_logger[_LOGGER] = True
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
        if not known:
            initialized_logger.pop(_LOGGER, None)
        for one in caught:
            text = f"{one.filename}:{one.lineno}: {one.category.__name__}: {one.message}"
            records.append(logger.makeRecord(_LOGGER, logging.WARNING, one.filename, one.lineno, text, (), None))


def _resolve(arguments: argparse.Namespace) -> tuple[Resolved, Faults]:
    try:
        resolved = resolve_marked(arguments.file)
    except OptionFaults:
        raise
    except OptionError as error:
        raise OptionFaults(f"-opt: {error}") from error
    for key in [key for key in resolved.options if isinstance(key, str) and key.startswith(_HELPER)]:
        del resolved.options[key]
    faults = Faults(str(arguments.file), resolved.positions)
    apply_overrides(resolved, arguments.overrides, faults)
    return resolved, faults


def _as_basicsr(opt: dict[str, Any], arguments: argparse.Namespace, root_path: str, is_train: bool) -> dict[str, Any]:
    """Add to the options what BasicSR adds; what cannot be used is known by then and is passed over."""
    opt["dist"] = arguments.launcher != "none"
    opt["auto_resume"], opt["is_train"] = arguments.auto_resume, is_train
    opt.setdefault("manual_seed", None)
    name = str(opt.get("name"))
    if arguments.debug:
        if not name.startswith(_DEBUG_NAME):
            name = opt["name"] = f"{_DEBUG_NAME}_{name}"
        if is_train and opt.get("val"):
            opt["val"]["val_freq"] = _DEBUG_FREQUENCY
        if is_train and opt.get("logger"):
            often = {"print_freq": 1, "save_checkpoint_freq": _DEBUG_FREQUENCY}
            opt["logger"] |= often | {"use_tb_logger": False, "wandb": None}
    if opt.get("num_gpu") == "auto":
        opt["num_gpu"] = torch.cuda.device_count()
    several = not opt["dist"] and isinstance(opt.get("num_gpu"), int) and opt["num_gpu"] > 1
    if several and torch.cuda.is_available():
        print(f"One process runs on one GPU, so num_gpu: 1 in place of {opt['num_gpu']}; torchrun uses them all.")
        opt["num_gpu"] = 1
    for key, dataset in opt["datasets"].items():
        dataset["phase"] = str(key).partition("_")[0]
        if "scale" in opt:
            dataset["scale"] = opt["scale"]
        for root in ("dataroot_gt", "dataroot_lq"):
            if dataset.get(root) is not None:
                dataset[root] = _at_home(dataset[root])
    for key, value in opt["path"].items():
        if "resume_state" in key or "pretrain_network" in key:
            opt["path"][key] = _at_home(value)
    kind = "experiments" if is_train else "results"
    folder = Path(root_path) / kind / name
    opt["path"] |= {f"{kind}_root": str(folder), "log": str(folder), "visualization": str(folder / "visualization")}
    opt["path"] |= {key: str(folder / key) for key in ("models", "training_states") if is_train}
    return opt


def _at_home(value: Any) -> Any:
    """Put the home folder in place of `~` in a path, or in each of several."""
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~") else value
