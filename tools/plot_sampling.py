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
from bsr_plugins.data.calibration_patches import draw_calibration_patches
from bsr_plugins.data.dataset_options import PatchOptions
from bsr_plugins.errors import BSRError
from bsr_plugins.options.declared import read_block

SAMPLERS: dict[str, str | dict[str, Any]] = {
    "uniform": "uniform",
    "power 0.5": {"type": "power", "gamma": 0.5},
    "ads": "ads",
}
PATCH = 128
SIGMA_MAX = {2: 2.0, 3: 3.0, 4: 4.0}


def main() -> None:
    """Read the arguments, measure, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibrate", default="demo", help="folder of HR photographs to calibrate on")
    parser.add_argument("--held-out", default="demo", help="folder of others to look D up on")
    parser.add_argument("--scale", type=int, choices=sorted(SIGMA_MAX), default=4)
    parser.add_argument("--draws", type=int, default=10_000, help="parameters drawn per stage")
    parser.add_argument("--patches", type=int, default=32, help="patches of 128 pixels from each folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("sampling.png"))
    args = parser.parse_args()

    if not args.out.absolute().parent.is_dir():
        parser.error(f"--out {args.out}: there is no folder {args.out.parent}")
    try:
        calibration_images = _patches(args.calibrate, "train", args)
        held_out_images = _patches(args.held_out, "val", args)
    except BSRError as error:
        parser.error(str(error))
    sigma = [0.2, SIGMA_MAX[args.scale]]
    options = {
        "scale": args.scale,
        "blur_iso": {"sigma": sigma},
        "blur_aniso": {"sigma": sigma},
        "noise": {"level": [0, 25]},
        "jpeg": {"quality": [30, 95]},
        "types": ["iso", "aniso", "noise", "jpeg"],
    }
    spreads, curves = measure_spreads(options, SAMPLERS, calibration_images, held_out_images, args.draws, args.seed)
    cells = {(spread.sampler, spread.stage): spread.coefficient_of_variation for spread in spreads}
    stages = [curve.name for curve in curves]
    print("| CV of D over 10 bins | " + " | ".join(stages) + " |")
    print("|---" * (1 + len(stages)) + "|")
    for sampler in SAMPLERS:
        print(f"| {sampler} | " + " | ".join(f"{cells[sampler, stage]:.3f}" for stage in stages) + " |")
    plot_spreads(spreads, curves, args.out)
    print(f"The plot is {args.out}.")


def _patches(root: str, split: str, args: argparse.Namespace) -> torch.Tensor:
    block = {
        "name": split,
        "phase": split,
        "scale": args.scale,
        "dataroot_gt": root,
        "degrade_on": "device",
        "gt_size": PATCH - PATCH % args.scale,
        "use_hflip": False,
        "use_rot": False,
        "calibration_images": args.patches,
        "seed": args.seed,
    }
    options = read_block(PatchOptions, block)
    return draw_calibration_patches(options.find_images(), options)


if __name__ == "__main__":
    main()
