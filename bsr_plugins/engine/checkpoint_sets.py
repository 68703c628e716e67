"""Finding what a run can be resumed from: a training state and the networks that were saved with it.

A set is `training_states/N.state` and every `models/LABEL_N.pth`. Where our engine has written it, the state holds a
fingerprint of every network file and is written last, so a set is complete exactly if its state can be read and all the
fingerprints agree. BasicSR's own sets have nothing of the kind: there all that can be asked is that the files load.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bsr_plugins.atomic_file import Fingerprint, fingerprint
from bsr_plugins.engine.checkpoint_identity import KEY, Identity
from bsr_plugins.errors import BSRError
from bsr_plugins.safe_loading import load_safely

SUPERSEDED = "_superseded"
"""What the names of training states end in that a run has set aside."""

_STATE = re.compile(r"(0|[1-9][0-9]*)\.state")
_SUPERSEDED = re.compile(rf"(0|[1-9][0-9]*)(?:_[0-9]+)?\.state{SUPERSEDED}")
_NETWORK = re.compile(r"(.+)_(0|[1-9][0-9]*)\.pth")
_PREFIX = "net_"  # of the labels that BasicSR's models give their networks
_OPTION = "network_"


@dataclass(frozen=True)
class RunFolders:
    """Where a run keeps its checkpoints.

    Attributes:
        models: The folder of the networks.
        states: The folder of the training states.
    """

    models: Path
    states: Path

    @classmethod
    def of(cls, path_opt: Mapping[str, Any]) -> RunFolders:
        """Take them from the block `path` of a run's options."""
        return cls(Path(path_opt["models"]), Path(path_opt["training_states"]))

    def saved_states(self) -> dict[int, Path]:
        """Return the training states by iteration, broken ones included; files of other names are left out."""
        return {int(match[1]): file for file, match in _matches(self.states, _STATE)}

    def superseded_states(self) -> list[tuple[int, Path]]:
        """Return the training states that a run has set aside, with their iterations."""
        return [(int(match[1]), file) for file, match in _matches(self.states, _SUPERSEDED)]

    def saved_networks(self) -> dict[int, list[Path]]:
        """Return the files of networks by iteration, those of every label."""
        found: dict[int, list[Path]] = {}
        for file, match in _matches(self.models, _NETWORK):
            found.setdefault(int(match[2]), []).append(file)
        return found


@dataclass(frozen=True, eq=False)  # tensors have no one answer
class Found:
    """A complete checkpoint set.

    Attributes:
        file: The training state.
        iteration: The iteration after which it was saved.
        state: What BasicSR's `resume_training` takes: `epoch`, `iter`, `optimizers`, `schedulers`.
        networks: The files of the networks, by their names in the options less `network_`, e.g. `g`.
        identity: What it belongs to; None if BasicSR's own trainer has written it, so that a run cannot go on exactly.
        extras: What `CheckpointStore.save` was given besides; empty if BasicSR's own trainer has written it.
    """

    file: Path
    iteration: int
    state: dict[str, Any]
    networks: dict[str, Path]
    identity: Identity | None
    extras: dict[str, Any]


class Search(NamedTuple):
    """What a search for a checkpoint set has found.

    Attributes:
        found: The newest complete set, if there is one.
        passed_over: A line for every newer one that is broken, with the reason, the newest first.
    """

    found: Found | None
    passed_over: list[str]


