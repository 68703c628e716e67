"""The datasets of a run: built once, an item made of those that are not ours, and what is known of their images."""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basicsr.data import build_dataset
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.single_image_dataset import SingleImageDataset
from basicsr.utils import FileClient
from basicsr.utils.registry import DATASET_REGISTRY
from PIL import Image
from torch.utils.data import IterableDataset

from bsr_plugins.blocks import placed
from bsr_plugins.data.dataset_options import check_patch_size, read_options
from bsr_plugins.data.image_files import DEMO
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.data.positioned_items import PositionedDataset
from bsr_plugins.degradations import build_degradation
from bsr_plugins.errors import BadImageError, BSRError, OptionError, described, unknown_key
from bsr_plugins.models.blind_sr_model import BlindSRModel
from bsr_plugins.options.faults import Faults, dotted
from bsr_plugins.options.named_blocks import check_named, registered
from bsr_plugins.options.recorded import Reads, Recorded
from bsr_plugins.options.schema import is_own

_BYTES_A_NUMBER, _BYTES_A_PLACE = 4, 64  # of a patch, of an epoch's order
_ROOTS = ("dataroot_gt", "dataroot_lq")
_PLAIN_FOLDERS = (PairedImageDataset, SingleImageDataset)
_ORIENTATION, _SWAPPED = 0x0112, (5, 6, 7, 8)  # EXIF's orientations that swap the sides
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_LMDB_GIVEN = ("db_paths", "client_keys")  # by the datasets
_LMDB_OPEN = (
    *("map_size", "subdir", "metasync", "sync", "map_async", "mode", "create", "writemap", "meminit"),
    *("max_readers", "max_dbs", "max_spare_txns"),
)

Size = tuple[int, int]
"""Height and width."""


@dataclass
class Built:
    """A dataset that can be used.

    Attributes:
        dataset: The dataset.
        reads: What it has read of its block; None for one of ours, whose keys are declared.
        tried: Whether an item was made, so that what it has not read by then is not read at all.
        gt_sizes: Sizes of its HR images, as far as they are known.
        has_gt: Whether its items have HR images; None where that is not known.
        channels: Of its images.
    """

    dataset: Any
    reads: Reads | None = None
    tried: bool = False
    gt_sizes: list[Size] = field(default_factory=list)
    has_gt: bool | None = None
    channels: int = 3


def build_datasets(opt: Mapping[str, Any], model: Any, faults: Faults) -> dict[str, Built]:
    """Build all datasets in whose blocks nothing is wrong.

    Args:
        opt: The run's options.
        model: The class that `model_type` names, or None.
        faults: Takes what is wrong.

    Returns:
        Those that can be used, by their keys.
    """
    if not opt["datasets"]:
        faults.at(("datasets",), "{}, expected at least one dataset")
    built: dict[str, Built] = {}
    names: dict[Any, str] = {}
    for key, block in opt["datasets"].items():
        place = ("datasets", key)
        _check_key(key, opt["is_train"], faults)
        if block["phase"] != "train" and names.setdefault(block.get("name"), key) != key:
            other = names[block["name"]]
            faults.at((*place, "name"), f"{block['name']!r} is the name of datasets.{other} too, expected another")
        kind = registered(DATASET_REGISTRY, block.get("type"))
        if kind is not None and is_own(kind) and not issubclass(kind, PairedDegradationDataset):
            _check_backend(block.get("io_backend"), (*place, "io_backend"), faults)
        plain = kind in _PLAIN_FOLDERS or (kind is not None and issubclass(kind, PairedDegradationDataset))
        if plain and not _in_lmdb(block):
            _check_roots(place, block, faults)
        if kind is not None and faults.clear(place, ("scale",)):
            with faults.gathered(*place):
                built[key] = _build(dotted(place), block, kind, opt, model)
        if key in built and block["phase"] == "train":
            with faults.gathered(*place):
                check_loading(dotted(place), block, len(built[key].dataset), opt["world_size"])
        elif block["phase"] == "train" and plain:
            _check_parts(place, block, opt["world_size"], faults)
    return built


