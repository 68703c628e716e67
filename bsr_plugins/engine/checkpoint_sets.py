"""What a run can be resumed from: a training state, the networks saved with it, and the run that they belong to.

A set is `training_states/N.state` and every `models/LABEL_N.pth`. Where this engine has written it, the state holds a
fingerprint of every network file and is written last, so a set is complete exactly if its state can be read and all the
fingerprints agree. BasicSR's sets have nothing of the kind: there all that can be asked is that the files load.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, Field

from bsr_plugins.atomic_file import Fingerprint, fingerprint, reported
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.options.declared import OptionBlock, read_block
from bsr_plugins.safe_loading import load_safely

KEY = "bsr_plugins"  # where a checkpoint file says what it belongs to, next to BasicSR's keys
SUPERSEDED = "_superseded"  # what the names of training states end in that a run has set aside
NETWORK_LABEL = "net_"  # what the labels begin with that BasicSR's models give their networks

_STATE = re.compile(r"(0|[1-9][0-9]*)\.state")
_SUPERSEDED = re.compile(rf"(0|[1-9][0-9]*)(?:_[0-9]+)?\.state{SUPERSEDED}")
_NETWORK = re.compile(r"(.+)_(0|[1-9][0-9]*)\.pth")
_OPTION = "network_"
_PARAMS = "params"  # as BasicSR's models save networks, whatever they began with
_DIGEST_BYTES = 16
_LEFT_OUT = {  # of the options' fingerprint, as results do not depend on them, or as they are compared alone
    *("auto_resume", "dist", "dist_params", "is_train", "logger", "name", "path", "rank", "root_path", "val"),
    *("manual_seed", "num_gpu", "world_size"),
}
_LEFT_OUT_OF_TRAIN = {"total_iter", "max_nonfinite_steps", "log_grad_norm"}
_LEFT_OUT_OF_DATASET = {
    *("batch_size_per_gpu", "name", "num_prefetch_queue", "num_worker_per_gpu", "persistent_workers"),
    *("pin_memory", "prefetch_mode"),
}
_IN_WORDS = {
    "world_size": "processes",
    "total_batch": "samples a batch over all processes",
    "num_samples": "training images",
    "manual_seed": "as manual_seed",
}


class Identity(OptionBlock):
    """What a run's checkpoints say of the run, under `KEY`.

    `run_id` is kept when it is resumed; `options_digest` is of the options that an iteration's result depends on.
    """

    model_config = ConfigDict(extra="ignore")

    version: int = Field(default=1, ge=1, le=1)
    run_id: str
    name: str
    world_size: int
    total_batch: int
    num_samples: int
    manual_seed: int
    options_digest: str

    @classmethod
    def of(cls, opt: Mapping[str, Any], num_samples: int, run_id: str | None = None) -> Identity:
        """Make the identity of a run; without the `run_id` of one that goes on, it is a new one."""
        world_size = int(opt["world_size"])
        processes = world_size if opt["dist"] else max(1, int(opt["num_gpu"]))
        return cls(
            run_id=run_id or uuid.uuid4().hex,
            name=str(opt["name"]),
            world_size=world_size,
            total_batch=int(opt["datasets"]["train"]["batch_size_per_gpu"]) * processes,
            num_samples=num_samples,
            manual_seed=int(opt["manual_seed"]),
            options_digest=_digest(opt),
        )

    def remarks_on(self, name: str, saved: Identity | None) -> list[str]:
        """Return, one line each, why the run does not go on exactly from a set with a training state of this name.

        `saved` is what the set carries, or None if BasicSR's trainer has written it.
        """
        end = ": the run does not go on exactly as it would have."
        if saved is None:
            return [f"{name} is BasicSR's, which keeps less than it takes{end}"]
        changes = [
            f"{getattr(saved, key)} {what}, and not {getattr(self, key)}"
            for key, what in _IN_WORDS.items()
            if getattr(saved, key) != getattr(self, key)
        ]
        has_other_options = saved.options_digest != self.options_digest
        if has_other_options:
            changes.append("other options of training")
        lines = [f"{name} was saved with {change}{end}" for change in changes]
        if has_other_options:
            lines.append(
                f"Optimisers and schedules go on as {name} has them, learning rates and milestones included, whatever "
                "the options say now."
            )
        return lines


class _Contents(OptionBlock):
    """What a training state carries under `KEY` with its identity."""

    model_config = ConfigDict(extra="ignore")

    files: dict[str, Fingerprint]  # of its networks, by name
    extras: dict[str, Any]


class RunFolders(NamedTuple):
    """Where a run keeps its checkpoints: the folders of its networks and of its training states."""

    models: Path
    states: Path

    @classmethod
    def of(cls, path_opt: Mapping[str, Any]) -> RunFolders:
        return cls(Path(path_opt["models"]), Path(path_opt["training_states"]))

    def saved_states(self) -> dict[int, Path]:
        """Return the training states by iteration, broken ones included; files of other names are left out."""
        return {int(match[1]): file for file, match in _matches(self.states, _STATE)}

    def superseded_states(self) -> list[tuple[int, Path]]:
        return [(int(match[1]), file) for file, match in _matches(self.states, _SUPERSEDED)]

    def saved_networks(self) -> list[tuple[int, str, Path]]:
        """Return the files of networks, each with its iteration and label."""
        return [(int(match[2]), match[1], file) for file, match in _matches(self.models, _NETWORK)]


@dataclass(frozen=True, eq=False)  # tensors have no one answer
class CheckpointSet:
    """A complete checkpoint set, and the iteration after which it was saved.

    `file` is the training state, `state` what BasicSR's `resume_training` takes of it. `networks` are files by their
    names in the options less `network_`, e.g. `g`. `extras` are what `CheckpointStore.save` was given. Without an
    `identity` BasicSR's trainer has written it, and a run cannot go on exactly.
    """

    file: Path
    iteration: int
    state: dict[str, Any]
    networks: dict[str, Path]
    identity: Identity | None
    extras: dict[str, Any]


class Search(NamedTuple):
    """The newest complete set, if there is one, and a line for every newer one that is broken, with the reason."""

    found: CheckpointSet | None
    passed_over: list[str]


def find_set(opt: Mapping[str, Any]) -> Search:
    """Find the set that a run's options ask to be resumed from.

    With `auto_resume` it is the newest complete one in the run's folders; without that, or where there is none, it is
    the one of `path.resume_state`, and a BSRError if that cannot be used.
    """
    wanted, named = wanted_networks(opt), opt["path"].get("resume_state")
    search = newest_complete(RunFolders.of(opt["path"]), wanted) if opt["auto_resume"] else Search(None, [])
    if search.found is None and named is not None:
        search = Search(load_set(Path(named), wanted=wanted), search.passed_over)
    return search


def newest_complete(folders: RunFolders, wanted: Iterable[str] = ()) -> Search:
    """Find the newest complete set of a run that has the wanted networks; what is no checkpoint is left out."""
    passed_over = list[str]()
    for _, file in sorted(folders.saved_states().items(), reverse=True):
        try:
            return Search(_load(file, folders.models, wanted), passed_over)
        except BSRError as error:
            passed_over.append(str(error))
    return Search(None, passed_over)


def load_set(state_file: Path, models: Path | None = None, wanted: Iterable[str] = ()) -> CheckpointSet:
    """Load the set of a training state of any name; without `models`, its networks lie as a run has them.

    Raises:
        BSRError: The set is broken or missing, or lacks a wanted network.
    """
    try:
        return _load(state_file, models or state_file.parent.parent / "models", wanted)
    except BSRError as error:
        raise BSRError(f"path.resume_state: {state_file} cannot be used: {error}") from error


def wanted_networks(opt: Mapping[str, Any]) -> list[str]:
    """Return the networks that a resumed run takes from its set, named as in `CheckpointSet.networks`."""
    ignored = opt["path"].get("ignore_resume_networks") or []
    ignored = [ignored] if isinstance(ignored, str) else ignored
    named = [key for key in opt if key.startswith(_OPTION) and opt[key] is not None and key not in ignored]
    return [key.removeprefix(_OPTION) for key in named]


def use_networks(opt: dict[str, Any], found: CheckpointSet) -> None:
    """Point `path` of a run's options at a set and its networks, as BasicSR's `check_resume` does."""
    opt["path"]["resume_state"] = str(found.file)
    for name in wanted_networks(opt):
        opt["path"][f"pretrain_{_OPTION}{name}"] = str(found.networks[name])
        opt["path"][f"param_key_{name}"] = _PARAMS


def _load(file: Path, models: Path, wanted: Iterable[str]) -> CheckpointSet:
    """Load a training state, and check it and its networks."""
    state = _load_whole(file)
    if not isinstance(state, dict):
        raise _broken(file, f"holds {type(state).__name__}, expected a training state")
    for key, kind in {"epoch": int, "iter": int, "optimizers": list, "schedulers": list}.items():
        if type(state.get(key)) is not kind:
            raise _broken(file, f"has no '{key}' that is a {kind.__name__}, expected a training state")
    iteration, number = state["iter"], _STATE.fullmatch(file.name)
    if number is not None and int(number[1]) != iteration:
        raise _broken(file, f"is of iteration {iteration}, expected {number[1]} as its name says")
    identity, contents = None, _Contents(files={}, extras={})
    if (belongs := state.pop(KEY, None)) is not None:
        try:
            identity, contents = read_block(Identity, belongs, KEY), read_block(_Contents, belongs, KEY)
        except OptionError as error:
            raise _broken(file, "; ".join(error.lines)) from error
    for name, expected in contents.files.items():
        network = models / name
        if not network.is_file():
            raise _broken(network, "is missing")
        with reported(network, "read"):
            is_same = network.stat().st_size == expected.size and fingerprint(network) == expected
        if not is_same:
            raise _broken(network, "differs from what the state records")
    networks = {}
    for n, label, path in RunFolders(models, file.parent).saved_networks():
        if n == iteration and path.name not in contents.files:
            _load_whole(path)
        if n == iteration and label.startswith(NETWORK_LABEL):
            networks[label.removeprefix(NETWORK_LABEL)] = path
    for name in wanted:
        if name not in networks:
            raise _broken(
                file,
                f"has no {NETWORK_LABEL}{name}_{iteration}.pth with it, expected it, or {_OPTION}{name} in "
                "path.ignore_resume_networks",
            )
    return CheckpointSet(file, iteration, state, networks, identity, contents.extras)


def _load_whole(file: Path) -> Any:
    """Load a file of a set, all of which must be as it was written."""
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise _broken(file, "is no file, expected a checkpoint")
    content = load_safely(file, f"{file.parent.name}/{file.name}")
    if zipfile.is_zipfile(file):  # torch does not look at the checksums; files of the old form have none
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise _broken(file, f"is damaged ({error})") from error
        if damaged is not None:
            raise _broken(file, f"is damaged (the checksum of {damaged} differs)")
    return content


def _broken(file: Path, reason: str) -> BSRError:
    return BSRError(f"{file.parent.name}/{file.name}: {reason}")


def _matches(folder: Path, pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """Return what is in a folder under names that a pattern matches wholly; nothing where there is no such folder."""
    with reported(folder, "read"):
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(file, match) for file in entries if (match := pattern.fullmatch(file.name)) is not None]


def _digest(opt: Mapping[str, Any]) -> str:
    """Fingerprint the options that the result of an iteration depends on."""
    kept = {key: value for key, value in opt.items() if key not in _LEFT_OUT}
    for key, block, left_out in (
        ("datasets", opt["datasets"]["train"], _LEFT_OUT_OF_DATASET),
        ("train", opt["train"], _LEFT_OUT_OF_TRAIN),
    ):
        kept[key] = {inner: value for inner, value in block.items() if inner not in left_out}
    text = json.dumps(_in_order(kept), default=str)
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _in_order(value: object) -> object:
    """Return options with the keys of every block in order; they may be numbers as well as text."""
    if isinstance(value, Mapping):
        return [(key, _in_order(inner)) for key, inner in sorted((str(key), inner) for key, inner in value.items())]
    return [_in_order(inner) for inner in value] if isinstance(value, list | tuple) else value
