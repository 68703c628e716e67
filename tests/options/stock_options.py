"""Options of BasicSR's own model and dataset, made from those of a run of this package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from tests.conftest import Options

RESNET = {"type": "MSRResNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 4}


def stock(options: Options, dataset: Options) -> Options:
    """A stock `SRModel` on a dataset."""
    options["model_type"] = "SRModel"
    options["network_g"] = {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 2}
    options["datasets"]["train"] = dataset
    for key in ("redegradation_opt", "representation_opt"):
        del options["train"][key]
    options["train"]["pixel_opt"] = {"type": "L1Loss"}
    del options["network_degrader"], options["degradation"]
    return options


def gan(options: Options) -> Options:
    """Add to options of a stock `SRModel` what makes them a GAN's."""
    options["model_type"] = "SRGANModel"
    options["network_d"] = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4}
    options["train"]["optim_d"] = options["train"]["optim_g"]  # an alias in the file
    options["train"]["gan_opt"] = {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.01}
    options["train"] |= {"net_d_iters": 1, "net_d_init_iters": 0}
    return options


def write_image(file: Path, height: int, width: int) -> None:
    """Write an image of noise, in a folder that is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
