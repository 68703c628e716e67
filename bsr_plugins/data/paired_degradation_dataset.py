"""The dataset of this package: HR images from disk or LMDB, and their LR."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset

from bsr_plugins.data.dataset_options import PatchOptions, read_options
from bsr_plugins.data.patches import TrainPatches
from bsr_plugins.data.positions import PositionedIndex
from bsr_plugins.data.whole_images import WholeImages
from bsr_plugins.registration import register


@register(DATASET_REGISTRY)
class PairedDegradationDataset(Dataset[dict[str, Tensor | str]]):
    """HR images and the LR that a degradation makes of them.

    The options are those of `PatchOptions` (phase train) and `WholeImageOptions` (phases val and test). `dataroot_gt`
    is a folder, `demo` (the colour photographs of scikit-image: seven to train on, two to validate and test on), or a
    list of these; with `io_backend: {type: lmdb}`, LMDBs made by BasicSR's tool.

    Phase `train` gives random patches, one item an image.

    - `degrade_on: worker`: the block `degradation` is applied here. An item is what BasicSR's models expect: `lq` (3,
      gt_size / scale, gt_size / scale), `gt` (3, gt_size, gt_size), `lq_path`, `gt_path`. A degradation that needs
      calibration is calibrated on patches of the images.
    - `degrade_on: device`: the model degrades. An item is `gt` (V, 3, gt_size, gt_size) and `gt_path`; the V =
      `num_views` views are patches of one image, each cropped, flipped and turned by itself.
    - `on_bad_image` decides about files that are no whole image, or too small. `error` names the file and ends the run.
      `skip` leaves out at the start what is bad by its header, and logs it; for what proves bad later see
      `Replacement`. Items then have the key `skipped`: the bad files, one a line.

    Phases `val` and `test` give whole images, the same ones every time: `lq` (3, H / scale, W / scale), `gt` (3, H, W),
    `lq_path` (no file: a name that no other item has) and `gt_path`. A `protocol` gives an item for every image and
    setting, a `degradation` block, drawn once for every image, one for every image.

    All images are contiguous float32 RGB in [0, 1], read in full precision as `decode` says.

    Random draws are a function of `seed`, the epoch and the place in it, whatever the number of workers; those of whole
    images are a function of `seed`, the image's name and the setting's. Epoch and place come with a `PositionedIndex`,
    which `bsr_plugins` makes BasicSR's sampler yield; for a plain index they are what `set_epoch` was last given and
    the index itself. No global random state is read or advanced.

    Attributes:
        images: The images, less those left out as bad.

    Raises:
        OptionError: The options cannot be used, or a folder is missing or empty.
        BadImageError: An image cannot be read, at the start or as an item, or its size will not do (with `skip`: none
            can be used).
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.opt = opt
        options = read_options(opt)
        self._items = TrainPatches(options) if isinstance(options, PatchOptions) else WholeImages(options)
        self.images = self._items.images
        # In shared memory, so that workers that are already running see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def files(self) -> list[Path]:
        """The image files; none where they are in an LMDB."""
        return [Path(image.path) for image in self.images if not image.lmdb]

    def set_epoch(self, epoch: int) -> None:
        """Tell the dataset and its running workers the epoch of the plain indices to come."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        if isinstance(self._items, WholeImages):
            return self._items.item(index)
        if isinstance(index, PositionedIndex):
            return self._items.item(index, index.epoch, index.position)
        return self._items.item(index, int(self._epoch), index)
