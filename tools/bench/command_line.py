"""What the benchmarks' command lines share: arguments, their checks, and Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch


def bench_parser(doc: str | None) -> argparse.ArgumentParser:
    """Make a parser that describes a benchmark by the first line of its docstring."""
    return argparse.ArgumentParser(description=(doc or "").splitlines()[0])


def add_cost_arguments(parser: argparse.ArgumentParser, repeats: str) -> None:
    """Add `--device`, `--threads` and `--repeats`, the last with its help text."""
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--device", nargs="+", choices=["cpu", "cuda"], default=here, help="all that there are")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads; the first only for CUDA")
    parser.add_argument("--repeats", type=int, default=5, help=repeats)


def parse(parser: argparse.ArgumentParser, *counts: str) -> argparse.Namespace:
    """Read the command line; end with a message if one of the `counts` is below 1 or a device is missing."""
    args = parser.parse_args()
    values = [getattr(args, name) for name in counts]
    if min(number for value in values for number in (value if isinstance(value, list) else [value])) < 1:
        parser.error("expected whole numbers above 0")
    if "cuda" in args.device and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device")
    return args


def threads_on(device: str, args: argparse.Namespace) -> list[int]:
    """Return the numbers of threads to measure with: on CUDA they do not matter."""
    threads: list[int] = args.threads
    return threads if device == "cpu" else threads[:1]


def heading(columns: Sequence[str]) -> str:
    """Return the first two lines of a table."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
