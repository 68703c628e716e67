"""What the worker processes of a loader do about signals, and about the end of the process that they work for."""

from __future__ import annotations

import functools
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_FIRST = 1000  # of all that multiprocessing finalises
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS_BETWEEN_LOOKS = 0.2


class WorkerProcesses:
    """The worker processes of a loader, apart from what torch does about them.

    SIGINT and SIGTERM, which reach all processes of a run, do not end them: the process that they work for needs them
    until it has stopped. They end with it, also if it is killed; when `end` is called; and when the loader is collected
    as garbage, as torch would wait for them in vain if that is because an error's traceback is.

    Args:
        loader: What they load for.
    """

    def __init__(self, loader: object) -> None:
        self._parent = None if multiprocessing.get_start_method() == "forkserver" else os.getpid()
        self._ending = torch.zeros((), dtype=torch.bool).share_memory_()
        # When this process ends, it has to be done before multiprocessing sends workers a SIGTERM and waits for them.
        # Not by atexit: the ranks of torch.multiprocessing.spawn, for one, pass by that.
        self._end = multiprocessing.util.Finalize(loader, self._ending.fill_, args=(True,), exitpriority=_FIRST)

    @property
    def start(self) -> Callable[[int], None]:
        """The `worker_init_fn` of the loader."""
        return functools.partial(_start_worker, self._ending, self._parent)

    def end(self) -> None:
        """Have them end very soon, whatever they are doing."""
        self._end()


@contextmanager
def stop_signals_held_back() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back for as long as this lasts, and in processes that begin meanwhile."""
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
    """End this process when its parent has ended: torch's workers look after that only when they have nothing to do.

    Args:
        parent: The process id of the parent.
        ending: A flag that the parent raises before it asks this process to end, by a SIGTERM, and waits for that.
    """

    def watch() -> None:
        while os.getppid() == parent and not ending:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(0)

    threading.Thread(target=watch, name="watches the parent", daemon=True).start()
