"""The photographs of `dataroot_gt: demo`: those that scikit-image carries, so that nothing is fetched."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from bsr_plugins.errors import OptionError

DEMO = "demo"

TRAIN_PHOTOGRAPHS = (
    "astronaut.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
)
VALIDATION_PHOTOGRAPHS = ("chelsea.png", "rocket.jpg")


def demo_photographs(phase: str, where: str) -> list[Path]:
    """Return the colour photographs of a split, sorted by name.

    Args:
        phase: `train` gives the training split (7 photographs), `val` and `test` the validation split (2).
        where: The option that asks for them, for messages.

    Raises:
        OptionError: scikit-image is not installed, or its files were left out.
    """
    try:
        folder = Path(str(importlib.resources.files("skimage"))) / "data"
    except ModuleNotFoundError as error:
        raise OptionError(f"{where}: '{DEMO}' needs scikit-image, which is not installed") from error
    names = TRAIN_PHOTOGRAPHS if phase == "train" else VALIDATION_PHOTOGRAPHS
    for name in names:
        if not (folder / name).is_file():
            raise OptionError(f"{where}: '{DEMO}' needs {folder / name}, which this scikit-image lacks")
    return [folder / name for name in names]
