"""Time the degradations against the plain way, and against BasicSR's.

`python tools/bench/degradations.py` prints three Markdown tables. The first two are about the classical degradation:
the greatest differences from the plain way, and the times of both. The plain way is a grouped `conv2d` over the
reflect-padded HR images, then a gather of 4·s taps per axis. Ours is the degradation as training calls it. Both build
their kernels from the same parameters; the last column leaves that, and what else comes with a call of the degradation,
out of both. The two are timed in turn: either some calls of the one, then some of the other, or call by call, where
each finds the caches cold. Exit status 1 if they differ by more than 1e-3 grey levels; times are printed, not judged.

The third table is the second-order pipeline, drawing included, and BasicSR's: the kernels of its dataset, drawn
image by image, and its model's `feed_data`. That sharpens twice, so the two are timed without sharpening as well. Every
call draws anew, on either side, from the same ranges.
"""

from __future__ import annotations

import argparse
import random
from typing import NamedTuple

import numpy as np
import torch
from skimage import data
from torch import Tensor

from bsr_plugins.analysis.study import at_least, usable_device
from bsr_plugins.degradations import ClassicalDegradation, Params, SecondOrderDegradation, classical_params
from bsr_plugins.degradations.blur import blur_bicubic, separable_blur_bicubic
from bsr_plugins.degradations.kernels import gaussian_profiles
from bsr_plugins.degradations.resize import BORDERS, border_indices
from command_line import DEVICES, bench_parser, heading
from plain_degradations import PlainSecondOrder, gaussian_kernels_of, plain_blur_bicubic
from timing import synchronizer, time_in_turn

AGREEMENT = 1e-3  # grey levels
GREY_LEVELS = 255
KERNEL_SIZE = 21
KINDS = ("isotropic", "anisotropic")
CALLS_IN_A_ROW = 10
SEED = 0


class Case(NamedTuple):
    """What is timed: so many samples of so many views, in runs of so many calls."""

    name: str
    batch: int
    views: int
    repeats: int
    calls: int


def build_kernels(params: Params, like: Tensor) -> Tensor:
    """Build the 2-D kernels of `params`."""
    return gaussian_kernels_of(params, KERNEL_SIZE, like)


def parameters(kind: str, batch: int) -> Params:
    """Return parameters of a batch, another kernel for each sample."""
    widths = torch.linspace(0.8, 4.0, batch + 2)[1:-1]
    if kind == "isotropic":
        return classical_params(widths.tolist())
    return classical_params(widths.tolist(), (widths.flip(0) / 2).tolist(), torch.linspace(0.5, 2.5, batch).tolist())


def photographs(batch: int, views: int, height: int, width: int) -> Tensor:
    """Cut views out of a photograph, float64 in [0, 1], shape (batch, views, 3, height, width)."""
    image = torch.from_numpy(data.astronaut()).permute(2, 0, 1).double() / GREY_LEVELS
    crops = []
    for number in range(batch * views):
        rows = border_indices(torch.arange(height) + 7 * number, image.shape[1], "mirror")
        columns = border_indices(torch.arange(width) + 5 * number, image.shape[2], "mirror")
        crops.append(image[:, rows][:, :, columns])
    return torch.stack(crops).view(batch, views, 3, height, width)


