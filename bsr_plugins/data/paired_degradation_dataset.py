"""The dataset of this package: HR images from disk or LMDB, and their degraded LR."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset

from bsr_plugins.data.dataset_options import PatchOptions, read_options
from bsr_plugins.data.image_files import ImageFile
from bsr_plugins.data.positioned_index import PositionedIndex
from bsr_plugins.data.train_patches import TrainPatches
from bsr_plugins.data.whole_images import WholeImages
from bsr_plugins.registration import register


@register(DATASET_REGISTRY)
class PairedDegradationDataset(Dataset[dict[str, Tensor | str]]):
    """HR images and the LR that a degradation makes of them.

    Options of all phases:

    - `name`, `phase` (`train`, `val` or `test`), `scale`, and the keys that BasicSR's trainer reads.
    - `dataroot_gt`: a folder, `demo` (the colour photographs of scikit-image: seven to train on, two to
      validate and test on), or a list of these. Sub-folders are searched, hidden files ignored.
    - `io_backend`: `{type: disk}` (default) or `{type: lmdb}`; LMDB folders are made by BasicSR's own tool.
    - `seed`: the run's `manual_seed` (default 0).

    Phase `train` gives random patches of `gt_size` pixels a side (a multiple of scale), one item an image.
    `use_hflip` mirrors left and right, `use_rot` top and bottom and rows with columns, each with probability
    1/2. `on_bad_image` says what happens to files that are no whole image, or too small:

    - `error` (default) names the file and ends the run.
    - `skip` leaves out at the start what is seen to be bad by its header, and logs it. What turns out later to
      be bad is logged by the process that reads it, and another image is taken, which one being a function of
      `seed`, epoch and place. Items have the key `skipped` then: the bad files, one a line, for the most part
      none. It is still an error if all images are bad.

    - `degrade_on: worker`: the block `degradation` is applied here. An item is what BasicSR's own models
      expect: `lq` (3, gt_size / scale, gt_size / scale), `gt` (3, gt_size, gt_size), `lq_path`, `gt_path`. A
      degradation that needs calibration is calibrated on `calibration_images` (default 32) patches of the
      images.
    - `degrade_on: device`: the model degrades. An item is `gt` (V, 3, gt_size, gt_size) and `gt_path`, where
      the V = `num_views` (default 1) views are patches of one image, each cropped, flipped and turned on its
      own.

    Phases `val` and `test` give whole images, the same ones every time: `lq` (3, H / scale, W / scale), `gt`
    (3, H, W), `lq_path` (no file: a name that no other item has) and `gt_path`.

    - `protocol`: the name of a protocol; there is one item for every image and setting. `settings` lists the
      names of those settings that are wanted (default: all).
    - `degradation`: a block, drawn once for every image, in place of a protocol.
    - `mod_crop`: true (default) cuts rows off the bottom and columns off the right until both sides are
      multiples of scale; false takes no image with other sides.

    All images are contiguous float32 RGB in [0, 1]. Files of 8 or 16 bits a channel are read in full
    precision (over 255 or 65535) and those of other depths refused. Greyscale gives three equal channels,
    alpha is dropped (what lies under transparency stays as stored), and the EXIF orientation is applied.

    Random draws are a function of `seed`, the epoch and the place in it, so they do not depend on the number
    of workers; those of whole images are a function of `seed`, the image's name and the setting's. Epoch and
    place come with a `PositionedIndex`, which `bsr_plugins` makes BasicSR's sampler yield; for a plain index
    they are what `set_epoch` was last given and the index itself. No global random state is read or advanced.

    Args:
        opt: The block of options; kept as `opt` and left as it is.

    Raises:
        OptionError: The options cannot be used, or a folder is missing or empty.
        BadImageError: An image's header is unreadable, or its size will not do (with `skip`: that of all).
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.opt = opt
        options = read_options(opt)
        self._items = TrainPatches(options) if isinstance(options, PatchOptions) else WholeImages(options)
        # In shared memory, so that workers that are already running see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def images(self) -> list[ImageFile]:
        """The images, less those left out as bad."""
        return self._items.images

    @property
    def files(self) -> list[Path]:
        """The image files; none where they are in an LMDB."""
        return [Path(image.path) for image in self._items.images if not image.lmdb]

    def set_epoch(self, epoch: int) -> None:
        """Tell the dataset and its running workers the epoch of the plain indices to come."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """Make the item of an index.

        Raises:
            BadImageError: The image is unreadable or truncated (with `skip`: all are).
        """
        if isinstance(self._items, WholeImages):
            return self._items.item(index)
        if isinstance(index, PositionedIndex):
            return self._items.item(index, index.epoch, index.position)
        return self._items.item(index, int(self._epoch), index)
