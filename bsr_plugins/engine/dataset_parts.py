"""What can be wrong with a dataset's block whatever else is: its folders, its patches, its batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sized
from functools import partial
from typing import Any

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.single_image_dataset import SingleImageDataset
from basicsr.utils.registry import DATASET_REGISTRY

from bsr_plugins.data.dataset_options import check_patch_size
from bsr_plugins.data.image_files import DEMO, demo_photographs, files_in_folder, images_in_lmdb
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.engine.faults import Faults, dotted
from bsr_plugins.engine.image_sizes import files_of
from bsr_plugins.engine.named_blocks import registered
from bsr_plugins.engine.option_yaml import Place
from bsr_plugins.errors import OptionError

_OF_PLAIN_FOLDERS = (PairedImageDataset, SingleImageDataset)
_ROOTS = ("dataroot_gt", "dataroot_lq")


def check_parts(place: Place, dataset_opt: Mapping[str, Any], world_size: int, faults: Faults) -> None:
    """Check each part of a block by itself, as a block with a fault in it cannot be checked as a whole.

    Args:
        place: The block's place.
        dataset_opt: The block; datasets of which it is not known what is in their folders are passed over.
        world_size: How many processes there are.
        faults: Takes what is wrong besides what it has.
    """
    kind = registered(DATASET_REGISTRY, dataset_opt.get("type"))
    own = kind is not None and issubclass(kind, PairedDegradationDataset)
    if not own and kind not in _OF_PLAIN_FOLDERS:
        return
    named = f"dataset '{dataset_opt.get('name')}'" if own else dotted(place)
    images = []
    for key in _ROOTS:
        if dataset_opt.get(key) is not None and faults.free((*place, key), (*place, "io_backend")):
            with faults.noted(*place):
                images.append(_count(dataset_opt, key, f"{named}.{key}", own))
    if dataset_opt["phase"] != "train":
        return
    size, scale = dataset_opt.get("gt_size"), dataset_opt.get("scale")
    if isinstance(size, int) and isinstance(scale, int) and faults.free((*place, "gt_size"), ("scale",)):
        with faults.noted(*place):
            check_patch_size(size, scale, f"{named}.gt_size")
    keys = ("batch_size_per_gpu", "dataset_enlarge_ratio", *_ROOTS)
    if images and faults.free(*((*place, key) for key in keys)):
        with faults.noted(*place):
            check_epochs(images[0], dotted(place), dataset_opt, world_size)


def check_epochs(images: int, place: str, dataset_opt: Mapping[str, Any], world_size: int) -> None:
    """Check that an epoch has enough images for a batch of all processes.

    Args:
        images: How many images the training dataset has.
        place: Its place in the option file.
        dataset_opt: Its block.
        world_size: How many processes there are.

    Raises:
        OptionError: An epoch has not one whole batch.
    """
    batch, ratio = dataset_opt["batch_size_per_gpu"] * world_size, dataset_opt.get("dataset_enlarge_ratio", 1)
    samples = math.ceil(images * ratio)
    if samples < batch:
        raise OptionError(
            f"{place}.batch_size_per_gpu: {batch} in all, expected at most {samples}, as an epoch has {images} images, "
            f"{ratio:g} times each; dataset_enlarge_ratio makes it longer"
        )


def _count(dataset_opt: Mapping[str, Any], key: str, where: str, own: bool) -> int:
    """Count the images of a block's folders or LMDBs; no image is opened."""
    roots, backend = dataset_opt[key], dataset_opt.get("io_backend")
    find: Callable[[Any, str], Sized]
    if isinstance(backend, Mapping) and backend.get("type") == "lmdb":
        find = images_in_lmdb
    elif own:
        find = partial(_files_of_ours, dataset_opt["phase"])
    else:
        return len(files_of(roots, where))
    return sum(len(find(root, where)) for root in (roots if isinstance(roots, list) else [roots]))


def _files_of_ours(phase: str, root: str, where: str) -> Sized:
    return demo_photographs(phase, where) if root == DEMO else files_in_folder(root, where)
