"""How SIGINT and SIGTERM end a run: after the iteration, with everything saved; a second one at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_HANDLED = (signal.SIGINT, signal.SIGTERM)
_STATUS = 128  # a shell's status of a process that a signal ended is this and the signal's number
_ECHO_S = 5.0
_LAUNCHED = "TORCHELASTIC_RUN_ID"  # torchrun sets it


class Stopped(SystemExit):
    """A run ended by a signal, after it was saved; the exit status is 130 for SIGINT and 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(_STATUS + number)


class _Interrupted(BaseException):
    """Breaks off an action."""


class Interruption:
    """Remembers the first SIGINT or SIGTERM ; the second one ends the process at once.

    At once means that the system ends it, as it would end one that handles no signals. Under torchrun, which passes on
    to the processes what may have reached them already, signals of the first seconds after the first are one with it.
    Outside the main thread, where Python handles no signals, nothing is remembered.

    Attributes:
        received: The signal that was received, if any.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_interruptible = False
        self._since = 0.0

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Remember signals for as long as this lasts."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in _HANDLED}
        try:
            yield
        finally:
            for number, handler in before.items():
                # None stands for a handler that was not set from Python.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def until_received(self, action: Callable[[], None]) -> None:
        """Do what a signal is to break off; nothing if one was received before."""
        with suppress(_Interrupted):
            self._is_interruptible = True
            try:
                if self.received is None:
                    action()
            finally:
                self._is_interruptible = False

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:  # only where a launcher passes signals on
            if time.monotonic() - self._since > _ECHO_S:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.received, self._since = number, time.monotonic()
        for other in _HANDLED if _LAUNCHED not in os.environ else ():
            signal.signal(other, signal.SIG_DFL)
        if self._is_interruptible:
            self._is_interruptible = False
            raise _Interrupted
