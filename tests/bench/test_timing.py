"""Timing in turn."""

from __future__ import annotations

import time

from timing import time_in_turn


def test_runs_in_turn_and_warms_up() -> None:
    calls: list[str] = []
    timings = time_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * (len(calls) // 2)
    assert len(calls) > 2 * 3
    assert list(timings) == ["a", "b"]


def test_a_run_of_several_calls_counts_as_their_mean() -> None:
    pauses = iter([0.0] * 4 + [0.008, 0.0])
    timing = time_in_turn({"sleep": lambda: time.sleep(next(pauses))}, repeats=1, calls=2)["sleep"]
    assert 4 <= timing.median < 8


def test_counts_milliseconds_and_waits_for_the_device() -> None:
    pauses = iter([0.0, 0.0, 0.002, 0.03, 0.01])
    timing = time_in_turn({"sleep": lambda: None}, repeats=3, synchronize=lambda: time.sleep(next(pauses)))["sleep"]
    assert 2 <= timing.best < 10 <= timing.median < 30
