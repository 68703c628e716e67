"""Saving a run so that it can be resumed from whatever a kill, a crash or a full disk leaves."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, nn

from bsr_plugins.atomic_file import StagedFile, remove, remove_leftovers, reported, sync_folder, unused
from bsr_plugins.engine.checkpoint_sets import KEY, NETWORK_LABEL, SUPERSEDED, Identity, RunFolders
from bsr_plugins.errors import BSRError
from bsr_plugins.safe_loading import load_safely

_LATEST = -1  # what BasicSR's models take for the epoch and the iteration of the networks at the end
_WRITERS = ("save_network", "save_training_state")


class CheckpointStore:
    """Writes the checkpoints of a run, on rank 0: sets to resume from, and the networks at the end.

    A model decides what is saved: its `save` runs, and what it gives to BasicSR's `save_network` and
    `save_training_state` is written here. All files of a set are first written under other names and forced to the
    disk, then renamed, the training state last, so that a set is there whole or not at all, and a full disk is met
    before anything has been touched. Files have BasicSR's names and contents, and an `Identity`. Every method is called
    on all ranks. It raises a BSRError where a file cannot be written, renamed or removed; earlier sets are then intact.

    Args:
        folders: Where to write; they exist. What killed writers have left there is removed.
        identity: What the checkpoints belong to.
        keep: How many sets to keep, those of the last iterations up to the one saved last; None keeps all.
    """

    def __init__(self, folders: RunFolders, identity: Identity, keep: int | None = None) -> None:
        self._folders, self._identity, self._keep = folders, identity, keep
        self._writes = get_dist_info()[0] == 0
        self._is_checked = False
        self._foreign: set[Path] = set()
        for folder in folders if self._writes else ():
            remove_leftovers(folder)

    def save(self, model: BaseModel, epoch: int, iteration: int, extras: Mapping[str, Any]) -> None:
        """Save a set, and then remove those that are too many.

        `extras` are what else the run has to remember: numbers (NumPy's too), text, tensors and containers of these.

        Raises:
            BSRError: The model keeps what could not be read back safely.
        """
        if not self._writes:
            model.save(epoch, iteration)
            return
        with self._staging(model, iteration) as staged:
            model.save(epoch, iteration)
            staged.stage_state(_plain(dict(extras)))
            if not self._is_checked:
                _check(type(model).__name__, staged)
                self._is_checked = True
        self.remove_old(iteration, staged.labels)

    def save_latest(self, model: BaseModel, iteration: int) -> None:
        """Save the networks of the last iteration as `net_*_latest.pth`, from which nothing is resumed."""
        with self._staging(model, iteration) if self._writes else nullcontext():
            model.save(_LATEST, _LATEST)

    def set_aside_newer(self, iteration: int) -> list[Path]:
        """Give training states of later iterations names that nothing is resumed from: a run goes on before them.

        They remain until someone removes them or, with `keep`, the run is past them.
        """
        aside = []
        for n, file in sorted(self._folders.saved_states().items()) if self._writes else ():
            if n > iteration:
                with reported(file, "renamed"):
                    aside.append(file.rename(unused(file.with_suffix(f"{file.suffix}{SUPERSEDED}"))))
        return aside

    def remove_old(self, iteration: int, labels: Iterable[str] = ()) -> None:
        """Remove the sets before the last ones to keep up to an iteration, and what is left of such sets.

        Each state goes before its networks. Those are the ones of the given labels, or that begin with `net_`.
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
        for n, label, file in self._folders.saved_networks():
            is_network = file.is_file() and (label in labels or label.startswith(NETWORK_LABEL))
            is_left = n <= iteration and n not in states
            if is_network and (n in old or (is_left and self._is_of_this_run(file))):
                remove(file)

    def _is_of_this_run(self, file: Path) -> bool:
        """Tell whether this run has written a network's file to which there is no state."""
        if file not in self._foreign:
            with suppress(BSRError, LookupError, TypeError):  # it is no checkpoint, or one that others have written
                if load_safely(file, str(file))[KEY]["run_id"] == self._identity.run_id:
                    return True
            self._foreign.add(file)
        return False

    @contextmanager
    def _staging(self, model: BaseModel, iteration: int) -> Iterator[_StagedSet]:
        """Stage what a model gives to BasicSR's methods for writing; files get their names if all goes well."""
        belongs = {"iteration": iteration, **self._identity.model_dump()}
        staged = _StagedSet(model, self._folders, belongs)
        replaced = [name for name in _WRITERS if name not in staged.left_alone]
        vars(model).update({name: getattr(staged, name) for name in replaced})
        try:
            yield staged
            if staged.state is not None and staged.state.file.is_file():
                remove(staged.state.file)  # an old one of the iteration, whose networks are about to change
                sync_folder(self._folders.states)
            for file in staged.files.values():
                file.commit()
        except BaseException:
            for file in staged.files.values():
                file.discard()
            raise
        finally:
            for name in replaced:
                del vars(model)[name]


class _StagedSet:
    """The files of a set, by name, on the disk but not yet under their names; the training state is the last.

    `save_network` and `save_training_state` stand in for those of the model, unless it defines them (`left_alone`).
    """

    def __init__(self, model: BaseModel, folders: RunFolders, belongs: dict[str, Any]) -> None:
        self._model, self._folders, self._belongs = model, folders, belongs
        self._content: dict[str, Any] | None = None
        self.files: dict[str, StagedFile] = {}
        self.labels: set[str] = set()
        self.state: StagedFile | None = None
        self.left_alone = [
            name
            for name in _WRITERS
            if name in vars(model) or getattr(type(model), name) is not getattr(BaseModel, name)
        ]

    def save_network(
        self, net: nn.Module | list[nn.Module], net_label: str, current_iter: int, param_key: str | list[str] = "params"
    ) -> None:
        """Write a network at once, as a model may change it back after saving."""
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content = {key: self._weights(one) for one, key in zip(nets, keys, strict=True)}
        name = f"{net_label}_{'latest' if current_iter == _LATEST else current_iter}.pth"
        self._stage(self._folders.models / name, content)
        self.labels.add(net_label)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Keep the training state until all networks are known."""
        if current_iter != _LATEST:
            content = {
                "epoch": epoch,
                "iter": current_iter,
                "optimizers": [optimiser.state_dict() for optimiser in self._model.optimizers],
                "schedulers": [scheduler.state_dict() for scheduler in self._model.schedulers],
            }
            self._content = _plain(content)

    def stage_state(self, extras: dict[str, Any]) -> None:
        """Write the training state, if the model has given one."""
        if self._content is None:
            return
        ending = f"_{self._belongs['iteration']}.pth"
        files = {name: file.fingerprint._asdict() for name, file in self.files.items() if name.endswith(ending)}
        self._belongs |= {"files": files, "extras": extras}
        self.state = self._stage(self._folders.states / f"{self._content['iter']}.state", self._content)

    def _stage(self, file: Path, content: dict[str, Any]) -> StagedFile:
        self.files[file.name] = staged = StagedFile(file, partial(torch.save, content | {KEY: self._belongs}))
        return staged

    def _weights(self, network: nn.Module) -> Any:
        """Return a network's weights as BasicSR saves them."""
        weights = _plain(self._model.get_bare_model(network).state_dict())
        for name in list(weights):
            weights[name.removeprefix("module.")] = weights.pop(name)
        return weights


def _check(name: str, staged: _StagedSet) -> None:
    """Check whether what a model keeps can be read back, as only when resuming it would be found out."""
    logger = get_root_logger()
    for method in staged.left_alone:
        logger.warning(f"{name} defines {method}: what it writes may be broken where the run is killed.")
    if staged.state is None and "save_training_state" not in staged.left_alone:
        logger.warning(f"{name} saves no training state: its runs cannot be resumed.")
    for file in staged.files.values():
        load_safely(file.temporary, f"{file.file}: what {name} keeps")


def _plain(value: Any) -> Any:
    """Copy containers, with tensors moved to the CPU and NumPy's numbers made Python's, which load safely."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        copied = copy.copy(value)  # of the same kind: schedulers count with theirs, and networks keep their versions
        for key, inner in value.items():
            copied[key] = _plain(inner)
        return copied
    if type(value) in (list, tuple):
        return type(value)(_plain(inner) for inner in value)
    return value