class _BrokenError(BSRError):
    """A set cannot be used: the file that is at fault, and why."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file.parent.name}/{file.name}: {reason}")


def find_set(opt: Mapping[str, Any]) -> Search:
    """Find the set that a run's options ask to be resumed from.

    That is the newest complete one in the run's folders with `auto_resume`, else, or if there is none, the one of
    `path.resume_state`.

    Raises:
        BSRError: What `path.resume_state` names is broken or missing.
    """
    search = Search(None, [])
    if opt["auto_resume"]:
        search = newest_complete(RunFolders.of(opt["path"]), wanted_networks(opt))
    named = opt["path"].get("resume_state")
    if search.found is None and named is not None:
        search = Search(load_set(Path(named)), search.passed_over)
    return search


def newest_complete(folders: RunFolders, wanted: Iterable[str] = ()) -> Search:
    """Find the newest complete set of a run.

    Nothing that lies in the folders makes it fail: what is no checkpoint is left out, what is a broken one is passed
    over.

    Args:
        folders: Where to look; they need not exist.
        wanted: Networks that a set must have, named as in `Found.networks`.

    Raises:
        BSRError: A folder cannot be read.
    """
    wanted, passed_over = tuple(wanted), list[str]()
    for _, file in sorted(folders.saved_states().items(), reverse=True):
        try:
            return Search(_load(file, folders.models, wanted), passed_over)
        except BSRError as error:
            passed_over.append(str(error))
    return Search(None, passed_over)


def load_set(state_file: Path, models: Path | None = None) -> Found:
    """Load the set of a training state.

    Args:
        state_file: The training state, of any name.
        models: The folder of its networks; without it, `models` next to the state's folder, as a run has it.

    Raises:
        BSRError: The set is broken or missing.
    """
    try:
        return _load(state_file, models or state_file.parent.parent / "models", ())
    except BSRError as error:
        raise BSRError(f"path.resume_state: {state_file} cannot be used: {error}") from error


def wanted_networks(opt: Mapping[str, Any]) -> list[str]:
    """Return the networks that a resumed run takes from its set, named as in `Found.networks`.

    They are those of the options, less `path.ignore_resume_networks`.
    """
    ignored = opt["path"].get("ignore_resume_networks") or []
    ignored = [ignored] if isinstance(ignored, str) else ignored
    named = [key for key in opt if key.startswith(_OPTION) and opt[key] is not None and key not in ignored]
    return [key.removeprefix(_OPTION) for key in named]


def use_networks(opt: dict[str, Any], found: Found) -> None:
    """Point a run's options at the networks of a set, and note the set as `path.resume_state`.

    Like BasicSR's `check_resume`, but that the files are those next to the state, wherever that is.

    Args:
        opt: The run's options; `path` is changed.
        found: The set.

    Raises:
        BSRError: The set lacks a network.
    """
    wanted = wanted_networks(opt)
    _check_wanted(found, wanted)
    opt["path"]["resume_state"] = str(found.file)
    for name in wanted:
        opt["path"][f"pretrain_{_OPTION}{name}"] = str(found.networks[name])
        opt["path"][f"param_key_{name}"] = "params"  # as BasicSR's models save them, whatever they began with


def _load(file: Path, models: Path, wanted: Collection[str]) -> Found:
    """Load a training state, and check it and its networks."""
    state = _load_state(file)
    belongs = state.pop(KEY, None)
    files = {match[1]: path for path, match in _matches(models, _NETWORK) if int(match[2]) == state["iter"]}
    identity = None
    if belongs is None:
        for path in files.values():
            _load_safely(path)
    else:
        identity = _read_identity(file, belongs)
        recorded = _read_recorded(file, belongs)
        for name, expected in recorded.items():
            _compare(models / name, expected)
        for path in files.values():
            if path.name not in recorded:
                _load_safely(path)
    networks = {label.removeprefix(_PREFIX): path for label, path in files.items() if label.startswith(_PREFIX)}
    found = Found(file, state["iter"], state, networks, identity, belongs["extras"] if belongs else {})
    _check_wanted(found, wanted)
    return found


def _load_state(file: Path) -> dict[str, Any]:
    """Load a training state and check its form."""
    state = _load_safely(file)
    if not isinstance(state, dict):
        raise _BrokenError(file, f"holds {type(state).__name__}, expected a training state")
    for key, kind in {"epoch": int, "iter": int, "optimizers": list, "schedulers": list}.items():
        if type(state.get(key)) is not kind:
            raise _BrokenError(file, f"has no '{key}' that is a {kind.__name__}, expected a training state")
    number = _STATE.fullmatch(file.name)
    if number is not None and int(number[1]) != state["iter"]:
        raise _BrokenError(file, f"is of iteration {state['iter']}, expected {number[1]} as its name says")
    return state


def _load_safely(file: Path) -> Any:
    """Load a file of a set, all of which must be as it was written."""
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise _BrokenError(file, "is no file, expected a checkpoint")
    content = load_safely(file, f"{file.parent.name}/{file.name}")
    if zipfile.is_zipfile(file):  # torch does not look at the checksums; files of the old form have none
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise _BrokenError(file, f"is damaged ({error})") from error
        if damaged is not None:
            raise _BrokenError(file, f"is damaged (the checksum of {damaged} differs)")
    return content


def _read_identity(file: Path, belongs: object) -> Identity:
    try:
        return Identity.read(belongs)
    except BSRError as error:
        raise _BrokenError(file, str(error)) from error


def _read_recorded(file: Path, belongs: Mapping[str, Any]) -> dict[str, Fingerprint]:
    """Return the fingerprints of the set's networks by file name, checked for form."""
    files, extras = belongs.get("files"), belongs.get("extras")
    if not isinstance(files, dict) or not isinstance(extras, dict):
        raise _BrokenError(file, f"its '{KEY}' has no 'files' and 'extras', expected both")
    recorded = {}
    for name, content in files.items():
        if not isinstance(name, str) or Path(name).name != name or not isinstance(content, dict):
            raise _BrokenError(file, f"its '{KEY}' has the file {name!r}, expected names of files with fingerprints")
        recorded[name] = Fingerprint(str(content.get("digest")), content.get("size", -1))
    return recorded


def _compare(file: Path, expected: Fingerprint) -> None:
    """Check a network's file against what the state records."""
    if not file.is_file():
        raise _BrokenError(file, "is missing")
    try:
        same = file.stat().st_size == expected.size and fingerprint(file) == expected
    except OSError as error:
        raise _BrokenError(file, f"cannot be read ({error.strerror})") from error
    if not same:
        raise _BrokenError(file, "differs from what the state records")


def _check_wanted(found: Found, wanted: Iterable[str]) -> None:
    """Check that a set has all networks that a run takes from it."""
    for name in wanted:
        if name not in found.networks:
            raise _BrokenError(
                found.file,
                f"has no {_PREFIX}{name}_{found.iteration}.pth with it, expected it, or {_OPTION}{name} in "
                "path.ignore_resume_networks",
            )


def _matches(folder: Path, pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """Return what is in a folder under names that a pattern matches wholly; nothing where there is no such folder."""
    try:
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise BSRError(f"{folder}: cannot be read ({error.strerror}), expected a run's folder") from error
    return [(file, match) for file in entries if (match := pattern.fullmatch(file.name)) is not None]
