"""Time an iteration under this package's training pipeline against one under BasicSR's.

`python tools/bench/engine.py` prints a Markdown table. Every run is a fresh process with the same options, without
validation and TensorBoard; the pipelines take turns. An iteration's time is from one batch that the model takes to the
next, so loading, the step, the checks of its numbers and logging are all in it; the medians over all iterations of all
runs are compared, those at the beginning of a run left out. The last column gives the smallest and the largest ratio of
the medians of two runs that followed each other: what the machine's unrest makes of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

import bsr_plugins  # isort: skip  (BasicSR cannot be imported before it)
import basicsr.train
from basicsr.utils.registry import MODEL_REGISTRY

from bsr_plugins import engine
from bsr_plugins.analysis.study import at_least
from bsr_plugins.options.files import resolve
from command_line import bench_parser, heading

ROOT = Path(__file__).resolve().parents[2]
PIPELINES: dict[str, Callable[[str], None]] = {
    "stock": basicsr.train.train_pipeline,
    "engine": engine.train_pipeline,
}
RUNS = ("sr", "aacl", "simple_align")
WARM_UP = 10
MOMENTS = "moments.json"


def options_of(run: str, iterations: int, batch_size: int) -> dict[str, Any]:
    """Return the options of a run, made from those of the demonstrations."""
    shipped = "train_aacl.yml" if run == "aacl" else "train_simple_align.yml"
    options: dict[str, Any] = resolve(ROOT / "options" / shipped)
    train = options["datasets"]["train"]
    options |= {"name": run, "datasets": {"train": train | {"batch_size_per_gpu": batch_size}}}
    options["train"] |= {"total_iter": iterations, "scheduler": {"type": "MultiStepLR", "milestones": [iterations]}}
    options["logger"] = {"print_freq": 10, "save_checkpoint_freq": iterations, "use_tb_logger": False}
    del options["val"]
    if run == "aacl":
        options["train"]["encoder_phase"] = {"iters": 0}
    if run == "sr":
        blur = {"type": "ClassicalDegradation", "blur_iso": {"sigma": [0.2, 4.0]}}
        options["datasets"]["train"] |= {"degrade_on": "worker", "degradation": blur}
        del options["degradation"], options["train"]["align_opt"]
    options["model_type"] = timed({"sr": "SRModel"}.get(run, options["model_type"]))
    return options


def timed(name: str) -> str:
    """Register a model like a known one that also records when it takes a batch; return its name."""
    stock: Any = MODEL_REGISTRY.get(name)
    moments: list[float] = []

    class Timed(stock):  # type: ignore[misc]
        def feed_data(self, data: Any) -> None:
            moments.append(time.perf_counter())
            super().feed_data(data)

        def save(self, epoch: int, current_iter: int) -> None:
            Path(MOMENTS).write_text(json.dumps(moments))
            super().save(epoch, current_iter)

    Timed.__name__ = registered = f"Timed{name}"
    MODEL_REGISTRY.register(Timed)
    return registered


def train(run: str, pipeline: str, iterations: int, batch_size: int) -> None:
    """Make a run in the current folder."""
    file = Path("options.yml")
    file.write_text(yaml.safe_dump(options_of(run, iterations, batch_size)))
    sys.argv = ["train", "-opt", str(file)]
    PIPELINES[pipeline](str(Path.cwd()))


def measure(run: str, pipeline: str, args: argparse.Namespace) -> list[float]:
    """Make a run in a fresh process and a temporary folder; return the milliseconds of its iterations."""
    numbers = ["--iterations", str(args.iterations), "--batch-size", str(args.batch_size)]
    with TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", run, pipeline, *numbers]
        environment = os.environ | {"PYTHONPATH": str(Path(bsr_plugins.__file__).parents[1])}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"error: {run} under {pipeline} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        moments = json.loads((Path(folder) / MOMENTS).read_text())[WARM_UP:]
    return [(after - before) * 1e3 for before, after in pairwise(moments)]


def row(run: str, args: argparse.Namespace) -> str:
    """Measure a run under both pipelines in turn; return the table's row."""
    times: dict[str, list[float]] = {name: [] for name in PIPELINES}
    ratios = []
    for turn in range(args.repeats):
        pair = {name: measure(run, name, args) for name in list(PIPELINES)[:: -1 if turn % 2 else 1]}
        ratios.append(statistics.median(pair["engine"]) / statistics.median(pair["stock"]))
        for name in PIPELINES:
            times[name] += pair[name]
    stock, ours = (statistics.median(times[name]) for name in PIPELINES)
    figures = f"{len(times['stock'])} | {stock:.4g} | {ours:.4g} | {ours / stock:.3f}"
    return f"| {run} | {figures} | {min(ratios):.3f} to {max(ratios):.3f} |"


def main() -> None:
    """Read the arguments, time, print."""
    parser = bench_parser(__doc__)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="what to train")
    parser.add_argument(
        "--iterations", type=at_least(WARM_UP + 2), default=60, help=f"of each run; the first {WARM_UP} do not count"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=8)
    parser.add_argument("--repeats", type=at_least(1), default=5, help="runs of each kind")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        run, pipeline = args.child
        train(run, pipeline, args.iterations, args.batch_size)
        return
    print(heading(("run", "iterations", "stock, ms", "engine, ms", "ratio", "of pairs")), flush=True)
    for run in args.runs:
        print(row(run, args), flush=True)


if __name__ == "__main__":
    main()