def differences(size: int, scale: int, device: torch.device) -> list[tuple[str, str, str, float]]:
    """Compare with the plain way in float64, before rounding.

    Returns:
        list[tuple[str, str, str, float]]: Images, kernel, border of the bicubic, greatest difference in grey levels.
    """
    found = []
    for height, width in ((size, size), (size // 2 // scale * scale + scale, size - scale)):
        x = photographs(2, 2, height, width).to(device)
        for kind in KINDS:
            params = parameters(kind, len(x))
            for border in BORDERS:
                degradation = ClassicalDegradation(scale, KERNEL_SIZE, border, round_to_8bit=False)
                expected = plain_blur_bicubic(x, build_kernels(params, x), scale, border)
                difference = (degradation(x.float(), params) - expected).abs().max() * GREY_LEVELS
                found.append((f"{height}×{width}", kind, border, float(difference)))
    return found


def time_case(case: Case, kind: str, x: Tensor, scale: int) -> str:
    """Time one kind of kernel; return the cells of its row from the plain way's time on."""
    params = parameters(kind, len(x))
    degradation = ClassicalDegradation(scale, KERNEL_SIZE, round_to_8bit=False)
    kernels = build_kernels(params, x)
    profiles = gaussian_profiles(params["lambda1"], KERNEL_SIZE).to(x)
    separable = kind == "isotropic"
    timings = time_in_turn(
        {
            "plain": lambda: plain_blur_bicubic(x, build_kernels(params, x), scale),
            "ours": lambda: degradation(x, params),
            "plain, kernels given": lambda: plain_blur_bicubic(x, kernels, scale),
            "ours, kernels given": lambda: (
                separable_blur_bicubic(x, profiles, scale) if separable else blur_bicubic(x, kernels, scale)
            ),
        },
        case.repeats,
        case.calls,
        synchronizer(x.device.type),
    )
    plain, ours, plain_given, ours_given = timings.values()
    ratios = plain.median / ours.median, plain.best / ours.best, plain_given.median / ours_given.median
    return f"{plain.median:.2f} | {ours.median:.2f} | " + " | ".join(f"{ratio:.1f}" for ratio in ratios)


def time_second_order(x: Tensor, scale: int, usm: bool, repeats: int, calls: int) -> str:
    """Time the second-order pipeline on images (B, 3, H, W); return the cells of its row from BasicSR's time on."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 (what BasicSR draws from)
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    basicsr = PlainSecondOrder(scale, x, usm)
    degradation = SecondOrderDegradation(scale, usm=usm)
    timings = time_in_turn(
        {
            "BasicSR": lambda: basicsr(x),
            "ours": lambda: degradation(degradation.target(x), degradation.sample(len(x), generator)),
        },
        repeats,
        calls,
        synchronizer(x.device.type),
    )
    plain, ours = timings.values()
    return f"{plain.median:.1f} | {ours.median:.1f} | {plain.median / ours.median:.1f}"


def print_second_order(args: argparse.Namespace, device: torch.device) -> None:
    """Print the table of the second-order pipeline."""
    few = -(-args.repeats // 20)
    x = photographs(args.batch, 1, args.size, args.size).to(device, torch.float32)[:, 0]
    print(f"\nSecond order, {args.batch} images of 3×{args.size}×{args.size}, scale {args.scale}, {device}.\n")
    print(heading(("pipeline", "threads", "BasicSR, ms", "ours, ms", "ratio")))
    # sharpening takes BasicSR so long that what is drawn hardly matters; without it, a run averages over draws
    for name, usm, repeats, calls in (
        ("whole", True, few, 1),
        ("without sharpening", False, few, min(args.repeats, CALLS_IN_A_ROW)),
    ):
        for threads in args.threads:
            torch.set_num_threads(threads)
            print(f"| {name} | {threads} | {time_second_order(x, args.scale, usm, repeats, calls)} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = bench_parser(__doc__)
    parser.add_argument("--threads", type=at_least(1), nargs="+", default=[1, 2], help="CPU threads to time with")
    parser.add_argument("--device", choices=DEVICES, type=usable_device, default="cpu")
    parser.add_argument("--size", type=int, default=256, help="side of the HR images, a multiple of the scale")
    parser.add_argument("--scale", type=at_least(1), default=4)
    parser.add_argument("--batch", type=at_least(1), default=16, help="samples of the batches that are timed")
    parser.add_argument("--views", type=at_least(1), default=2, help="views per sample, but in the second order")
    parser.add_argument(
        "--repeats", type=at_least(1), default=40, help="timed runs of single calls on one image; of others fewer"
    )
    args = parser.parse_args()
    smallest = max(4 * KERNEL_SIZE, SecondOrderDegradation(args.scale).smallest_side())
    if args.size % args.scale or args.size < smallest:
        parser.error(f"--size {args.size}: expected a multiple of {args.scale}, at least {smallest}")
    return args


def main() -> int:
    """Print the agreement, then the times of the classical degradation and of the second order."""
    args = parse_arguments()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads[0])
    agreement = differences(args.size, args.scale, device)
    print(heading(("HR images", "kernel", "border", "greatest difference, grey levels")))
    for images, kind, border, difference in agreement:
        print(f"| {images} | {kind} | {border} | {difference:.1e} |")
    worst = max(difference for *_, difference in agreement)
    print(f"\nGreatest difference: {worst:.1e} grey levels, allowed: {AGREEMENT:.0e}.\n", flush=True)
    if not worst <= AGREEMENT:
        return 1

    print(
        f"Images of 3×{args.size}×{args.size}, kernels of {KERNEL_SIZE}×{KERNEL_SIZE}, scale {args.scale}, {device}.\n"
    )
    columns = ("kernel", "threads", "plain, ms", "ours, ms", "ratio", "of best runs", "kernels given")
    print(heading(("HR images", *columns)))
    few = -(-args.repeats // 4)
    for case in (
        Case("one, calls in a row", 1, 1, few, CALLS_IN_A_ROW),
        Case("one, call by call", 1, 1, args.repeats, 1),
        Case(f"{args.batch}×{args.views}, call by call", args.batch, args.views, few, 1),
    ):
        x = photographs(case.batch, case.views, args.size, args.size).to(device, torch.float32)
        for kind in KINDS:
            for threads in args.threads:
                torch.set_num_threads(threads)
                print(f"| {case.name} | {kind} | {threads} | {time_case(case, kind, x, args.scale)} |", flush=True)
    print_second_order(args, device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
