"""Show how evenly the samplers spread degraded images: a table of coefficients of variation, and a plot.

`python tools/plot_sampling.py --calibrate FOLDER --held-out FOLDER --out sampling.png`; without folders, the
photographs that come with scikit-image serve, in their two splits. Needs the extra [analysis].
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from bsr_plugins.analysis.sampling import measure_spreads, plot_spreads
from bsr_plugins.analysis.study import at_least, find_photographs
from bsr_plugins.data.dataset_options import PatchOptions, read_options
from bsr_plugins.data.image_files import DEMO
from bsr_plugins.data.patches import draw_calibration_patches
from bsr_plugins.errors import OptionError
from bsr_plugins.options.command_line import run_tool

SAMPLERS: dict[str, str | dict[str, Any]] = {
    "uniform": "uniform",
    "power 0.5": {"type": "power", "gamma": 0.5},
    "ads": "ads",
}
PATCH = 128
SIGMA_MAX = {2: 2.0, 3: 3.0, 4: 4.0}


def plot() -> int:
    """Measure, print and plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calibrate", default=DEMO, help="folder of HR photographs to calibrate on")
    parser.add_argument("--held-out", default=DEMO, help="folder of others to look D up on")
    parser.add_argument("--scale", type=int, choices=sorted(SIGMA_MAX), default=4)
    parser.add_argument("--draws", type=at_least(1), default=10_000, help="parameters drawn per stage")
    parser.add_argument("--patches", type=at_least(1), default=32, help="patches of 128 pixels from each folder")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--out", type=Path, default=Path("sampling.png"))
    args = parser.parse_args()
    if not args.out.absolute().parent.is_dir():
        raise OptionError(f"--out {args.out}: there is no folder {args.out.parent}")
    sigma = [0.2, SIGMA_MAX[args.scale]]
    options = {
        "scale": args.scale,
        "blur_iso": {"sigma": sigma},
        "blur_aniso": {"sigma": sigma},
        "noise": {"level": [0, 25]},
        "jpeg": {"quality": [30, 95]},
        "types": ["iso", "aniso", "noise", "jpeg"],
    }
    calibrated_on = cut_patches(args.calibrate, "train", "--calibrate", args)
    held_out = cut_patches(args.held_out, "val", "--held-out", args)
    spreads, curves = measure_spreads(options, SAMPLERS, calibrated_on, held_out, args.draws, args.seed)
    cells = {(spread.sampler, spread.stage): spread.coefficient_of_variation for spread in spreads}
    stages = [curve.name for curve in curves]
    print(f"| CV of D over 10 bins | {' | '.join(stages)} |\n{'|---' * (1 + len(stages))}|")
    for sampler in SAMPLERS:
        print(f"| {sampler} | " + " | ".join(f"{cells[sampler, stage]:.3f}" for stage in stages) + " |")
    plot_spreads(spreads, curves, args.out)
    print(f"The plot is {args.out}.")
    return 0


def cut_patches(root: str, split: str, where: str, args: argparse.Namespace) -> torch.Tensor:
    """Cut patches as a training dataset does that calibrates a sampler."""
    size = PATCH - PATCH % args.scale
    block = {"name": split, "phase": "train", "scale": args.scale, "dataroot_gt": root, "degrade_on": "device"}
    block |= {"gt_size": size, "use_hflip": False, "use_rot": False, "calibration_images": args.patches}
    options = read_options(block | {"type": "PairedDegradationDataset", "seed": args.seed})
    assert isinstance(options, PatchOptions)
    return draw_calibration_patches(find_photographs(root, split, where, size), options)


def main() -> int:
    """Measure, print and plot, or say why that cannot be."""
    return run_tool(plot)


if __name__ == "__main__":
    raise SystemExit(main())