def memory_bytes() -> int:
    """Return how much memory this machine, or what this process may have of it, has."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    return min(physical, int(limit)) if limit.isdecimal() else physical


def check_loading(place: str, block: Mapping[str, Any], items: int, world_size: int) -> None:
    """Check that epochs of the training dataset have a batch of all processes, and fit in memory.

    Raises:
        OptionError: One of these is not so, or loader options do not fit each other.
    """
    if block.get("prefetch_mode") == "cuda" and block.get("pin_memory") is not True:
        raise OptionError(f"{place}.pin_memory: {block.get('pin_memory')}, expected true with prefetch_mode: cuda")
    if block.get("persistent_workers") and not block["num_worker_per_gpu"]:
        raise OptionError(f"{place}.persistent_workers: true, expected false with num_worker_per_gpu: 0")
    check_epochs(place, block, items, world_size)
    ratio = block.get("dataset_enlarge_ratio", 1)
    if items * ratio * _BYTES_A_PLACE > memory_bytes():
        raise OptionError(f"{place}.dataset_enlarge_ratio: {ratio}, which makes epochs that do not fit in memory")


def _check_memory(place: str, block: Mapping[str, Any]) -> None:
    """Check that patches fit in memory, before any are read.

    Raises:
        OptionError: They do not.
    """
    side: Any = block.get("gt_size")
    views = block.get("num_views")
    patches = {"batch_size_per_gpu": block["batch_size_per_gpu"] * (views if isinstance(views, int) else 1)}
    patches["calibration_images"] = block.get("calibration_images", 0)
    for key, number in patches.items() if isinstance(side, int) else ():
        if isinstance(number, int) and number * 3 * side**2 * _BYTES_A_NUMBER > memory_bytes():
            raise OptionError(f"{place}.{key}: {number} patches of {side}x{side} pixels do not fit in memory")


def check_epochs(place: str, block: Mapping[str, Any], items: int, world_size: int) -> None:
    """Check that an epoch of so many items has a batch of all processes.

    Raises:
        OptionError: It has not.
    """
    batch, ratio = block["batch_size_per_gpu"] * world_size, block.get("dataset_enlarge_ratio", 1)
    samples = math.ceil(items * ratio)
    if samples < batch:
        raise OptionError(
            f"{place}.batch_size_per_gpu: {batch} in all, expected at most {samples}, as an epoch has {items} images, "
            f"{ratio:g} times each; dataset_enlarge_ratio makes it longer"
        )


def _check_key(key: str, is_train: bool, faults: Faults) -> None:
    phase, underscore, _ = key.partition("_")
    phases = ("train", "val") if is_train else ("test",)
    if phase not in phases:
        faults.at(("datasets", key), f"expected a name that begins with {' or '.join(phases)} in this kind of run")
    elif phase == "train" and underscore:
        faults.at(("datasets", key), "expected the name 'train'; there is one training dataset")


def _check_backend(backend: Any, place: tuple[Any, ...], faults: Faults) -> None:
    """Check the block of one of BasicSR's storage backends."""
    if not isinstance(backend, Mapping):
        faults.at(place, f"{backend!r}, expected a block, as {{type: disk}}")
    elif backend.get("type") == "lmdb":
        names = [*inspect.signature(FileClient._backends["lmdb"]).parameters, *_LMDB_OPEN, "type"]
        names = [name for name in names if name not in (*_LMDB_GIVEN, "kwargs")]
        for key in backend:
            if key not in names:
                faults.add(str(unknown_key(f"{dotted(place)}.{key}", names)))
    else:
        check_named(backend, place, FileClient._backends, faults)


