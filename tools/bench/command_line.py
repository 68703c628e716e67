"""What the benchmarks' command lines share: arguments, their checks, and Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from bsr_plugins.analysis.study import at_least, usable_device

DEVICES = ("cpu", "cuda")


def bench_parser(doc: str | None) -> argparse.ArgumentParser:
    """Make a parser that describes a benchmark by the first line of its docstring."""
    return argparse.ArgumentParser(description=(doc or "").splitlines()[0])


def add_cost_arguments(parser: argparse.ArgumentParser, repeats: str) -> None:
    """Add `--device`, `--threads` and `--repeats`, the last with its help text."""
    here = DEVICES if torch.cuda.is_available() else DEVICES[:1]
    parser.add_argument(
        "--device", nargs="+", choices=DEVICES, type=usable_device, default=here, help="all that there are"
    )
    parser.add_argument(
        "--threads", type=at_least(1), nargs="+", default=[1, 2], help="CPU threads; the first only for CUDA"
    )
    parser.add_argument("--repeats", type=at_least(1), default=5, help=repeats)


def threads_on(device: str, args: argparse.Namespace) -> list[int]:
    """Return the numbers of threads to measure with: on CUDA they do not matter."""
    threads: list[int] = args.threads
    return threads if device == "cpu" else threads[:1]


def heading(columns: Sequence[str]) -> str:
    """Return the first two lines of a table."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
