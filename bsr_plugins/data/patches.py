"""Random patches of training images: those of the items, and those that a degradation is calibrated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor

from bsr_plugins.data.bad_images import SKIPPED
from bsr_plugins.data.dataset_options import PatchOptions, read_options
from bsr_plugins.data.decode import Pixels, to_tensor
from bsr_plugins.data.image_files import ImageFile, distinct_names, read_image
from bsr_plugins.errors import OptionError
from bsr_plugins.seeding import generator_at

_ENOUGH_PIXELS = 128  # larger patches to calibrate on cost more and tell little more
_LISTED = 3


class TrainPatches:
    """The items of phase train; see `PairedDegradationDataset`."""

    def __init__(self, options: PatchOptions) -> None:
        self._options = options
        self._degradation = options.build_degradation() if options.degrade_on == "worker" else None
        if self._degradation is not None:
            options.check_degradation(self._degradation)
        self.images, left_out = options.sift_images()
        _log_left_out(f"dataset '{options.name}'", left_out, len(self.images) + len(left_out))
        self._replacement = options.replacement(self.images)
        self._names = distinct_names(self.images)
        if self._degradation is not None and self._degradation.needs_calibration:
            self._degradation.calibrate(draw_calibration_patches(self.images, options))

    def __len__(self) -> int:
        return len(self.images)

    def item(self, index: int, epoch: int, position: int) -> dict[str, Tensor | str]:
        """Make the item of an image; epoch and position decide its random draws."""
        if self._replacement is None:
            return self._item(index, epoch, position)
        item, skipped = self._replacement.take(index, lambda other: self._item(other, epoch, position), epoch, position)
        return item | {SKIPPED: "\n".join(skipped)}

    def _item(self, index: int, epoch: int, position: int) -> dict[str, Tensor | str]:
        options, image = self._options, self.images[index]
        pixels = read_image(image)
        generator = generator_at(options.seed, "patches", epoch, position)
        views = patches(pixels, options.gt_size, options.num_views or 1, options.use_hflip, options.use_rot, generator)
        if self._degradation is None:
            return {"gt": views, "gt_path": image.path}
        params = self._degradation.sample(1, generator_at(options.seed, "degradation", epoch, position))
        with torch.no_grad():
            gt = self._degradation.target(views[None])
            lq = self._degradation(gt, params)
        return {
            "lq": lq[0, 0].contiguous(),
            "gt": gt[0, 0].contiguous(),
            "lq_path": f"{self._names[index]}.png",
            "gt_path": image.path,
        }


def _log_left_out(where: str, complaints: list[str], count: int) -> None:
    """Log which of `count` images a dataset leaves out from the start: a few by name, and how many."""
    if not complaints:
        return
    for complaint in complaints[:_LISTED]:
        get_root_logger().warning(f"{where}: leaves out {complaint}")
    more = f" (and {len(complaints) - _LISTED} more)" if len(complaints) > _LISTED else ""
    get_root_logger().warning(f"{where}: leaves out {len(complaints)} of {count} images{more}")


def calibration_patches(dataset_opt: Mapping[str, Any]) -> Tensor:
    """Cut what the degradation of a `PairedDegradationDataset`'s block is calibrated on: `draw_calibration_patches`.

    Raises:
        OptionError: The block cannot be used, or is not for phase train.
        BadImageError: An image cannot be read or is smaller than `gt_size`.
    """
    options = read_options(dataset_opt)
    if not isinstance(options, PatchOptions):
        raise OptionError(f"phase: {options.phase!r}, expected 'train' to calibrate a degradation")
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

    cut = []
    for number in range(options.calibration_images):
        index = number * len(images) // options.calibration_images
        if replacement is None:
            cut.append(patch(number, index))
        else:
            cut.append(replacement.take(index, partial(patch, number), "calibration", number)[0])
    return torch.stack(cut)


def patches(pixels: Pixels, size: int, count: int, hflip: bool, rot: bool, generator: torch.Generator) -> Tensor:
    """Cut patches (count, 3, size, size) in [0, 1] out of an image; see `random_crop` and `random_flip`."""
    crops = [random_flip(random_crop(pixels, size, generator), hflip, rot, generator) for _ in range(count)]
    return torch.stack([to_tensor(crop) for crop in crops])


def random_crop(pixels: Pixels, size: int, generator: torch.Generator) -> Pixels:
    """Cut a square of `size` pixels a side anywhere out of (H, W, 3) pixels with H, W ≥ size."""
    height, width, _ = pixels.shape
    top = _randint(height - size + 1, generator)
    left = _randint(width - size + 1, generator)
    return pixels[top : top + size, left : left + size]


def random_flip(pixels: Pixels, hflip: bool, rot: bool, generator: torch.Generator) -> Pixels:
    """Flip and turn (H, W, 3) pixels as BasicSR does, each way with probability 1/2.

    With `hflip`, left and right may be mirrored; with `rot`, top and bottom, and rows and columns may be swapped; with
    both, all eight positions occur. Three numbers are drawn in any case.
    """
    mirror, upset, transpose = (_randint(2, generator) == 1 for _ in range(3))
    if hflip and mirror:
        pixels = pixels[:, ::-1]
    if rot and upset:
        pixels = pixels[::-1]
    if rot and transpose:
        pixels = pixels.transpose(1, 0, 2)
    return pixels


def _randint(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))
