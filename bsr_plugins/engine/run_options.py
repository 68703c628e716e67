"""The options of a run, from the command line and the files that it names, checked before anything is made."""

from __future__ import annotations

import multiprocessing
import random
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import set_random_seed
from basicsr.utils.dist_util import get_dist_info, init_dist
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY

from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.engine.arguments import Arguments, launched, read_arguments
from bsr_plugins.engine.checkpoint_sets import find_set
from bsr_plugins.engine.faults import Faults, OptionFaults
from bsr_plugins.engine.inheritance import Resolved, resolve_marked
from bsr_plugins.engine.known_keys import check_keys
from bsr_plugins.engine.named_blocks import check_named_blocks, model_class, registered
from bsr_plugins.engine.overrides import apply_overrides
from bsr_plugins.engine.preflight import check_run
from bsr_plugins.engine.ranks import of_first
from bsr_plugins.engine.schema import check_schema
from bsr_plugins.errors import BSRError, OptionError, unknown_name

_MAX_RANDOM_SEED = 10_000
_DEBUG_NAME = "debug"
_HELPER = "x-"  # what keys at the top begin with that only hold anchors for others
_DEBUG_FREQUENCY = 8


@dataclass(frozen=True)
class Run:
    """What a run is to do.

    Attributes:
        opt: The options as BasicSR's `parse_options` returns them.
        file: The option file of the command line.
        resolved: YAML of what the file says with all that it inherits and what the command line sets, to be kept with
            the run: it can be run by itself.
        only_check: Whether the options were only to be checked; there is no process group and no seed is set then.
    """

    opt: dict[str, Any]
    file: Path
    resolved: bytes
    only_check: bool


def read_run(root_path: str, is_train: bool) -> Run:
    """Read and check the options of the command line, set the seeds, and join the other processes if there are any.

    As in BasicSR, paths in an option file are relative to the current directory (only `_base_` is relative to its
    file), `~` in them is the home folder, and the folders of the run are under `root_path`. Without a `manual_seed`
    one is drawn, the same for all processes; a `PairedDegradationDataset` without a `seed` takes it too. Keys at the
    top that begin with `x-` may hold anchors; they are no options. Only `--debug` makes a run for debugging; in BasicSR
    a name that holds the word does too.

    Args:
        root_path: Folder of `experiments/` and `results/`.
        is_train: Whether this is a training run.

    Raises:
        BSRError: This is a worker process that imports the script that began the run.
        OptionFaults: The options cannot be used. All that is wrong is listed, each with file and line, and nothing has
            been built, made or moved.
    """
    _check_is_no_worker()
    arguments = read_arguments()
    resolved, faults = _resolve(arguments)
    try:
        rank, world_size = launched(arguments.launcher)
    except OptionError as error:
        raise OptionFaults(str(error)) from error
    options = _checked_keys(resolved, is_train, faults)
    kept = resolved.as_bytes()
    opt: dict[str, Any] = {}
    if options is not None:
        opt = _as_basicsr(options, arguments, root_path, is_train) | {"rank": rank, "world_size": world_size}
        check_run(opt, faults, fetch=not arguments.check)
    faults.raise_any()
    if arguments.check:
        if rank == 0:
            print(f"{arguments.file}: no faults found")
    else:
        _start(opt, arguments)
    return Run(opt, arguments.file, kept, arguments.check)


