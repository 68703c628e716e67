"""Worker processes: how those of a loader begin and end, and a pool that does something for each of many images."""

from __future__ import annotations

import functools
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from bsr_plugins.errors import BSRError

_FIRST = 1000  # of all that multiprocessing finalises
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS_BETWEEN_LOOKS = 0.2

T = TypeVar("T")

Run = Callable[[Callable[[Any, int], Any], str], list[Any]]
"""Calls a method of the worker for all numbers, given the title of the progress bar."""

_worker_here: list[Any] = []


class WorkerProcesses:
    """Ends the worker processes of a loader when they should, which torch does not.

    SIGINT and SIGTERM, which reach all processes of a run, do not end them: the process that they work for needs them
    until it has stopped. They end with it, also if it is killed; when `end` is called; and when the loader is collected
    as garbage, as torch would wait for them in vain if that is because an error's traceback is.
    """

    def __init__(self, loader: object) -> None:
        parent = None if multiprocessing.get_start_method() == "forkserver" else os.getpid()
        ending = torch.zeros((), dtype=torch.bool).share_memory_()
        self.start = functools.partial(_start_worker, ending, parent)  # the loader's `worker_init_fn`
        # When this process ends, it has to be done before multiprocessing sends workers a SIGTERM and waits for them.
        # Not by atexit: the ranks of torch.multiprocessing.spawn, for one, pass by that.
        self._end = multiprocessing.util.Finalize(loader, ending.fill_, args=(True,), exitpriority=_FIRST)

    def end(self) -> None:
        """Have them end very soon, whatever they are doing."""
        self._end()


@contextmanager
def stop_signals_held_back() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back, also in processes that begin meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(ending: Tensor, parent: int | None, _worker: int) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    end_with(os.getppid() if parent is None else parent, ending)


def end_with(parent: int, ending: Tensor | None = None) -> None:
    """End this process when the one of this id, its parent, has ended or raises the flag `ending`.

    Torch's workers look after that only when they have nothing to do.
    """

    def watch() -> None:
        while os.getppid() == parent and not ending:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(0)

    threading.Thread(target=watch, name="watches the parent", daemon=True).start()


@contextmanager
def worker_pool(worker: Any, count: int, processes: int, progress: bool) -> Iterator[Run]:
    """Give what calls a method of a worker, of which every process gets a copy, for the numbers 0 … count − 1.

    One process is this one. Each has one thread, on whose number the last digits of sums depend, and so might a pixel.

    Raises:
        BSRError: A process died.
    """
    bar = functools.partial(tqdm, total=count, unit="image", disable=not progress)
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield lambda method, title: list(bar((method(worker, number) for number in range(count)), title))
        finally:
            torch.set_num_threads(threads)
        return
    # Not forks of this process, whose torch may have threads, which forks lack.
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload([__name__, type(worker).__module__])  # imported once for all
    with ProcessPoolExecutor(processes, context, _start, (worker,)) as pool:
        try:
            yield lambda method, title: list(bar(pool.map(_call, [method] * count, range(count)), title))
        except BrokenProcessPool as error:
            raise BSRError(
                f"processes: one of {processes} ended abruptly, expected enough memory for all (or ask for fewer)"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start(worker: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process above is interrupted too, and ends these
    end_with(os.getppid())  # for the most part the fork server, which ends with the process above
    torch.set_num_threads(1)
    _worker_here[:] = [worker]


def _call(method: Callable[[Any, int], T], number: int) -> T:
    return method(_worker_here[0], number)