def _build(place: str, block: dict[str, Any], kind: Any, opt: Mapping[str, Any], model: Any) -> Built:
    if block["phase"] != "train" and block.get("persistent_workers"):
        raise OptionError(f"{place}.persistent_workers: true, expected false, as validation has no workers")
    if block["phase"] == "train":
        _check_memory(place, block)
    if issubclass(kind, IterableDataset):
        raise OptionError(f"{place}.type: {block['type']!r} has no indices, expected a dataset with them")
    if kind is PairedDegradationDataset:
        return _build_ours(place, block, opt, model)
    if kind is PairedImageDataset:
        _check_pair_options(place, block)
    reads, ours = Reads(), issubclass(kind, PairedDegradationDataset)
    given = Recorded({key: value for key, value in block.items() if key != "on_bad_image" or ours}, reads)
    try:
        with placed(place):
            built = Built(build_dataset(given), reads)
        if not len(built.dataset):
            raise OptionError(f"{place}: holds no image, expected at least one")
        if kind in _PLAIN_FOLDERS and not _skips(block):
            _measure(built, block, opt.get("scale", 1))
        if not _in_lmdb(block) and not _skips(block):  # an LMDB can be opened only once in a process
            PositionedDataset(_copied(built.dataset), 0, name=str(block["name"]))[0]
            built.tried = True
    except BSRError:
        raise
    except KeyError as error:
        if reads.lacking is None or reads.lacking[-1:] != error.args:
            raise _unusable(place, block, error) from error
        missing = f"{place}.{dotted(reads.lacking)}"
        raise OptionError(f"{missing}: the key is missing, {block['type']} needs it") from error
    except Exception as error:
        raise _unusable(place, block, error) from error
    return built


def _unusable(place: str, block: Mapping[str, Any], error: Exception) -> OptionError:
    return OptionError(f"{place}: {block['type']} cannot be used with this block ({described(error, placed=True)})")


def _copied(dataset: Any) -> Any:
    """Copy a dataset, so that files which it opens for a first item are not shared with worker processes."""
    try:
        return copy.deepcopy(dataset)
    except Exception:  # of whatever kind: it holds what cannot be copied
        return dataset


def _in_lmdb(block: Mapping[str, Any]) -> bool:
    backend = block.get("io_backend")
    return isinstance(backend, Mapping) and backend.get("type") == "lmdb"


def _skips(block: Mapping[str, Any]) -> bool:
    """Whether single bad images are no fault of a dataset."""
    return block["phase"] == "train" and block.get("on_bad_image") == "skip"


def _build_ours(place: str, block: Mapping[str, Any], opt: Mapping[str, Any], model: Any) -> Built:
    """Build a `PairedDegradationDataset`."""
    on_device = block["phase"] == "train" and block.get("degrade_on") == "device"
    if on_device and model is not None and not issubclass(model, BlindSRModel):
        raise OptionError(
            f"{place}.degrade_on: 'device', expected 'worker', as {opt['model_type']} takes images with LR"
        )
    with placed(place):
        options = read_options(block)
        if on_device and opt.get("degradation") is not None:
            options.check_degradation(build_degradation(opt["degradation"], opt.get("scale")))  # type: ignore[union-attr]
        dataset = build_dataset(block)
    scale = 1 if block["phase"] == "train" else options.scale
    sizes = [(image.height - image.height % scale, image.width - image.width % scale) for image in dataset.images]
    return Built(dataset, gt_sizes=sizes, has_gt=True)


def _check_pair_options(place: str, block: Mapping[str, Any]) -> None:
    training = block["phase"] == "train"
    for key in (*_ROOTS, *(("gt_size", "use_hflip", "use_rot") if training else ()), "scale"):
        if block.get(key) is None:
            raise OptionError(f"{place}.{key}: the key is missing")
    if training:
        check_patch_size(block["gt_size"], block["scale"], f"{place}.gt_size")


