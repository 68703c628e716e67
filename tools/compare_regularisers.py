"""Train a small SRResNet with different regularisers and test it under the eight degradations of Simple-Align.

`python tools/compare_regularisers.py --dataroot FOLDER` prints two Markdown tables, of the mean and the spread over
several seeds: PSNR per degradation; and how far the statistics of the features of degraded images are from those of the
clean ones. Every fifth image of the folder is held out from training and measured on. Without a folder, the photographs
that come with scikit-image serve, in their two splits. Takes less than 45 minutes on two CPU cores with the defaults.
Needs the extra [analysis].
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product

from bsr_plugins.analysis.alignment_study import VARIANTS, Figures, Study, run_variant
from bsr_plugins.analysis.study import at_least, run_side_by_side, split_photographs, study_parser
from bsr_plugins.data.decode import Pixels
from bsr_plugins.options.command_line import run_tool

Run = tuple[str, int]
Results = Mapping[Run, tuple[Figures, Figures]]


def compare() -> int:
    """Train and print."""
    parser = study_parser(__doc__, Study, least_batch_size=2)
    parser.add_argument("--align-weight", type=float, default=Study.align_weight, help="weight of the alignment")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="runs of each kind")
    args = parser.parse_args()
    if not args.align_weight > 0:
        parser.error(f"argument --align-weight: {args.align_weight}, expected a number above 0")
    study = Study(iters=args.iters, batch_size=args.batch_size, align_weight=args.align_weight, device=args.device)
    photographs = split_photographs(args.dataroot, study.gt_size)
    start = time.perf_counter()
    runs = list(product(VARIANTS, range(args.seeds)))
    _show(run_side_by_side(partial(_run, study), runs, photographs, args.processes), range(args.seeds))
    print(f"\n{study} on {args.dataroot}, {args.processes} processes: {time.perf_counter() - start:.0f} s")
    return 0


def _run(study: Study, run: Run, train: Sequence[Pixels], held_out: Sequence[Pixels]) -> tuple[Figures, Figures]:
    name, seed = run
    return run_variant(VARIANTS[name], study, seed, train, held_out)


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


def main() -> int:
    """Train and print, or say why that cannot be."""
    return run_tool(compare)


if __name__ == "__main__":
    raise SystemExit(main())
