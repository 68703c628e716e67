"""Saving a run so that it can be resumed from whatever a kill, a crash or a full disk leaves."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, nn

from bsr_plugins.atomic_file import StagedFile, fingerprint, remove, remove_leftovers, sync_folder, unused
from bsr_plugins.blocks import integer
from bsr_plugins.engine.checkpoint_identity import KEY, Identity
from bsr_plugins.engine.checkpoint_sets import NETWORK_LABEL, SUPERSEDED, RunFolders
from bsr_plugins.errors import BSRError
from bsr_plugins.safe_loading import load_safely

_LATEST = -1  # what BasicSR's models take for the epoch and the iteration of the networks at the end
_WRITERS = ("save_network", "save_training_state")


class CheckpointStore:
    """Writes the checkpoints of a run, on rank 0: sets to resume from, and the networks at the end.

    Any model decides itself what is saved: its `save` runs, and what it gives to BasicSR's `save_network` and
    `save_training_state` is written here. All files of a set are first written under other names and forced to the
    disk, then renamed, the training state last, so that a set is there whole or not at all, and a full disk is met
    before anything has been touched. Files have BasicSR's names and contents, and the key `bsr_plugins`, which says
    what they belong to.

    Args:
        folders: Where to write; they exist. What killed writers have left there is removed.
        identity: What the checkpoints belong to.
        keep: How many sets to keep, those of the last iterations up to the one saved last; None keeps all.

    Raises:
        OptionError: `keep` is not a number of sets.
    """

    def __init__(self, folders: RunFolders, identity: Identity, keep: int | None = None) -> None:
        self._folders, self._identity = folders, identity
        self._keep = None if keep is None else integer(keep, "logger.save_last_n", 1)
        self._writes = get_dist_info()[0] == 0
        self._checked = False
        self._foreign: set[Path] = set()
        if self._writes:
            for folder in (folders.models, folders.states):
                remove_leftovers(folder)

    def save(self, model: BaseModel, epoch: int, iteration: int, extras: Mapping[str, Any]) -> None:
        """Save a set, and then remove those that are too many.

        All ranks call it, as a model may need them all to save itself. The set of an iteration may be saved again.

        Args:
            model: The model.
            epoch: What `epoch` in the training state is.
            iteration: The iteration that has been done last.
            extras: What else the run has to remember; numbers (NumPy's too), text, tensors and containers of these.

        Raises:
            BSRError: A file cannot be written, and earlier sets are intact; or the model keeps what could not be read
                back safely.
        """
        if not self._writes:
            model.save(epoch, iteration)
            return
        with self._staging(model, iteration) as staged:
            model.save(epoch, iteration)
            staged.stage_state(_plain(dict(extras)))
            self._check_first(model, staged)
        self.remove_old(iteration, staged.labels)

    def save_latest(self, model: BaseModel, iteration: int) -> None:
        """Save the networks as `net_*_latest.pth`, from which nothing is resumed.

        All ranks call it.

        Args:
            model: The model.
            iteration: The iteration that has been done last.

        Raises:
            BSRError: A file cannot be written.
        """
        if not self._writes:
            model.save(_LATEST, _LATEST)
            return
        with self._staging(model, iteration):
            model.save(_LATEST, _LATEST)

    def set_aside_newer(self, iteration: int) -> list[Path]:
        """Give training states of later iterations names that nothing is resumed from: a run goes on before them.

        Returns:
            Their new names, on rank 0; they remain until someone removes them or, with `keep`, the run is past them.

        Raises:
            BSRError: One cannot be renamed.
        """
        newer = sorted((n, file) for n, file in self._folders.saved_states().items() if n > iteration)
        aside = []
        for _, file in newer if self._writes else ():
            try:
                aside.append(file.rename(unused(file.with_suffix(f"{file.suffix}{SUPERSEDED}"))))
            except OSError as error:
                raise BSRError(f"{file}: cannot be renamed ({error.strerror})") from error
        return aside

    @contextmanager
    def _staging(self, model: BaseModel, iteration: int) -> Iterator[_StagedSet]:
        """Have the files that a model saves written, and give them their names if all goes well."""
        staged = _StagedSet(self._folders, self._identity, iteration)
        try:
            with _caught(model, staged):
                yield staged
            staged.commit()
        except BaseException:
            staged.discard()
            raise

    def _check_first(self, model: BaseModel, staged: _StagedSet) -> None:
        """Check once whether what a model keeps can be read back, as only when resuming it would be found out."""
        if self._checked:
            return
        name, logger = type(model).__name__, get_root_logger()
        for method in staged.left_alone:
            logger.warning(f"{name} defines {method}: what it writes may be broken where the run is killed.")
        if staged.state is None and "save_training_state" not in staged.left_alone:
            logger.warning(f"{name} saves no training state: its runs cannot be resumed.")
        for file in staged.files:
            load_safely(file.temporary, f"{file.file}: what {name} keeps")
        self._checked = True

    def remove_old(self, iteration: int, labels: Iterable[str] = ()) -> None:
        """Remove the sets before the last ones to keep, each state before its networks, and what is left of such sets.

        Args:
            iteration: That of the set saved last; what is ahead of it stays.
            labels: The labels of networks that do not begin with `net_`.

        Raises:
            BSRError: A file cannot be removed.
        """
        if self._keep is None or not self._writes:
            return
        states = {n: file for n, file in self._folders.saved_states().items() if n <= iteration and file.is_file()}
        old = sorted(states)[: -self._keep]
        for n in old:
            remove(states[n])
        if old:
            sync_folder(self._folders.states)
        for n, file in self._folders.superseded_states():
            if n <= iteration:
                remove(file)
        for n, files in self._folders.saved_networks().items():
            if n > iteration or (n in states and n not in old):
                continue
            for file in files:
                label = file.stem.rpartition("_")[0]
                ours = label in labels or label.startswith(NETWORK_LABEL)
                if ours and file.is_file() and (n in old or self._is_of_this_run(file)):
                    remove(file)

    def _is_of_this_run(self, file: Path) -> bool:
        """Tell whether this run has written a network's file to which there is no state."""
        if file in self._foreign:
            return False
        try:
            belongs = load_safely(file, str(file)).get(KEY)
        except (BSRError, AttributeError):  # no checkpoint, or no mapping
            belongs = None
        is_ours = isinstance(belongs, Mapping) and belongs.get("run_id") == self._identity.run_id
        if not is_ours:
            self._foreign.add(file)
        return is_ours


class _StagedSet:
    """The files of a set, on the disk but not yet under their names."""

    def __init__(self, folders: RunFolders, identity: Identity, iteration: int) -> None:
        self._folders, self._belongs, self._iteration = folders, identity.written(iteration), iteration
        self._networks: dict[str, StagedFile] = {}
        self._content: dict[str, Any] | None = None
        self.labels: set[str] = set()
        self.state: StagedFile | None = None
        self.left_alone: list[str] = []

    @property
    def files(self) -> list[StagedFile]:
        """The files, the state last."""
        return [*self._networks.values(), *([] if self.state is None else [self.state])]

    def take_network(self, name: str, label: str, content: dict[str, Any]) -> None:
        """Write a network at once, as a model may change it back after saving."""
        content = {**content, KEY: self._belongs}
        self._networks[name] = StagedFile(self._folders.models / name, partial(torch.save, content))
        self.labels.add(label)

    def take_state(self, content: dict[str, Any]) -> None:
        """Keep the training state until all networks are known."""
        self._content = content

    def stage_state(self, extras: dict[str, Any]) -> None:
        """Write the training state, if the model has given one."""
        if self._content is None:
            return
        belonging = [file for name, file in self._networks.items() if name.endswith(f"_{self._iteration}.pth")]
        files = {file.file.name: file.fingerprint._asdict() for file in belonging}
        content = {**self._content, KEY: {**self._belongs, "files": files, "extras": extras}}
        file = self._folders.states / f"{self._content['iter']}.state"
        self.state = StagedFile(file, partial(torch.save, content))

    def commit(self) -> None:
        """Give all files their names.

        Where a set is saved again, networks that are as they were stay, and so the set remains complete throughout. If
        one differs, the old state goes first, as it does not belong to it.
        """
        changed = [file for file in self._networks.values() if not _is_there(file)]
        if changed and self.state is not None and self.state.file.is_file():
            remove(self.state.file)
            sync_folder(self._folders.states)
        for file in changed:
            file.commit()
        if self.state is not None:
            self.state.commit()
        self.discard()

    def discard(self) -> None:
        """Remove the files that do not have their names yet."""
        for file in self.files:
            file.discard()


def _is_there(staged: StagedFile) -> bool:
    """Tell whether a file has the content already that it is to get."""
    try:
        there = staged.file.is_file() and staged.file.stat().st_size == staged.fingerprint.size
        return there and fingerprint(staged.file) == staged.fingerprint
    except OSError:  # it cannot be read, so it is replaced
        return False


@contextmanager
def _caught(model: BaseModel, staged: _StagedSet) -> Iterator[None]:
    """Stage what a model hands to BasicSR's `save_network` and `save_training_state`, instead of its being written.

    Methods that the model defines in place of these stay, and are named in `staged.left_alone`.
    """

    def save_network(
        net: nn.Module | list[nn.Module], net_label: str, current_iter: int, param_key: str | list[str] = "params"
    ) -> None:
        iteration = "latest" if current_iter == _LATEST else str(current_iter)
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        weights = {key: _weights(model.get_bare_model(one)) for one, key in zip(nets, keys, strict=True)}
        staged.take_network(f"{net_label}_{iteration}.pth", net_label, weights)

    def save_training_state(epoch: int, current_iter: int) -> None:
        if current_iter != _LATEST:
            optimizers, schedulers = (
                [one.state_dict() for one in all_] for all_ in (model.optimizers, model.schedulers)
            )
            content = {"epoch": epoch, "iter": current_iter, "optimizers": optimizers, "schedulers": schedulers}
            staged.take_state(_plain(content))

    kind = type(model)
    staged.left_alone = [
        name for name in _WRITERS if name in vars(model) or getattr(kind, name, None) is not getattr(BaseModel, name)
    ]
    functions: dict[str, Callable[..., None]] = dict(zip(_WRITERS, (save_network, save_training_state), strict=True))
    replaced = {name: function for name, function in functions.items() if name not in staged.left_alone}
    vars(model).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del vars(model)[name]


def _plain(value: Any) -> Any:
    """Copy containers, with tensors moved to the CPU and NumPy's numbers made Python's, which load safely."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        copied = copy.copy(value)  # of the same kind: schedulers count with theirs
        for key, inner in value.items():
            copied[key] = _plain(inner)
        return copied
    if type(value) in (list, tuple):
        return type(value)(_plain(inner) for inner in value)
    return value


def _weights(network: nn.Module) -> OrderedDict[str, Any]:
    """Return a network's weights on the CPU, without the prefix that a wrapper gives their names."""
    state = network.state_dict()
    weights = OrderedDict(
        (name.removeprefix("module."), value.cpu() if isinstance(value, Tensor) else value)
        for name, value in state.items()
    )
    vars(weights).update(vars(state))  # the versions of the modules
    return weights
