"""What the command lines share: bad input ends in a line for each fault and a status, not in a traceback."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bsr_plugins.engine.faults import OptionFaults
from bsr_plugins.errors import BSRError, line_of

BAD_INPUT = 2
INTERRUPTED = 130
_LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
_GRACE_S = 10.0  # so long a silent process leaves the one that speaks, before a launcher ends them all


def run(pipeline: Callable[[str], None], root_path: Path) -> int:
    """Run a pipeline on the options of the command line.

    Args:
        pipeline: `train_pipeline` or `test_pipeline`.
        root_path: Folder in which `experiments/`, `results/` and `tb_logger/` are made.

    Returns:
        The exit status: 0, or 2 for input that cannot be used, after a line for each thing that is wrong with it, or
        130 if it was interrupted before training began, or while testing. Of several processes on a machine that find
        fault with the options, the first says so.
    """
    try:
        pipeline(str(root_path))
    except OptionFaults as error:
        return _refuse(error.lines) if _speaks() else _wait()
    except BSRError as error:
        return _refuse([line_of(error)])
    except KeyboardInterrupt:  # while training, it would have ended the run as `Stopped`
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def run_tool(work: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Do the work of a tool on files; SIGTERM interrupts it as SIGINT does, so that no process is left.

    Args:
        work: Returns the exit status.
        interrupted: What to say when it is interrupted.

    Returns:
        The exit status: that of the work, 2 for input that cannot be used, 130 if it was interrupted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work()
    except (BSRError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED


def _refuse(lines: Sequence[str]) -> int:
    logger = logging.getLogger("basicsr")
    for line in lines:
        if logger.handlers:
            logger.error(line)
        else:
            print(f"error: {line}", file=sys.stderr)
    return BAD_INPUT


def _speaks() -> bool:
    return next((os.environ[name] for name in _LOCAL_RANKS if name in os.environ), "0") == "0"


def _wait() -> int:
    """Let the first process come to the same end before the launcher sees this one's and ends all."""
    time.sleep(_GRACE_S)
    return BAD_INPUT
