"""The command lines: what the pipelines take, and how bad input ends in a line for each fault, not in a traceback."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bsr_plugins.errors import BSRError, OptionError, line_of
from bsr_plugins.options.faults import OptionFaults

BAD_INPUT = 2
INTERRUPTED = 130
_LAUNCHERS = ("none", "pytorch", "slurm")
_RANK_OF = {"pytorch": ("RANK", "WORLD_SIZE"), "slurm": ("SLURM_PROCID", "SLURM_NTASKS")}
_LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
_GRACE_S = 10.0


def read_arguments() -> argparse.Namespace:
    """Read the command line of this process.

    Returns:
        `file`: the option file; `launcher`: `none`, `pytorch` or `slurm`; `overrides`: entries `KEY:KEY=VALUE`; and
        `auto_resume`, `debug`, `check`, `print_only`: whether these are asked for.

    Raises:
        SystemExit: An argument is unknown or missing.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-opt", dest="file", type=Path, required=True, metavar="FILE", help="the option file")
    parser.add_argument("--launcher", choices=_LAUNCHERS, default="none", help="what has started the processes")
    parser.add_argument("--auto_resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    parser.add_argument("--debug", action="store_true", help="log, validate and save often, under the name debug_NAME")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by some launchers; not needed")
    parser.add_argument(
        "--set",
        "--force_yml",
        dest="overrides",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY:KEY=VALUE",
        help="options in place of the file's, e.g. train:ema_decay=0.999; values are read as YAML",
    )
    parser.add_argument("--check", action="store_true", help="only check the options, and list what is wrong with them")
    parser.add_argument(
        "--print",
        dest="print_only",
        action="store_true",
        help="only write the options, with all that they inherit, as YAML that BasicSR's own scripts can read",
    )
    return parser.parse_args()


def launched(launcher: str) -> tuple[int, int]:
    """Return the rank of this process and how many processes there are, as its environment has them.

    Raises:
        OptionError: The launcher is not the one that the command line names.
    """
    if launcher == "none":
        processes = os.environ.get("WORLD_SIZE", "1")
        if processes != "1" and "RANK" in os.environ:
            raise OptionError(f"--launcher: 'none', but there are {processes} processes (torchrun), expected 'pytorch'")
        return 0, 1
    numbers = []
    for name in _RANK_OF[launcher]:
        value = os.environ.get(name, "")
        if not value.isdecimal():
            started = "torchrun" if launcher == "pytorch" else "srun"
            raise OptionError(
                f"--launcher: '{launcher}', but {name} is {value!r}, expected processes that {started} starts"
            )
        numbers.append(int(value))
    return numbers[0], numbers[1]


def run(pipeline: Callable[[str], None], root_path: Path) -> int:
    """Run a pipeline on the options of the command line.

    Returns:
        The exit status: 0, or 2 for input that cannot be used, after a line for each thing that is wrong with it, or
        130 if it was interrupted before training began, or while testing. Of several processes on a machine that find
        fault with the options, the first says so.
    """
    try:
        pipeline(str(root_path))
    except OptionFaults as error:
        local_rank = next((os.environ[name] for name in _LOCAL_RANKS if name in os.environ), "0")
        if local_rank == "0":
            return _refuse(error.lines)
        time.sleep(
            _GRACE_S
        )  # for the first process to come to its end before the launcher sees this one's, and ends all
        return BAD_INPUT
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
