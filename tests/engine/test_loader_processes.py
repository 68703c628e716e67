"""The processes that load: signals do not end them, and they end with the process that began them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.loading_cases import BATCH, BATCHES, Batch, options, paired, rest_of_epoch, train_loader


def load_and_wait(opt: Batch, wait: Callable[[], Any], tell: Callable[..., Any], fail: bool = False) -> None:
    loader = train_loader(opt)
    loader.start(0)
    batches = [loader.next()]
    tell(*(child.pid for child in multiprocessing.active_children()))
    wait()
    batches += rest_of_epoch(loader)
    tell(len(batches))
    if fail:
        raise RuntimeError("no more")


def is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def end_within(seconds: float, numbers: list[int]) -> bool:
    end = time.monotonic() + seconds
    while any(map(is_alive, numbers)):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def forked(pair_folder: Path) -> Iterator[Callable[..., Any]]:
    """Load with two workers in a fork of this process; gives it, its workers' ids, and what lets it go on.

    It waits after the first batch; what lets it go on returns the number of all batches.
    """
    context, processes = multiprocessing.get_context("fork"), []

    def start(fail: bool = False, **changes: Any) -> tuple[Any, list[int], Callable[[], int]]:
        opt = options(paired, pair_folder, 2, **{"persistent_workers": True, "dataset_enlarge_ratio": 10} | changes)
        ours, theirs = context.Pipe()

        def tell(*numbers: int) -> None:
            theirs.send(numbers)

        process = context.Process(target=load_and_wait, args=(opt, theirs.recv, tell, fail))
        process.start()
        processes.append(process)
        workers = [*ours.recv()]
        assert len(workers) == 2

        def go_on() -> int:
            ours.send("go on")
            (batches,) = ours.recv()
            return int(batches)

        return process, workers, go_on

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_signals_do_not_end_workers(forked: Callable[..., Any]) -> None:
    process, workers, go_on = forked()
    for number in workers:
        os.kill(number, signal.SIGINT)
        os.kill(number, signal.SIGTERM)
    time.sleep(0.2)
    assert all(map(is_alive, workers))
    assert go_on() == 80 // BATCH
    process.join(20)
    assert process.exitcode == 0
    assert end_within(2, workers)


@pytest.mark.parametrize("changes", [{}, {"prefetch_mode": "cpu"}, {"persistent_workers": False}])
@pytest.mark.parametrize("fail", [False, True])
def test_workers_end_with_their_process(fail: bool, changes: Batch, forked: Callable[..., Any]) -> None:
    process, workers, go_on = forked(fail, **changes)
    go_on()
    process.join(20)
    assert process.exitcode == (1 if fail else 0)
    assert end_within(2, workers)


@pytest.mark.parametrize("changes", [{}, {"prefetch_mode": "cpu"}])
def test_workers_end_when_their_process_is_killed(changes: Batch, forked: Callable[..., Any]) -> None:
    process, workers, _ = forked(**changes)
    process.kill()
    process.join()
    assert end_within(3, workers)


def test_workers_begin_with_signals_held_back(pair_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM to all processes finds a worker that has just begun."""
    monkeypatch.setattr(signal, "signal", _term_first(signal.signal))
    loader = train_loader(options(paired, pair_folder, 1))
    loader.start(0)
    assert len(rest_of_epoch(loader)) == BATCHES
    loader.close()


def _term_first(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Make what has a worker receive a SIGTERM before it sets its first handler."""

    def set_handler(number: int, handler: Any) -> Any:
        if number == signal.SIGINT and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(number, handler)

    return set_handler
