"""Whether the weights that an option file names fit the networks that are to have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bsr_plugins.errors import OptionError
from bsr_plugins.safe_loading import load_safely

_PARTS = ("params_ema", "params")
_NAMED = 3  # so many differing names make a message; the rest is counted


def check_weights(key: str, network: nn.Module, path_opt: Mapping[str, Any]) -> None:
    """Check the weights of `path.pretrain_KEY` against the network.

    Args:
        key: The network's key in the option file, e.g. `network_g`.
        network: The network, built for trial.
        path_opt: The block `path`.

    Raises:
        BSRError: The file holds no weights, or those of another network.
    """
    file, letter = path_opt.get(f"pretrain_{key}"), key.removeprefix("network_")
    if file is None:
        return
    place = f"path.pretrain_{key}: {file}"
    content = load_safely(Path(file), place)
    weights = _weights(place, content, path_opt.get(f"param_key_{letter}", "params"))
    expected = network.state_dict()
    if path_opt.get(f"strict_load_{letter}", True) is False:
        return
    _refuse(place, "lacks", [name for name in expected if name not in weights])
    _refuse(place, "has the unknown", [name for name in weights if name not in expected])
    _refuse(place, "has other shapes of", [name for name in expected if expected[name].shape != weights[name].shape])


def _weights(place: str, content: object, part: str | None) -> dict[str, Tensor]:
    """Return the named part of a checkpoint; BasicSR takes `params` where there is no EMA."""
    if isinstance(content, Mapping) and part is not None:
        content = content.get(part, content.get("params") if part in _PARTS else None)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise OptionError(f"{place}: holds no weights under {part!r}, expected one of {', '.join(_PARTS)}")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _refuse(place: str, what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise OptionError(f"{place}: {what} {', '.join(names[:_NAMED])}{more}, expected the weights of this network")
