"""Train small ReDSR networks with different losses, and show what each does to the representation.

`python tools/compare_representations.py --dataroot FOLDER` prints two Markdown tables: how well LR images are
re-degraded; and how well the representations of six kernel widths separate, and how near they come to the Gaussian of
the energy distance. Every fifth image of the folder is held out from training and measured on. Without a folder, the
photographs that come with scikit-image serve, in their two splits. Takes less than 30 minutes on two CPU cores with the
defaults. Needs the extra [analysis].
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

from bsr_plugins.analysis.representation_study import REDUCTION, VARIANTS, Figures, Study, run_variant
from bsr_plugins.analysis.study import at_least, run_side_by_side, split_photographs, study_parser
from bsr_plugins.data.decode import Pixels
from bsr_plugins.options.command_line import run_tool

LEAST_FEAT = 16
GREY_LEVELS = 255
Results = Mapping[str, tuple[Figures, Figures]]


def compare() -> int:
    """Train and print."""
    parser = study_parser(__doc__, Study)
    parser.add_argument("--num-feat", type=at_least(LEAST_FEAT), default=Study.num_feat, help="width of the encoder")
    parser.add_argument("--seed", type=at_least(0), default=Study.seed)
    args = parser.parse_args()
    study = Study(
        iters=args.iters, batch_size=args.batch_size, num_feat=args.num_feat, seed=args.seed, device=args.device
    )
    photographs = split_photographs(args.dataroot, REDUCTION * study.gt_size)
    start = time.perf_counter()
    _show(run_side_by_side(partial(_run, study), list(VARIANTS), photographs, args.processes))
    print(f"\n{study} on {args.dataroot}, {args.processes} processes: {time.perf_counter() - start:.0f} s")
    return 0


def _run(study: Study, name: str, train: Sequence[Pixels], held_out: Sequence[Pixels]) -> tuple[Figures, Figures]:
    return run_variant(VARIANTS[name], study, train, held_out)


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


def main() -> int:
    """Train and print, or say why that cannot be."""
    return run_tool(compare)


if __name__ == "__main__":
    raise SystemExit(main())
