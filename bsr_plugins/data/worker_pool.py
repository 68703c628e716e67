"""Do something for each of many images, in several processes, with a progress bar."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from bsr_plugins.data.loader_processes import end_with
from bsr_plugins.errors import BSRError

T = TypeVar("T")

Run = Callable[[Callable[[Any, int], Any], str, bool], list[Any]]
"""Calls a method of the worker for all numbers, given a title and whether there is to be a progress bar."""

_worker_here: list[Any] = []


@contextmanager
def worker_pool(worker: Any, count: int, processes: int) -> Iterator[Run]:
    """Give what calls a method of a worker for the numbers 0 … count − 1, each process with one thread.

    Sums depend on the number of threads in the last digits, and so might a pixel.

    Args:
        worker: What has the methods; every process gets a copy.
        count: How many numbers.
        processes: Processes to work in; 1 for this one.

    Raises:
        BSRError: A process died.
    """
    numbers = range(count)

    def with_bar(results: Iterator[T], title: str, progress: bool) -> list[T]:
        return list(tqdm(results, title, total=count, unit="image", disable=not progress))

    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield lambda method, title, progress: with_bar((method(worker, n) for n in numbers), title, progress)
        finally:
            torch.set_num_threads(threads)
        return
    with ProcessPoolExecutor(processes, _context(type(worker).__module__), _start, (worker,)) as pool:

        def run(method: Callable[[Any, int], T], title: str, progress: bool) -> list[T]:
            return with_bar(pool.map(_call, [method] * count, numbers), title, progress)

        try:
            yield run
        except BrokenProcessPool as error:
            raise BSRError(
                f"processes: one of {processes} ended abruptly, expected enough memory for all (or ask for fewer)"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _context(module: str) -> BaseContext:
    """Choose how processes begin: not as forks of this one, whose torch may have threads, which forks lack."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, module])  # imported once for all
    return context


def _start(worker: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process above is interrupted too, and ends these
    end_with(os.getppid())  # for the most part the fork server, which ends with the process above
    torch.set_num_threads(1)
    _worker_here[:] = [worker]


def _call(method: Callable[[Any, int], T], number: int) -> T:
    return method(_worker_here[0], number)
