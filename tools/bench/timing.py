"""Time several ways of doing the same thing: in turn, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

_WARM_UPS = 2


class Timing(NamedTuple):
    """How long a call of one way took, in milliseconds.

    Attributes:
        median: The middle of all runs.
        best: The fastest run.
    """

    median: float
    best: float


def time_in_turn(
    ways: Mapping[str, Callable[[], object]],
    repeats: int,
    calls: int = 1,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Run every way `repeats` times, A B C A B C …, after warming up.

    Args:
        ways: What to run, by name.
        repeats: Timed runs of each, at least 1.
        calls: Calls in a row that make a run, at least 1. With one call, each finds the caches full of another's data.
        synchronize: Waits until a device has done its work; needed where calls return before that.

    Returns:
        dict[str, Timing]: Wall-clock times under the names of `ways`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-_WARM_UPS, repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            for _ in range(calls):
                run()
            if synchronize is not None:
                synchronize()
            if turn >= 0:
                seconds[name].append((time.perf_counter() - start) / calls)
    return {name: Timing(statistics.median(runs) * 1e3, min(runs) * 1e3) for name, runs in seconds.items()}


def synchronizer(device: str) -> Callable[[], object] | None:
    """Return what waits for a device, `cpu` or `cuda`; None where calls return when their work is done."""
    return torch.cuda.synchronize if device == "cuda" else None
