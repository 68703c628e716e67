"""How SIGINT and SIGTERM end a run: after the iteration, with everything saved; a second one at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_HANDLED = (signal.SIGINT, signal.SIGTERM)
_STATUS = 128  # a shell's status of a process that a signal ended is this and the signal's number
_LAUNCHED = "TORCHELASTIC_RUN_ID"  # torchrun sets it


class Stopped(SystemExit):
    """A run ended by a signal, after it was saved; the exit status is 130 for SIGINT and 143 for SIGTERM.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(_STATUS + number)


class _Interrupted(BaseException):
    """Breaks off an action."""


class Interruption:
    """Notes the first SIGINT or SIGTERM for as long as it is entered; the second one ends the process at once.

    At once means that the system ends it, as it would end one that handles no signals. Under torchrun, which passes an
    interrupt that has reached all processes on to them as a SIGTERM, only a second signal of the same kind counts.
    Outside the main thread, where Python handles no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._interruptible = False

    @property
    def received(self) -> int | None:
        """The signal that was received, if any."""
        return self._received

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals."""
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
        """Do what a noted signal is to break off; nothing if one was noted before."""
        if self._received is not None:
            return
        self._interruptible = True
        try:
            action()
        except _Interrupted:
            pass
        finally:
            self._interruptible = False

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self._received = number
        for other in _HANDLED:
            if other == number or _LAUNCHED not in os.environ:
                signal.signal(other, signal.SIG_DFL)
        if self._interruptible:
            self._interruptible = False
            raise _Interrupted
