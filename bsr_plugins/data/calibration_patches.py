"""Sample patches of the training images, on which degradations are measured before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bsr_plugins.data.dataset_options import PatchOptions, read_options
from bsr_plugins.data.image_files import ImageFile
from bsr_plugins.data.image_reading import read_image
from bsr_plugins.data.patches import random_crop, to_tensor
from bsr_plugins.errors import OptionError
from bsr_plugins.seeding import generator_at

_ENOUGH_PIXELS = 128  # larger patches cost more and tell little more


def calibration_patches(dataset_opt: Mapping[str, Any]) -> Tensor:
    """Sample the patches that a training dataset's degradation is calibrated on.

    Args:
        dataset_opt: The option block of a `PairedDegradationDataset` in phase train; it is left as it is.

    Returns:
        Patches as `draw_calibration_patches` gives them.

    Raises:
        OptionError: The block cannot be used, or is for another phase.
        BadImageError: An image cannot be read or is smaller than `gt_size`.
    """
    options = read_options(dataset_opt)
    if not isinstance(options, PatchOptions):
        raise OptionError(f"{options.where('phase')}: {options.phase!r}, expected 'train' to calibrate a degradation")
    return draw_calibration_patches(options.find_images(), options)


def draw_calibration_patches(images: Sequence[ImageFile], options: PatchOptions) -> Tensor:
    """Cut squares, each out of one of evenly spread images at a place that the seed decides.

    With `on_bad_image: skip` another image takes the place of one that cannot be read. Where there are fewer images
    than patches, images take turns with different places.

    Returns:
        (calibration_images, 3, P, P) RGB in [0, 1], P = gt_size but at most 128 pixels, a multiple of scale.
    """
    size = min(options.gt_size, _ENOUGH_PIXELS - _ENOUGH_PIXELS % options.scale)
    replacement = options.replacement(images)

    def patch(number: int, index: int) -> Tensor:
        generator = generator_at(options.seed, "calibration", number)
        return to_tensor(random_crop(read_image(images[index]), size, generator))

    patches = []
    for number in range(options.calibration_images):
        index = number * len(images) // options.calibration_images
        if replacement is None:
            patches.append(patch(number, index))
        else:
            patches.append(replacement.take(index, partial(patch, number), "calibration", number)[0])
    return torch.stack(patches)
