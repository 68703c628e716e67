"""Photographs for the tests: those that come with scikit-image, and larger sets that only some checkouts have."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import pytest
import skimage
import torch
from torch import Tensor

SKIMAGE = Path(skimage.__file__).parent / "data"
DATASETS = Path(__file__).resolve().parents[2] / ".." / "shared" / "datasets"


@cache
def photograph(file: Path | str) -> Tensor:
    """Read a colour photograph, by its path or its name in scikit-image: RGB in [0, 1], float64, (3, H, W)."""
    bgr = cv2.imread(str(SKIMAGE / file), cv2.IMREAD_COLOR)
    assert bgr is not None, file
    return torch.from_numpy(bgr).flip(-1).permute(2, 0, 1).double() / 255


def crops(files: Sequence[Path | str], size: int, per_side: int) -> Tensor:
    """Cut squares out of the middles of each photograph's parts, float32, (files · per_side², 3, size, size)."""
    squares = []
    for file in files:
        image = photograph(file)
        tops, lefts = (
            [(2 * part + 1) * side // (2 * per_side) - size // 2 for part in range(per_side)]
            for side in image.shape[1:]
        )
        squares += [image[:, top : top + size, left : left + size] for top in tops for left in lefts]
    return torch.stack(squares).float()


def views(height: int, width: int, batch: int = 1, count: int = 1) -> Tensor:
    """Cut a batch of views out of a photograph, float64, (batch, count, 3, height, width)."""
    image = photograph("astronaut.png")
    places = [(7 * n % (image.shape[1] - height), 31 * n % (image.shape[2] - width)) for n in range(batch * count)]
    cut = torch.stack([image[:, top : top + height, left : left + width] for top, left in places])
    return cut.view(batch, count, 3, height, width)


def dataset(name: str) -> list[Path]:
    """List the images of a larger set that lies beside the checkout, or skip the test."""
    files = sorted((DATASETS / name).glob("*.png"))
    if not files:
        pytest.skip(f"the images of {name} do not lie beside this checkout")
    return files
