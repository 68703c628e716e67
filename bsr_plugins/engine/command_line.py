"""What the command lines share: bad input ends in one line and a status, not in a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from bsr_plugins.errors import BSRError

BAD_INPUT = 2


def run(pipeline: Callable[[str], None], root_path: Path) -> int:
    """Run a pipeline on the options of the command line.

    Args:
        pipeline: `train_pipeline` or `test_pipeline`.
        root_path: Folder in which `experiments/`, `results/` and `tb_logger/` are made.

    Returns:
        The exit status: 0, or 2 for input that cannot be used, after one line that says what is wrong with it.
    """
    try:
        pipeline(str(root_path))
    except BSRError as error:
        return _refuse(_own_message(error))
    return 0


def _own_message(error: BSRError) -> str:
    """Return the error's own line; a data worker's error arrives with the worker's traceback before it."""
    last = str(error).strip().splitlines()[-1]
    return last.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")


def _refuse(message: str) -> int:
    logger = logging.getLogger("basicsr")
    if logger.handlers:
        logger.error(message)
    else:
        print(f"error: {message}", file=sys.stderr)
    return BAD_INPUT
