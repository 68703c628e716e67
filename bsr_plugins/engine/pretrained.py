"""Whether the weights that an option file names fit the networks that are to have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bsr_plugins.errors import OptionError
from bsr_plugins.safe_loading import load_safely

_PARTS = ("params_ema", "params")
_LEAST_SHARE = 0.1  # networks of many kinds begin and end with the same small layers
_NAMED = 3  # so many differing names make a message; the rest is counted


def check_weights(key: str, network: nn.Module, path_opt: Mapping[str, Any], averaged: bool = False) -> str | None:
    """Check the weights of `path.pretrain_KEY` against the network.

    Args:
        key: The network's key in the option file, e.g. `network_g`.
        network: The network, built for trial.
        path_opt: The block `path`.
        averaged: Whether a copy of it is to be averaged, which BasicSR loads from `params_ema` or else `params`.

    Returns:
        A warning, if loading need not be strict (`strict_load_X: false`) and only a part of the network gets weights.

    Raises:
        BSRError: The file holds no weights, or those of another network.
    """
    file, letter = path_opt.get(f"pretrain_{key}"), key.removeprefix("network_")
    if file is None:
        return None
    place = f"path.pretrain_{key}: {file}"
    content = load_safely(Path(file), place)
    part = path_opt.get(f"param_key_{letter}", "params")
    if averaged and part is None and isinstance(content, Mapping) and not any(name in content for name in _PARTS):
        raise OptionError(
            f"{place}: is a plain state dict, expected one under {' or '.join(_PARTS)}, from which the copy of "
            "train.ema_decay is loaded; or train.ema_decay: 0"
        )
    weights = _weights(place, content, part, letter)
    expected = network.state_dict()
    if path_opt.get(f"strict_load_{letter}", True) is False:
        return _check_loose(place, weights, expected)
    _refuse(place, "lacks", [name for name in expected if name not in weights])
    _refuse(place, "has the unknown", [name for name in weights if name not in expected])
    _refuse(place, "has other shapes of", [name for name in expected if expected[name].shape != weights[name].shape])
    return None


def _check_loose(place: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    fitting = [name for name in expected if name in weights and weights[name].shape == expected[name].shape]
    if len(fitting) == len(expected):
        return None
    share = sum(expected[name].numel() for name in fitting) / sum(value.numel() for value in expected.values())
    fits = f"{place}: fits {len(fitting)} of the network's {len(expected)} tensors, {share:.1%} of its weights"
    if share < _LEAST_SHARE:
        raise OptionError(f"{fits}, expected at least {_LEAST_SHARE:.0%}; below, it is another network's")
    return f"{fits}; the others begin at random"


def _weights(place: str, content: object, part: str | None, letter: str) -> dict[str, Tensor]:
    """Return the named part of a checkpoint; BasicSR takes `params` where there is no EMA."""
    if isinstance(content, Mapping) and part is not None:
        if content and all(isinstance(value, Tensor) for value in content.values()):
            raise OptionError(
                f"{place}: holds no weights under {part!r}, as it is a plain state dict, expected "
                f"path.param_key_{letter}: null with it (and train.ema_decay: 0), or these weights under 'params'"
            )
        content = content.get(part, content.get("params") if part in _PARTS else None)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise OptionError(f"{place}: holds no weights under {part!r}, expected one of {', '.join(_PARTS)}")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _refuse(place: str, what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise OptionError(f"{place}: {what} {', '.join(names[:_NAMED])}{more}, expected the weights of this network")
