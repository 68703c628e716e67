"""Time a training step of ReDSR, and measure its memory, against a plain port, after checking that the two agree.

`python tools/bench_train_step.py` prints two Markdown tables: how far losses and gradients of the two are apart, and
what a step costs. A step is the degradation, encoder, degrader and generator, the losses, the backward pass and Adam,
on the same weights, the same batch and the same degradations; `bsr_plugins.analysis.plain_step` says what the plain
port does. Below it are the parts that differ, with their backward passes. Times are those of runs in turn: the median
and, for one more ratio, the best of them; both are given the same number of CPU threads. Memory is the peak of whole
steps above what is there before them, each measured in a process of its own. Exit status 1 if the two differ by more
than float error; times are printed, not judged.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch

from bsr_plugins.analysis.plain_step import (
    SIZES,
    WAYS,
    Part,
    agreement,
    build_networks,
    parts,
    peak_memory,
    photograph_batch,
)
from bsr_plugins.analysis.timing import time_in_turn

LOSS_AGREEMENT = 1e-5  # relative
GRADIENT_AGREEMENT = 1e-3  # relative
SEED = 10
MEBIBYTE = 2**20
TIMES = ("plain, s", "ours, s", "ratio", "of best runs")
MEMORY = ("plain, MiB", "ours, MiB", "ratio")
PART_RUNS = 4  # runs of a part for each run of the step


def measure_memory(width: str, device: str, threads: int) -> str:
    """Measure both in fresh processes; return the cells of their row."""
    peaks = []
    for way in WAYS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            peaks.append(fresh.submit(peak_memory, way, SIZES[width], device, threads).result())
    plain, ours = peaks
    return f"{plain / MEBIBYTE:.0f} | {ours / MEBIBYTE:.0f} | {plain / ours:.2f}"


def time_part(part: Part, repeats: int, device: str) -> str:
    """Time both; return the cells of their row."""
    timings = time_in_turn(part.ways, repeats, synchronize=torch.cuda.synchronize if device == "cuda" else None)
    plain, ours = (timings[way] for way in WAYS)
    seconds = f"{plain.median / 1e3:.3g} | {ours.median / 1e3:.3g}"
    return f"{seconds} | {plain.median / ours.median:.2f} | {plain.best / ours.best:.2f}"


def compare(width: str, device: str) -> bool:
    """Print how far the two are apart; return whether that is float error."""
    place = torch.device(device)
    networks = build_networks(SIZES[width], place)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        found = agreement({way: make(networks) for way, make in WAYS.items()}, photograph_batch(SIZES[width], place))
    for name, (value, difference) in found.losses.items():
        print(f"| {device} | {name} | {value:.6g} | {abs(difference / value):.1e} |")
    print(f"| {device} | gradients, the farthest apart: `{found.parameter}` | | {found.gradient:.1e} |", flush=True)
    agree = all(abs(difference) <= LOSS_AGREEMENT * abs(value) for value, difference in found.losses.values())
    return agree and found.gradient <= GRADIENT_AGREEMENT


def cost(width: str, device: str, threads: int, repeats: int) -> None:
    """Print the rows of a device and a number of threads."""
    memory = measure_memory(width, device, threads)
    torch.set_num_threads(threads)
    size, place = SIZES[width], torch.device(device)
    networks, batch = build_networks(size, place), photograph_batch(size, place)
    steps = {way: make(networks) for way, make in WAYS.items()}
    step = Part("step", str(size), {way: partial(taken.run, batch) for way, taken in steps.items()})
    start = f"| {device} | {threads} |"
    print(f"{start} {step.name} | {step.size} | {time_part(step, repeats, device)} | {memory} |", flush=True)
    for part in parts(steps, size, batch):
        cells = time_part(part, PART_RUNS * repeats, device)
        print(f"{start} {part.name} | {part.size} | {cells} | | | |", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", nargs="+", choices=["cpu", "cuda"], default=here, help="all that there are")
    parser.add_argument("--width", choices=SIZES, help="what a step works on; small on a CPU, else paper")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads; the first only for CUDA")
    parser.add_argument("--repeats", type=int, default=5, help=f"timed steps; parts are run {PART_RUNS} times as often")
    args = parser.parse_args()
    if min(*args.threads, args.repeats) < 1:
        parser.error("expected whole numbers above 0")
    if not set(args.device) <= set(here):
        parser.error("--device cuda: there is no CUDA device")
    return args


def main() -> int:
    """Print the agreement, then the costs."""
    args = parse_arguments()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads[0])
    widths = {device: args.width or ("small" if device == "cpu" else "paper") for device in args.device}
    print("| device | loss | plain | difference, relative |\n|---|---|---|---|")
    agree = [compare(width, device) for device, width in widths.items()]
    if not all(agree):
        print(f"\nAllowed: {LOSS_AGREEMENT:.0e} for losses, {GRADIENT_AGREEMENT:.0e} for gradients.")
        return 1

    torch.backends.cudnn.benchmark = True  # as BasicSR trains
    columns = ["device", "threads", "what", "size", *TIMES, *MEMORY]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for device, width in widths.items():
        for threads in args.threads if device == "cpu" else args.threads[:1]:
            cost(width, device, threads, args.repeats)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
