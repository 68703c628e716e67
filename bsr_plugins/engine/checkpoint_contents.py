"""What BasicSR's models save, caught on its way to the disk."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from basicsr.models.base_model import BaseModel
from torch import Tensor, nn

_LATEST = -1  # the iteration by which BasicSR's models are told to save the networks at the end of a run
_METHODS = ("save_network", "save_training_state")


class Receiver(Protocol):
    """Takes what a model saves."""

    def take_network(self, name: str, label: str, content: dict[str, Any]) -> None:
        """Take the content of a network's file.

        Args:
            name: The file's name.
            label: The network's, e.g. `net_g`.
            content: Weights by `params`, `params_ema` and the like, on the CPU; those of a network on the CPU are the
                network's own.
        """

    def take_state(self, content: dict[str, Any]) -> None:
        """Take the content of the training state's file."""


@contextmanager
def caught(model: BaseModel, receiver: Receiver) -> Iterator[None]:
    """Let a receiver have what a model saves, for as long as this lasts, instead of its being written.

    That is what the model hands to BasicSR's `save_network` and `save_training_state`; methods of its own in place of
    these stay, see `own_methods`.
    """

    def save_network(
        net: nn.Module | list[nn.Module], net_label: str, current_iter: int, param_key: str | list[str] = "params"
    ) -> None:
        iteration = "latest" if current_iter == _LATEST else str(current_iter)
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        weights = {key: _weights(model.get_bare_model(one)) for one, key in zip(nets, keys, strict=True)}
        receiver.take_network(f"{net_label}_{iteration}.pth", net_label, weights)

    def save_training_state(epoch: int, current_iter: int) -> None:
        if current_iter != _LATEST:
            content = {
                "epoch": epoch,
                "iter": current_iter,
                "optimizers": [optimizer.state_dict() for optimizer in model.optimizers],
                "schedulers": [scheduler.state_dict() for scheduler in model.schedulers],
            }
            receiver.take_state(plain(content))

    functions: dict[str, Callable[..., None]] = {
        "save_network": save_network,
        "save_training_state": save_training_state,
    }
    replaced = [name for name in functions if name not in own_methods(model)]
    vars(model).update({name: functions[name] for name in replaced})
    try:
        yield
    finally:
        for name in replaced:
            del vars(model)[name]


def own_methods(model: BaseModel) -> Sequence[str]:
    """Return which of BasicSR's methods for writing a model has replaced by its own."""
    return [
        name
        for name in _METHODS
        if name in vars(model) or getattr(type(model), name, None) is not getattr(BaseModel, name)
    ]


def plain(value: Any) -> Any:
    """Copy containers, with tensors moved to the CPU and NumPy's numbers made Python's, which load safely."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        copied = copy.copy(value)  # of its own kind: schedulers count with theirs
        for key, inner in value.items():
            copied[key] = plain(inner)
        return copied
    if type(value) in (list, tuple):
        return type(value)(plain(inner) for inner in value)
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
