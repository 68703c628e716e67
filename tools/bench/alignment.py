"""Time a training step with alignment, and with dropout, against the step without.

`python tools/bench/alignment.py` prints a Markdown table. A step is that of `SimpleAlignModel` with an SRResNet or an
RRDB: the second-order degradation, the forward pass, the losses, the backward pass and Adam, on the same batch of HR
images; with alignment there are twice the LR images. Times are those of steps in turn: the median, and the ratio to
that without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import torch
from skimage import data

from bsr_plugins.analysis.alignment_study import VARIANTS, Study, build_model
from bsr_plugins.analysis.study import patch_batches
from command_line import add_cost_arguments, bench_parser, heading, threads_on
from timing import synchronizer, time_in_turn

RRDB = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_block": 23, "num_grow_ch": 32}
SIZES = {
    "tiny": Study(batch_size=2, num_feat=8, num_block=1),
    "small": Study(batch_size=4, num_feat=32, num_block=8),
    "srresnet": Study(batch_size=16, num_feat=64, num_block=16),
    "rrdb": Study(batch_size=2, num_feat=64, num_block=23),
}
NETWORKS = {"rrdb": RRDB}  # the others are SRResNets
DEFAULT_SIZES = ["small", "srresnet", "rrdb"]
PLAIN = "none"
SEED = 10


def step(name: str, size: str, study: Study) -> Callable[[], None]:
    """Return what does the next training step of a variant."""
    model, iterations = build_model(VARIANTS[name], study, SEED, NETWORKS.get(size)), count(1)
    images = [data.astronaut(), data.coffee()]
    (gt,) = patch_batches(images, 1, study.batch_size, study.gt_size, 1, SEED)

    def run() -> None:
        model.feed_data({"gt": gt})
        model.optimize_parameters(next(iterations))

    return run


def rows(size: str, device: str, threads: int, repeats: int) -> Iterator[str]:
    """Time all variants; yield the rows of the table."""
    torch.set_num_threads(threads)
    study = replace(SIZES[size], device=device)
    steps = {name: step(name, size, study) for name in reversed(VARIANTS)}
    timings = time_in_turn(steps, repeats, synchronize=synchronizer(device))
    kind = NETWORKS.get(size, {"type": "MSRResNet"})["type"]
    network = f"{study.batch_size}×{study.gt_size}², {kind}, {study.num_feat} features, {study.num_block} blocks"
    for name, timing in timings.items():
        ratio = timing.median / timings[PLAIN].median
        best = timing.best / timings[PLAIN].best
        yield f"| {device} | {threads} | {network} | {name} | {timing.median / 1e3:.3g} | {ratio:.2f} | {best:.2f} |"


def main() -> None:
    """Read the arguments, time, print."""
    parser = bench_parser(__doc__)
    add_cost_arguments(parser, "timed steps of each kind")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=DEFAULT_SIZES, help="of network and batch")
    args = parser.parse_args()
    columns = ("device", "threads", "HR batch and network", "regulariser", "step, s", "ratio", "of best steps")
    print(heading(columns), flush=True)
    for device in args.device:
        for size in args.size:
            for threads in threads_on(device, args):
                for row in rows(size, device, threads, args.repeats):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
