"""Training in processes that can be signalled and killed: forks of this one, which spares them the imports."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
from basicsr.utils.logger import initialized_logger

import bsr_plugins
from bsr_plugins import engine

if TYPE_CHECKING:
    from tests.conftest import Project

DEADLINE = 120.0  # seconds that no run here takes
POLL = 0.0005


def _nothing() -> None:
    pass


class _Fork:
    """A fork of this process that trains, with the interface of `Popen`."""

    def __init__(
        self, root: Path, output: Path, arguments: list[str], environment: dict[str, str], before: Any
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_train, args=(root, output, arguments, environment, before))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _train(
    root: Path, output: Path, arguments: list[str], environment: dict[str, str], before: Callable[[], None]
) -> None:
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.getLogger("basicsr").handlers.clear()
    initialized_logger.clear()
    cv2.setNumThreads(0)
    os.environ.update(environment)
    os.chdir(root)
    sys.argv = ["train", *arguments]
    before()
    sys.exit(engine.run(engine.train_pipeline, root))


class Training:
    """A training process with the output in a file, which goes on from the newest checkpoint.

    Args:
        project: Its folder.
        file: Its option file.
        workers: `num_worker_per_gpu`.
        before: What a fork does before it trains.
        environment: Variables of its environment.
        fresh: Whether it is no fork but what the train tool's command line starts.
        arguments: More of the command line.
    """

    def __init__(
        self,
        project: Project,
        file: Path,
        workers: int = 0,
        before: Callable[[], None] = _nothing,
        environment: dict[str, str] | None = None,
        fresh: bool = False,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.output = project.root / f"{file.stem}.txt"
        options = [
            "-opt",
            str(file),
            "--auto_resume",
            *arguments,
            "--set",
            f"datasets:train:num_worker_per_gpu={workers}",
        ]
        self.process: Any
        if not fresh:
            self.process = _Fork(project.root, self.output, options, environment or {}, before)
            return
        variables = os.environ | {"PYTHONPATH": str(Path(bsr_plugins.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "tools/train.py", *options],
                cwd=project.root,
                env=variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def said(self) -> str:
        """All that it has printed."""
        return self.output.read_text() if self.output.exists() else ""

    def wait_for(self, event: Callable[[], object]) -> bool:
        """Wait until something is the case; returns False if the process ends before."""
        deadline = time.monotonic() + DEADLINE
        while not event():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.said()
            time.sleep(POLL)
        return True

    def kill(self) -> bool:
        """End the process as a crash of the machine would, with its workers; tell whether it was still running."""
        if self.process.poll() is not None:
            return False
        os.killpg(self.process.pid, signal.SIGKILL)
        return bool(self.process.wait(DEADLINE) == -signal.SIGKILL)

    def finish(self) -> None:
        """Let the process come to its end."""
        assert self.process.wait(DEADLINE) == 0, self.said()


def start_ranks(
    project: Project, file: Path, count: int, before: Callable[[], None] = _nothing, workers: int = 0
) -> list[Training]:
    """Start the processes of a run on several ranks, as torchrun does; they share a file for their output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Training(
            project,
            file,
            workers,
            before,
            shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            arguments=("--launcher", "pytorch"),
        )
        for rank in range(count)
    ]
