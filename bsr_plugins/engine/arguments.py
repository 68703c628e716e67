"""The command line of the pipelines: BasicSR's, and what else they know."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from bsr_plugins.errors import OptionError

_LAUNCHERS = ("none", "pytorch", "slurm")
_RANK_OF = {"pytorch": ("RANK", "WORLD_SIZE"), "slurm": ("SLURM_PROCID", "SLURM_NTASKS")}


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        file: The option file.
        launcher: What has started the processes: `none`, `pytorch` or `slurm`.
        auto_resume: Whether to go on from the newest checkpoint.
        debug: Whether this is a run for debugging, which logs and validates often.
        overrides: Entries `KEY:KEY=VALUE`.
        check: Whether only to check the options.
    """

    file: Path
    launcher: str
    auto_resume: bool
    debug: bool
    overrides: tuple[str, ...]
    check: bool


def read_arguments() -> Arguments:
    """Read the command line of this process.

    Raises:
        SystemExit: It has an argument that is none, or lacks one.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-opt", required=True, metavar="FILE", help="the option file")
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
    read = parser.parse_args()
    return Arguments(Path(read.opt), read.launcher, read.auto_resume, read.debug, tuple(read.overrides), read.check)


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
