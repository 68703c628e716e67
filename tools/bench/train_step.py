"""Time a training step of ReDSR, and measure its memory, against a plain port, after checking that the two agree.

`python tools/bench/train_step.py` prints two Markdown tables: how far losses and gradients of the two are apart, and
what a step costs. A step is the degradation, encoder, degrader and generator, the losses, the backward pass and Adam,
on the same weights, the same batch and the same degradations; `plain_step.py` says what the plain
port does. Below it are the parts that differ, with their backward passes. Times are those of runs in turn: the median
and, for one more ratio, the best of them; both are given the same number of CPU threads. Memory is the peak of whole
steps above what is there before them, each measured in a fresh process. Exit status 1 if the two differ by more
than float error; times are printed, not judged.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch

from command_line import add_cost_arguments, bench_parser, heading, threads_on
from plain_step import (
    SIZES,
    WAYS,
    Part,
    agreement,
    build_networks,
    parts,
    peak_memory,
    photograph_batch,
)
from timing import synchronizer, time_in_turn

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
    timings = time_in_turn(part.ways, repeats, synchronize=synchronizer(device))
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


def main() -> int:
    """Print the agreement, then the costs."""
    parser = bench_parser(__doc__)
    add_cost_arguments(parser, f"timed steps; parts are run {PART_RUNS} times as often")
    parser.add_argument("--width", choices=SIZES, help="what a step works on; small on a CPU, else paper")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads[0])
    widths = {device: args.width or ("small" if device == "cpu" else "paper") for device in args.device}
    print(heading(("device", "loss", "plain", "difference, relative")))
    agree = [compare(width, device) for device, width in widths.items()]
    if not all(agree):
        print(f"\nAllowed: {LOSS_AGREEMENT:.0e} for losses, {GRADIENT_AGREEMENT:.0e} for gradients.")
        return 1

    torch.backends.cudnn.benchmark = True  # as BasicSR trains
    columns = ["device", "threads", "what", "size", *TIMES, *MEMORY]
    print(f"\n{heading(columns)}", flush=True)
    for device, width in widths.items():
        for threads in threads_on(device, args):
            cost(width, device, threads, args.repeats)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
