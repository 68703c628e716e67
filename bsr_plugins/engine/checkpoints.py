"""Saving a run so that it can be resumed from whatever a kill, a crash or a full disk leaves."""

from __future__ import annotations

import copy
from collections import OrderedDict
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
from bsr_plugins.blocks import integer
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
    before anything has been touched. Files have BasicSR's names and contents, and what they belong to under the key
    `bsr_plugins`.

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
        for folder in (folders.models, folders.states) if self._writes else ():
            remove_leftovers(folder)

    def save(self, model: BaseModel, epoch: int, iteration: int, extras: Mapping[str, Any]) -> None:
        """Save a set, and then remove those that are too many. All ranks call it: a model may need them all.

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
            self._check_first(type(model).__name__, staged)
        self.remove_old(iteration, staged.labels)

    def save_latest(self, model: BaseModel, iteration: int) -> None:
        """Save the networks of the last iteration as `net_*_latest.pth`, from which nothing is resumed.

        All ranks call it. It fails as `save` does.
        """
        with self._staging(model, iteration) if self._writes else nullcontext():
            model.save(_LATEST, _LATEST)

    def set_aside_newer(self, iteration: int) -> list[Path]:
        """Give training states of later iterations names that nothing is resumed from: a run goes on before them.

        They remain until someone removes them or, with `keep`, the run is past them.

        Raises:
            BSRError: One cannot be renamed.
        """
        newer = sorted((n, file) for n, file in self._folders.saved_states().items() if n > iteration)
        aside = []
        for _, file in newer if self._writes else ():
            with reported(file, "renamed"):
                aside.append(file.rename(unused(file.with_suffix(f"{file.suffix}{SUPERSEDED}"))))
        return aside

    @contextmanager
    def _staging(self, model: BaseModel, iteration: int) -> Iterator[_StagedSet]:
        """Stage what a model gives to BasicSR's methods for writing; files get their names if all goes well."""
        belongs = {"iteration": iteration, **self._identity.model_dump()}
        staged = _StagedSet(model, self._folders, belongs, iteration)
        replaced = [name for name in _WRITERS if name not in staged.left_alone]
        vars(model).update({name: getattr(staged, name) for name in replaced})
        try:
            yield staged
            staged.commit()
        except BaseException:
            staged.discard()
            raise
        finally:
            for name in replaced:
                del vars(model)[name]

    def _check_first(self, name: str, staged: _StagedSet) -> None:
        """Check once whether what a model keeps can be read back, as only when resuming it would be found out."""
        if self._checked:
            return
        logger = get_root_logger()
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
        for n, label, file in self._folders.saved_networks():
            is_network = file.is_file() and (label in labels or label.startswith(NETWORK_LABEL))
            is_left = n <= iteration and n not in states
            if is_network and (n in old or (is_left and self._is_of_this_run(file))):
                remove(file)

    def _is_of_this_run(self, file: Path) -> bool:
        """Tell whether this run has written a network's file to which there is no state."""
        if file in self._foreign:
            return False
        with suppress(BSRError, LookupError, TypeError):  # it is no checkpoint, or one that others have written
            if load_safely(file, str(file))[KEY]["run_id"] == self._identity.run_id:
                return True
        self._foreign.add(file)
        return False


class _StagedSet:
    """The files of a set, on the disk but not yet under their names.

    Its `save_network` and `save_training_state` stand in for those of the model, except for those that the model
    defines itself, `left_alone`.
    """

    def __init__(self, model: BaseModel, folders: RunFolders, belongs: dict[str, Any], iteration: int) -> None:
        self._model, self._folders, self._belongs, self._iteration = model, folders, belongs, iteration
        self._networks: dict[str, StagedFile] = {}
        self._content: dict[str, Any] | None = None
        self.labels: set[str] = set()
        self.state: StagedFile | None = None
        self.left_alone = [
            name
            for name in _WRITERS
            if name in vars(model) or getattr(type(model), name) is not getattr(BaseModel, name)
        ]

    @property
    def files(self) -> list[StagedFile]:
        """The files, the state last."""
        return [*self._networks.values(), *([] if self.state is None else [self.state])]

    def save_network(
        self, net: nn.Module | list[nn.Module], net_label: str, current_iter: int, param_key: str | list[str] = "params"
    ) -> None:
        """Write a network at once, as a model may change it back after saving."""
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content = {key: _weights(self._model.get_bare_model(one)) for one, key in zip(nets, keys, strict=True)}
        name = f"{net_label}_{'latest' if current_iter == _LATEST else current_iter}.pth"
        self._networks[name] = StagedFile(
            self._folders.models / name, partial(torch.save, content | {KEY: self._belongs})
        )
        self.labels.add(net_label)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Keep the training state until all networks are known."""
        if current_iter != _LATEST:
            optimisers, schedulers = self._model.optimizers, self._model.schedulers
            content = {"epoch": epoch, "iter": current_iter, "optimizers": optimisers, "schedulers": schedulers}
            content |= {key: [one.state_dict() for one in content[key]] for key in ("optimizers", "schedulers")}
            self._content = _plain(content)

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
        """Give all files their names, the state last; an old state of the iteration goes first, as networks change."""
        if self.state is not None and self.state.file.is_file():
            remove(self.state.file)
            sync_folder(self._folders.states)
        for file in self.files:
            file.commit()

    def discard(self) -> None:
        """Remove the files that do not have their names yet."""
        for file in self.files:
            file.discard()


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
