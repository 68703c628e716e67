"""The options that all small studies have in common."""

from __future__ import annotations

from typing import Any


def study_options(device: str, scale: int, seed: int) -> dict[str, Any]:
    """Return options of a training run in one process, without folders; the study adds its blocks.

    Args:
        device: `cpu` or `cuda`.
        scale: Factor from LR to HR.
        seed: Of all draws.
    """
    return {
        "num_gpu": 0 if device == "cpu" else 1,
        "is_train": True,
        "dist": False,
        "rank": 0,
        "world_size": 1,
        "scale": scale,
        "manual_seed": seed,
        "path": {},
    }