def _measure(built: Built, block: Mapping[str, Any], scale: int) -> None:
    """Read the sizes of the images of BasicSR's `PairedImageDataset` or `SingleImageDataset`, and check those of pairs.

    Raises:
        BadImageError: A file is no image, or an HR image does not fit its LR image or is smaller than a patch.
    """
    built.channels = 1 if block.get("color") == "y" else 3
    paths = built.dataset.paths
    built.has_gt = isinstance(built.dataset, PairedImageDataset)
    if not built.has_gt:
        sizes = header_sizes(paths) if not _in_lmdb(block) else []
        built.gt_sizes = [(height * scale, width * scale) for height, width in sizes]
        return
    files: list[list[str]] = []
    sides: list[list[Size]] = []
    for key, root in (("gt_path", block["dataroot_gt"]), ("lq_path", block["dataroot_lq"])):
        names = [entry[key] for entry in paths]
        known = dict(_sizes_in_lmdb(root)) if _in_lmdb(block) else {}
        files.append([f"{root}/{name}" if known else name for name in names])
        sides.append([known[name] for name in names] if known else header_sizes(names))
    gt_size = block["gt_size"] if block["phase"] == "train" else None
    for file, (height, width), lq_file, (low, narrow) in zip(files[0], sides[0], files[1], sides[1], strict=True):
        if (height, width) != (low * scale, narrow * scale):
            raise BadImageError(
                f"{file}: is {width}x{height}, expected {narrow * scale}x{low * scale}, {scale} times the "
                f"{narrow}x{low} of {lq_file}"
            )
        if gt_size is not None and min(height, width) < gt_size:
            raise BadImageError(f"{file}: is {width}x{height}, expected both sides at least gt_size {gt_size}")
    built.gt_sizes = sides[0]


def _sizes_in_lmdb(folder: str) -> Iterator[tuple[str, Size]]:
    """Read the sizes that BasicSR's tool writes down with an LMDB: `KEY.png (H,W,C) LEVEL`."""
    for line in (Path(folder) / "meta_info.txt").read_text().splitlines():
        name, shape, _ = line.rsplit(" ", 2)
        height, width, *_ = map(int, shape.strip("()").split(","))
        yield name.partition(".")[0], (height, width)


def header_sizes(files: list[str]) -> list[Size]:
    """Read the sizes of image files, as BasicSR shows them, from their headers.

    Raises:
        BadImageError: A file is none, or no image.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_header_size, files))


def _header_size(file: str) -> Size:
    try:
        with Image.open(file) as image:
            width, height = image.size
            # Asked for what a PNG's header has not, Pillow decodes the whole image.
            turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(_ORIENTATION) in _SWAPPED
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise BadImageError(f"{file}: cannot be read ({described(error)}), expected an image file") from error
    return (width, height) if turned else (height, width)


def _check_roots(place: tuple[str, str], block: Mapping[str, Any], faults: Faults) -> None:
    """Check that the folders of a dataset are there."""
    for key in _ROOTS:
        roots = block.get(key) if faults.clear((*place, key)) else None
        for root in roots if isinstance(roots, list) else [roots]:
            if isinstance(root, str) and root != DEMO and not Path(root).is_dir():
                faults.at((*place, key), f"{root!r} is missing or no folder, expected a folder of images")


def _check_parts(place: tuple[str, str], block: Mapping[str, Any], world_size: int, faults: Faults) -> None:
    """Check each part of a training dataset's block by itself, as it cannot be built with a fault in it."""
    size, scale = block.get("gt_size"), block.get("scale")
    if isinstance(size, int) and isinstance(scale, int) and faults.clear((*place, "gt_size"), ("scale",)):
        with faults.gathered(*place):
            check_patch_size(size, scale, f"{dotted(place)}.gt_size")
    loading, roots = ("batch_size_per_gpu", "dataset_enlarge_ratio", *_ROOTS), block.get("dataroot_gt")
    folders = [Path(str(root)) for root in (roots if isinstance(roots, list) else [roots])]
    if not _in_lmdb(block) and faults.clear(*((*place, key) for key in loading)) and all(f.is_dir() for f in folders):
        items = sum(file.is_file() for folder in folders for file in folder.rglob("*"))
        with faults.gathered(*place):
            check_epochs(dotted(place), block, items, world_size)
