"""Photographs for small studies: some to train on, some held out, and the same batches of patches for every run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bsr_plugins.data.decode import Pixels, to_tensor
from bsr_plugins.data.image_files import ImageFile, find_images
from bsr_plugins.data.patches import random_crop, random_flip
from bsr_plugins.errors import BadImageError, OptionError
from bsr_plugins.seeding import generator_at

DEMO = "demo"
_HELD_OUT = 5  # of so many images one is held out
_LEAST_HELD_OUT = 2


def split_photographs(dataroot: str, smallest_side: int) -> tuple[list[ImageFile], list[ImageFile]]:
    """Find the photographs to train on, and those held out: every fifth, or `demo`'s own split.

    Args:
        dataroot: A folder, or `demo` for the photographs that come with scikit-image.
        smallest_side: The shortest side that a photograph may have.

    Raises:
        BSRError: The folder is missing, or holds too few or too small photographs.
    """
    found = find_images([dataroot], "disk", "train", "--dataroot")
    held_out = find_images([dataroot], "disk", "val", "--dataroot") if dataroot == DEMO else found[::_HELD_OUT]
    train = [image for image in found if image not in held_out]
    for image in [*train, *held_out]:
        if min(image.height, image.width) < smallest_side:
            size = f"{image.width}x{image.height}"
            raise BadImageError(f"{image.path}: is {size}, expected both sides at least {smallest_side}")
    if not train or len(held_out) < _LEAST_HELD_OUT:
        expected = f"expected at least {_HELD_OUT * (_LEAST_HELD_OUT - 1) + 1}"
        raise OptionError(f"--dataroot: '{dataroot}' holds {len(found)} images, {expected}")
    return train, held_out


def patch_batches(
    images: Sequence[Pixels], iters: int, batch_size: int, size: int, num_views: int, seed: int
) -> Iterator[Tensor]:
    """Yield batches of patches (B, V, 3, size, size) in [0, 1], flipped and turned, which a seed alone decides."""
    for iteration in range(1, iters + 1):
        generator = generator_at(seed, "study", iteration)
        chosen = torch.randint(len(images), (batch_size,), generator=generator).tolist()
        yield torch.stack([patches(images[index], size, num_views, generator, turned=True) for index in chosen])


def patches(pixels: Pixels, size: int, num_views: int, generator: torch.Generator, turned: bool) -> Tensor:
    """Cut patches (V, 3, size, size) in [0, 1] out of an image, flipped and turned at random if wanted."""
    crops = [random_flip(random_crop(pixels, size, generator), turned, turned, generator) for _ in range(num_views)]
    return torch.stack([to_tensor(crop) for crop in crops])
