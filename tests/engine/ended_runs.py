"""What runs have left, for tests that compare them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.engine.tiny_training import KEY


def last_checkpoints(root: Path, name: str = "tiny") -> dict[str, Any]:
    """Load all that a run's last iteration has left: networks with EMA and queue, optimisers, best metrics, counts."""
    folder = root / "experiments" / name
    last = max(int(file.stem) for file in (folder / "training_states").glob("*.state"))
    state = load(folder / "training_states" / f"{last}.state")
    kept = {"state": state, "extras": state[KEY]["extras"]}
    for when in (last, "latest"):
        for file in sorted((folder / "models").glob(f"net_*_{when}.pth")):
            kept[file.name] = load(file)
    assert "net_g_latest.pth" in kept
    return {key: without_identity(value) for key, value in kept.items()}


def load(file: Path) -> Any:
    """Load a checkpoint."""
    return torch.load(file, weights_only=True)


def without_identity(content: Any) -> Any:
    """Leave out of a checkpoint which run it is of, in which runs that are compared differ."""
    return {key: value for key, value in content.items() if key != KEY}


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """List the places at which two nested contents differ, in a bit or in kind."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if list(one) != list(other):
            return [f"{place}: {sorted(map(str, set(one) ^ set(other)))}"]
        return [text for key in one for text in differences(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [
            text for n, pair in enumerate(zip(one, other, strict=True)) for text in differences(*pair, f"{place}.{n}")
        ]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [place]
    return [] if type(one) is type(other) and one == other else [place]
