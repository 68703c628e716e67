"""Items of a training dataset: random patches, degraded in the worker or left to the training device."""

from __future__ import annotations

import torch
from torch import Tensor

from bsr_plugins.data.bad_images import SKIPPED, log_left_out
from bsr_plugins.data.calibration_patches import draw_calibration_patches
from bsr_plugins.data.dataset_options import PatchOptions
from bsr_plugins.data.decode import Pixels
from bsr_plugins.data.image_files import distinct_names
from bsr_plugins.data.image_reading import read_image
from bsr_plugins.data.patches import random_crop, random_flip, to_tensor
from bsr_plugins.seeding import generator_at


class TrainPatches:
    """Random patches of training images; see `PairedDegradationDataset`.

    Attributes:
        images: The images, less those left out as bad.
    """

    def __init__(self, options: PatchOptions) -> None:
        self._options = options
        self._degradation = options.build_degradation() if options.degrade_on == "worker" else None
        if self._degradation is not None:
            options.check_degradation(self._degradation)
        self.images, left_out = options.sift_images()
        log_left_out(f"dataset '{options.name}'", left_out, len(self.images) + len(left_out))
        self._replacement = options.replacement(self.images)
        self._names = distinct_names(self.images)
        if self._degradation is not None and self._degradation.needs_calibration:
            self._degradation.calibrate(draw_calibration_patches(self.images, options))

    def __len__(self) -> int:
        return len(self.images)

    def item(self, index: int, epoch: int, position: int) -> dict[str, Tensor | str]:
        """Make the item of an image; epoch and position decide its random draws.

        Raises:
            BadImageError: The image cannot be read, and no other takes its place.
        """
        if self._replacement is None:
            return self._item(index, epoch, position)
        item, skipped = self._replacement.take(index, lambda other: self._item(other, epoch, position), epoch, position)
        return item | {SKIPPED: "\n".join(skipped)}

    def _item(self, index: int, epoch: int, position: int) -> dict[str, Tensor | str]:
        image = self.images[index]
        pixels = read_image(image)
        generator = generator_at(self._options.seed, "patches", epoch, position)
        views = torch.stack([self._view(pixels, generator) for _ in range(self._options.num_views or 1)])
        if self._degradation is None:
            return {"gt": views, "gt_path": image.path}
        params = self._degradation.sample(1, generator_at(self._options.seed, "degradation", epoch, position))
        with torch.no_grad():
            gt = self._degradation.target(views[None])
            lq = self._degradation(gt, params)
        return {
            "lq": lq[0, 0].contiguous(),
            "gt": gt[0, 0].contiguous(),
            "lq_path": f"{self._names[index]}.png",
            "gt_path": image.path,
        }

    def _view(self, pixels: Pixels, generator: torch.Generator) -> Tensor:
        options = self._options
        patch = random_crop(pixels, options.gt_size, generator)
        return to_tensor(random_flip(patch, options.use_hflip, options.use_rot, generator))