def _check_is_no_worker() -> None:
    """Refuse to begin in a worker that is only to import the script, where it would wait for the other processes."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # what Python's own check asks for
        raise BSRError(
            f"{Path(sys.argv[0]).name}: starts its pipeline again in every worker process, expected the call below "
            "`if __name__ == '__main__':`"
        )


def _resolve(arguments: Arguments) -> tuple[Resolved, Faults]:
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


def _checked_keys(resolved: Resolved, is_train: bool, faults: Faults) -> dict[str, Any] | None:
    """Check keys, types and ranges; return the options if others may look into their blocks."""
    options = resolved.options
    if not check_schema(options, is_train, faults):
        return None
    model = model_class(options)
    if model is None and faults.free(("model_type",)):
        faults.add(str(unknown_name("model_type", options["model_type"], dict(iter(MODEL_REGISTRY)))))
    check_named_blocks(options, model, faults)
    if model is not None:
        check_keys(options, model, resolved.switched_off, faults)
    return options


def _as_basicsr(options: dict[str, Any], arguments: Arguments, root_path: str, is_train: bool) -> dict[str, Any]:
    """Add to the options what BasicSR adds; what cannot be used has been noted by then and is passed over."""
    opt = options
    opt["dist"] = arguments.launcher != "none"
    opt["auto_resume"], opt["is_train"] = arguments.auto_resume, is_train
    opt.setdefault("manual_seed", None)
    name = str(opt.get("name"))
    if arguments.debug:
        if not name.startswith(_DEBUG_NAME):
            name = opt["name"] = f"{_DEBUG_NAME}_{name}"
        if is_train:
            _debug(opt)
    if opt.get("num_gpu") == "auto":
        opt["num_gpu"] = torch.cuda.device_count()
    several = not opt["dist"] and isinstance(opt.get("num_gpu"), int) and opt["num_gpu"] > 1
    if several and torch.cuda.is_available():
        print(f"One process runs on one GPU, so num_gpu: 1 in place of {opt['num_gpu']}; torchrun uses them all.")
        opt["num_gpu"] = 1
    for key, dataset in opt["datasets"].items():
        dataset["phase"] = key.partition("_")[0]
        if "scale" in opt:
            dataset["scale"] = opt["scale"]
        for root in ("dataroot_gt", "dataroot_lq"):
            if dataset.get(root) is not None:
                dataset[root] = _at_home(dataset[root])
    for key, value in opt["path"].items():
        if "resume_state" in key or "pretrain_network" in key:
            opt["path"][key] = _at_home(value)
    opt["path"] |= _folders(Path(root_path), name, is_train)
    return opt


def _folders(root: Path, name: str, is_train: bool) -> dict[str, str]:
    """Return where a run writes."""
    if not is_train:
        results = root / "results" / name
        return {
            "results_root": str(results),
            "log": str(results),
            "visualization": str(results / "visualization"),
        }
    experiment = root / "experiments" / name
    return {
        "experiments_root": str(experiment),
        "models": str(experiment / "models"),
        "training_states": str(experiment / "training_states"),
        "log": str(experiment),
        "visualization": str(experiment / "visualization"),
    }


def _debug(opt: dict[str, Any]) -> None:
    """Let a run log, validate and save often, and leave TensorBoard and wandb alone."""
    if opt.get("val"):
        opt["val"]["val_freq"] = _DEBUG_FREQUENCY
    if opt.get("logger"):
        often = {"print_freq": 1, "save_checkpoint_freq": _DEBUG_FREQUENCY}
        opt["logger"] |= often | {"use_tb_logger": False, "wandb": None}


def _at_home(value: Any) -> Any:
    """Put the home folder in place of `~` in a path, or in each of several."""
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~") else value


def _start(opt: dict[str, Any], arguments: Arguments) -> None:
    """Join the other processes, and seed this one."""
    if opt["dist"]:
        params = opt.get("dist_params") or {} if arguments.launcher == "slurm" else {}
        init_dist(arguments.launcher, **params)
    opt["rank"], opt["world_size"] = get_dist_info()
    if opt["manual_seed"] is None:
        opt["manual_seed"] = of_first(partial(_drawn_seed, opt))
    for dataset in opt["datasets"].values():
        if issubclass(registered(DATASET_REGISTRY, dataset["type"]), PairedDegradationDataset):
            dataset.setdefault("seed", opt["manual_seed"])
    set_random_seed(opt["manual_seed"] + opt["rank"])


def _drawn_seed(opt: dict[str, Any]) -> int:
    """Draw a seed, or return the one that was drawn when the run began that is to go on."""
    found = find_set(opt).found if opt["is_train"] else None
    if found is None or found.identity is None:
        return random.randint(1, _MAX_RANDOM_SEED)
    return found.identity.manual_seed
