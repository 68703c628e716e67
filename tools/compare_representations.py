"""Train small ReDSR networks with different losses, and show what each does to the representation.

`python tools/compare_representations.py --dataroot FOLDER` prints two Markdown tables: how well LR images are
re-degraded; and how well the representations of six kernel widths separate, and how near they come to the Gaussian of
the energy distance. Every fifth image of the folder is held out from training and measured on. Without a folder, the
photographs that come with scikit-image serve, in their two splits. Takes less than 30 minutes on two CPU cores with the
defaults. Needs the extra [analysis].
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from tqdm import tqdm

from bsr_plugins.analysis.representation_study import VARIANTS, Figures, Study, run_variant
from bsr_plugins.analysis.study_images import DEMO, split_photographs
from bsr_plugins.data.image_files import ImageFile, read_image
from bsr_plugins.errors import BSRError

LEAST_FEAT = 16
GREY_LEVELS = 255
Results = Mapping[str, tuple[Figures, Figures]]


def main() -> None:
    """Read the arguments, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataroot", default=DEMO, help="folder of HR photographs")
    parser.add_argument("--iters", type=int, default=Study.iters, help="training steps of each run")
    parser.add_argument("--batch-size", type=int, default=Study.batch_size, help="images per step")
    parser.add_argument("--num-feat", type=int, default=Study.num_feat, help="width of the encoder")
    parser.add_argument("--seed", type=int, default=Study.seed)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=Study.device)
    parser.add_argument("--processes", type=int, default=2, help="runs side by side; each has one thread on a CPU")
    args = parser.parse_args()
    if min(args.iters, args.batch_size, args.processes) < 1 or args.num_feat < LEAST_FEAT:
        parser.error(f"--iters, --batch-size, --processes: expected at least 1, --num-feat at least {LEAST_FEAT}")
    if not args.dataroot:
        parser.error("--dataroot: expected a folder")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here, expected cpu")
    study = Study(
        iters=args.iters, batch_size=args.batch_size, num_feat=args.num_feat, seed=args.seed, device=args.device
    )
    try:
        train, held_out = split_photographs(args.dataroot, study.smallest_side)
    except BSRError as error:
        parser.error(str(error))
    start = time.perf_counter()
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        figures = tqdm(pool.map(partial(_run, study, train, held_out), VARIANTS), total=len(VARIANTS), unit="run")
        results = dict(zip(VARIANTS, figures, strict=True))
    _show(results)
    print(f"\n{study} on {args.dataroot}, {args.processes} processes: {time.perf_counter() - start:.0f} s")


def _run(study: Study, train: Sequence[ImageFile], held_out: Sequence[ImageFile], name: str) -> tuple[Figures, Figures]:
    torch.set_num_threads(1)
    return run_variant(
        VARIANTS[name], study, *([read_image(image) for image in images] for images in (train, held_out))
    )


def _show(results: Results) -> None:
    untrained = next(iter(results.values()))[0]
    print("\n| losses | re-degradation L1, last steps of training | on images held out |\n|---|---|---|")
    for name, (_, after) in results.items():
        if VARIANTS[name].redegradation:
            levels = [value * GREY_LEVELS for value in (after.training_redegradation, after.redegradation)]
            print(f"| {name} | {levels[0]:.2f} grey levels | {levels[1]:.2f} grey levels |")
    print("\n| losses | silhouette | Calinski-Harabasz | mean | spread | energy distance |\n|---|---|---|---|---|---|")
    target = "0 | 1 | 0"
    print(f"| (the target of the energy distance) | | | {target} |")
    for name, figures in [("(untrained)", untrained), *((name, after) for name, (_, after) in results.items())]:
        separation = f"{figures.silhouette:.3f} | {figures.calinski_harabasz:.2f}"
        print(f"| {name} | {separation} | {figures.mean:.3f} | {figures.std:.3f} | {figures.energy_distance:.3f} |")


if __name__ == "__main__":
    main()
