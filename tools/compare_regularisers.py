"""Train a small SRResNet with different regularisers and test it under the eight degradations of Simple-Align.

`python tools/compare_regularisers.py --dataroot FOLDER` prints two Markdown tables, of the mean and the spread over
several seeds: PSNR per degradation; and how far the statistics of the features of degraded images are from those of the
clean ones. Every fifth image of the folder is held out from training and measured on. Without a folder, the photographs
that come with scikit-image serve, in their two splits. Takes less than 45 minutes on two CPU cores with the defaults.
Needs the extra [analysis].
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context

import torch
from tqdm import tqdm

from bsr_plugins.analysis.alignment_study import VARIANTS, Figures, Study, run_variant
from bsr_plugins.analysis.study_images import DEMO, split_photographs
from bsr_plugins.data.image_files import ImageFile, read_image
from bsr_plugins.errors import BSRError

Results = Mapping[tuple[str, int], tuple[Figures, Figures]]


def main() -> None:
    """Read the arguments, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataroot", default=DEMO, help="folder of HR photographs")
    parser.add_argument("--iters", type=int, default=Study.iters, help="training steps of each run")
    parser.add_argument("--batch-size", type=int, default=Study.batch_size, help="HR images per step")
    parser.add_argument("--align-weight", type=float, default=Study.align_weight, help="weight of the alignment")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=Study.device)
    parser.add_argument("--processes", type=int, default=2, help="runs side by side; each has one thread on a CPU")
    args = parser.parse_args()
    if min(args.iters, args.seeds, args.processes) < 1 or args.batch_size < 2 or not args.align_weight > 0:
        parser.error(
            "--iters, --seeds, --processes: expected at least 1, --batch-size at least 2, --align-weight above 0"
        )
    if not args.dataroot:
        parser.error("--dataroot: expected a folder")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here, expected cpu")
    study = Study(iters=args.iters, batch_size=args.batch_size, align_weight=args.align_weight, device=args.device)
    try:
        train, held_out = split_photographs(args.dataroot, study.smallest_side)
    except BSRError as error:
        parser.error(str(error))
    start = time.perf_counter()
    runs = list(product(VARIANTS, range(args.seeds)))
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        figures = tqdm(pool.map(partial(_run, study, train, held_out), runs), total=len(runs), unit="run")
        results = dict(zip(runs, figures, strict=True))
    _show(results, range(args.seeds))
    print(f"\n{study} on {args.dataroot}, {args.processes} processes: {time.perf_counter() - start:.0f} s")


def _run(
    study: Study, train: Sequence[ImageFile], held_out: Sequence[ImageFile], run: tuple[str, int]
) -> tuple[Figures, Figures]:
    torch.set_num_threads(1)
    name, seed = run
    pixels = ([read_image(image) for image in images] for images in (train, held_out))
    return run_variant(VARIANTS[name], study, seed, *pixels)


def _show(results: Results, seeds: Sequence[int]) -> None:
    """Print the tables, the plain network first."""
    names = list(reversed(VARIANTS))
    after = {name: [results[name, seed][1] for seed in seeds] for name in names}
    settings = list(after[names[0]][0].psnr)
    print(f"\n| PSNR in dB | {' | '.join(settings)} | mean |\n|{'---|' * (len(settings) + 2)}")
    for name, figures in after.items():
        columns = [[run.psnr[setting] for run in figures] for setting in settings]
        columns.append([statistics.mean(run.psnr.values()) for run in figures])
        print(f"| {name} | {' | '.join(_spread(column, '.2f') for column in columns)} |")
    print(
        "\n| clean to degraded | means | covariances | means, relative | covariances, relative |\n|---|---|---|---|---|"
    )
    before = [results[names[0], seed][0] for seed in seeds]
    for name, figures in {"(untrained)": before, **after}.items():
        columns = [list(column) for column in zip(*(run[1:] for run in figures), strict=True)]
        print(f"| {name} | {' | '.join(_spread(column, '.3g') for column in columns)} |")


def _spread(values: Sequence[float], form: str) -> str:
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


if __name__ == "__main__":
    main()
