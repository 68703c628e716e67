"""The datasets of a run: built once, an item made of those that are not ours, and what is known of their images."""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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

from bsr_plugins.blocks import check_arguments, is_own, named_by, placed
from bsr_plugins.data.dataset_options import check_patch_size, read_options
from bsr_plugins.data.image_files import DEMO, images_in_lmdb
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.data.positioned_items import PositionedDataset
from bsr_plugins.degradations import build_degradation
from bsr_plugins.errors import BadImageError, BSRError, OptionError, described, unknown_key
from bsr_plugins.models.blind_sr_model import BlindSRModel
from bsr_plugins.options.faults import Faults, dotted
from bsr_plugins.options.recorded import Reads, Recorded

_BYTES_A_NUMBER, _BYTES_A_PLACE = 4, 64  # of a patch, of an epoch's order
_ROOTS = ("dataroot_gt", "dataroot_lq")
_PLAIN_FOLDERS = (PairedImageDataset, SingleImageDataset)
_ORIENTATION, _SWAPPED = 0x0112, (5, 6, 7, 8)  # EXIF's orientations that swap the sides
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_LMDB_GIVEN = ("db_paths", "client_keys", "kwargs")  # by the datasets
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
    """Build all datasets in whose blocks nothing is wrong, and return them by their keys."""
    if not opt["datasets"]:
        faults.at(("datasets",), "{}, expected at least one dataset")
    built: dict[str, Built] = {}
    names: dict[Any, str] = {}
    phases = ("train", "val") if opt["is_train"] else ("test",)
    for key, block in opt["datasets"].items():
        place = ("datasets", key)
        if block["phase"] not in phases:
            faults.at(place, f"expected a name that begins with {' or '.join(phases)} in this kind of run")
        elif block["phase"] == "train" and key != "train":
            faults.at(place, "expected the name 'train'; there is one training dataset")
        elif block["phase"] != "train" and names.setdefault(block.get("name"), key) != key:
            other = names[block["name"]]
            faults.at((*place, "name"), f"{block['name']!r} is the name of datasets.{other} too, expected another")
        with faults.gathered(*place):
            made = _Block(key, opt, model, faults).build() if faults.clear((*place, "type")) else None
            built |= {} if made is None else {key: made}
    return built


def memory_bytes() -> int:
    """Return how much memory this machine, or what this process may have of it, has."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    return min(physical, int(limit)) if limit.isdecimal() else physical


def check_epochs(place: str, block: Mapping[str, Any], items: int, world_size: int) -> None:
    """Refuse epochs of so many items that have no batch of all processes, or do not fit in memory."""
    batch, ratio = block["batch_size_per_gpu"] * world_size, block.get("dataset_enlarge_ratio", 1)
    samples = math.ceil(items * ratio)
    if samples < batch:
        raise OptionError(
            f"{place}.batch_size_per_gpu: {batch} in all, expected at most {samples}, as an epoch has {items} images, "
            f"{ratio:g} times each; dataset_enlarge_ratio makes it longer"
        )
    if samples * _BYTES_A_PLACE > memory_bytes():
        raise OptionError(f"{place}.dataset_enlarge_ratio: {ratio}, which makes epochs that do not fit in memory")


class _Block:
    """The block of a dataset."""

    def __init__(self, key: str, opt: Mapping[str, Any], model: Any, faults: Faults) -> None:
        self.opt, self.model, self.faults, self.place = opt, model, faults, ("datasets", key)
        self.block: dict[str, Any] = opt["datasets"][key]
        self.where, self.training = dotted(self.place), self.block["phase"] == "train"
        self.kind = named_by(self.block, dict(iter(DATASET_REGISTRY)), self.where)
        self.ours = isinstance(self.kind, type) and issubclass(self.kind, PairedDegradationDataset)
        self.folders = self.kind in _PLAIN_FOLDERS or self.ours
        backend = self.block.get("io_backend")
        self.in_lmdb = isinstance(backend, Mapping) and backend.get("type") == "lmdb"

    def build(self) -> Built | None:
        """Build the dataset if nothing is wrong with its block; all that is wrong is found, whatever else is."""
        for check in (self._check_backend, self._check_roots, self._check_patches, self._check_loading):
            with self.faults.gathered(*self.place):
                check()
        built = None
        if self.faults.clear(self.place, ("scale",)):
            built = self._build_ours() if self.kind is PairedDegradationDataset else self._build()
        if self.training:
            self._check_epochs(built)
        return built

    def _check_backend(self) -> None:
        """Check the block of one of BasicSR's storage backends."""
        backend, place = self.block.get("io_backend"), f"{self.where}.io_backend"
        if self.ours or not is_own(self.kind):
            return
        if not isinstance(backend, Mapping):
            raise OptionError(f"{place}: {backend!r}, expected a block, as {{type: disk}}")
        arguments = {key: value for key, value in backend.items() if key != "type"}
        client = named_by(backend, FileClient._backends, place)
        if not self.in_lmdb:
            check_arguments(client, arguments, place)
            return
        names = [*inspect.signature(client).parameters, *_LMDB_OPEN]
        names = [name for name in names if name not in _LMDB_GIVEN]
        lines = [line for key in arguments if key not in names for line in unknown_key(f"{place}.{key}", names).lines]
        if lines:
            raise OptionError(*lines)

    def _check_roots(self) -> None:
        """Check that the folders of a dataset are there."""
        for key in _ROOTS if self.folders and not self.in_lmdb else ():
            roots = self.block.get(key) if self.faults.clear((*self.place, key)) else None
            for root in roots if isinstance(roots, list) else [roots]:
                if isinstance(root, str) and root != DEMO and not Path(root).is_dir():
                    line = f"{root!r} is missing or no folder, expected a folder of images"
                    self.faults.at((*self.place, key), line)

    def _check_patches(self) -> None:
        """Check our options, or the size of other patches; and that patches fit in memory, before any are read."""
        block = self.block
        if self.kind is PairedDegradationDataset:
            with placed(self.where):
                read_options(block if self.faults.clear(("scale",)) else block | {"scale": 1})
        needed = (*_ROOTS, "scale", *(("gt_size", "use_hflip", "use_rot") if self.training else ()))
        for key in needed if self.kind is PairedImageDataset else ():
            if block.get(key) is None:
                self.faults.at((*self.place, key), "the key is missing")
        size, scale, views = block.get("gt_size"), block.get("scale"), block.get("num_views")
        if not self.training or not isinstance(size, int) or isinstance(size, bool):
            return
        if self.kind is PairedImageDataset and isinstance(scale, int) and self.faults.clear(("scale",)):
            check_patch_size(size, scale, f"{self.where}.gt_size")
        patches = {"calibration_images": block.get("calibration_images", 0)}
        if isinstance(block.get("batch_size_per_gpu"), int):
            patches["batch_size_per_gpu"] = block["batch_size_per_gpu"] * (views if isinstance(views, int) else 1)
        for key, number in patches.items():
            if isinstance(number, int) and number * 3 * size**2 * _BYTES_A_NUMBER > memory_bytes():
                line = f"{number} patches of {size}x{size} pixels do not fit in memory"
                raise OptionError(f"{self.where}.{key}: {line}")

    def _check_loading(self) -> None:
        """Check that options of the loader fit each other."""
        block, lasting = self.block, self.block.get("persistent_workers")
        if self.training and block.get("prefetch_mode") == "cuda" and block.get("pin_memory") is not True:
            found = block.get("pin_memory")
            raise OptionError(f"{self.where}.pin_memory: {found}, expected true with prefetch_mode: cuda")
        if self.training and lasting and not block.get("num_worker_per_gpu"):
            raise OptionError(f"{self.where}.persistent_workers: true, expected false with num_worker_per_gpu: 0")
        if not self.training and lasting:
            line = "true, expected false, as validation has no workers"
            raise OptionError(f"{self.where}.persistent_workers: {line}")

    def _check_epochs(self, built: Built | None) -> None:
        """Check the length of epochs, as far as it is known: by the number of files, where the dataset is not built."""
        roots = self.block.get("dataroot_gt")
        folders = [Path(str(root)) for root in (roots if isinstance(roots, list) else [roots])]
        loading = [(*self.place, key) for key in ("batch_size_per_gpu", "dataset_enlarge_ratio", *_ROOTS)]
        if not self.faults.clear(*loading):
            return
        if built is not None:
            check_epochs(self.where, self.block, len(built.dataset), self.opt["world_size"])
        elif self.folders and not self.in_lmdb and all(folder.is_dir() for folder in folders):
            items = sum(file.is_file() for folder in folders for file in folder.rglob("*"))
            check_epochs(self.where, self.block, items, self.opt["world_size"])

    def _build_ours(self) -> Built:
        opt, block = self.opt, self.block
        on_device = self.training and block.get("degrade_on") == "device"
        if on_device and self.model is not None and not issubclass(self.model, BlindSRModel):
            line = f"'device', expected 'worker', as {opt['model_type']} takes images with LR"
            raise OptionError(f"{self.where}.degrade_on: {line}")
        with placed(self.where):
            options = read_options(block)
            if on_device and opt.get("degradation") is not None:
                degradation = build_degradation(opt["degradation"], opt.get("scale"))
                options.check_degradation(degradation)  # type: ignore[union-attr]
            dataset = build_dataset(block)
        scale = 1 if self.training else options.scale
        sizes = [(image.height - image.height % scale, image.width - image.width % scale) for image in dataset.images]
        return Built(dataset, gt_sizes=sizes, has_gt=True)

    def _build(self) -> Built:
        block, reads = self.block, Reads()
        if issubclass(self.kind, IterableDataset):
            raise OptionError(f"{self.where}.type: {block['type']!r} has no indices, expected a dataset with them")
        given = Recorded({key: value for key, value in block.items() if key != "on_bad_image" or self.ours}, reads)
        skipped = (BadImageError,) if self.training and block.get("on_bad_image") == "skip" else ()
        unusable = f"{self.where}: {block['type']} cannot be used with this block"
        try:
            with placed(self.where):
                built = Built(build_dataset(given), reads)
            if not len(built.dataset):
                raise OptionError(f"{self.where}: holds no image, expected at least one")
            with suppress(*skipped):
                if self.kind in _PLAIN_FOLDERS:
                    self._measure(built)
                if not self.in_lmdb:  # which can be opened only once in a process
                    PositionedDataset(_copied(built.dataset), 0, name=str(block["name"]))[0]
                    built.tried = True
        except BSRError:
            raise
        except Exception as error:
            missing = reads.missing(error)
            if missing is None:
                raise OptionError(f"{unusable} ({described(error, placed=True)})") from error
            line = f"the key is missing, {block['type']} needs it"
            raise OptionError(f"{self.where}.{dotted(missing)}: {line}") from error
        return built

    def _measure(self, built: Built) -> None:
        """Read the sizes of images from their headers, and check that pairs fit each other and patches."""
        block, paths, scale = self.block, built.dataset.paths, self.opt.get("scale", 1)
        built.channels = 1 if block.get("color") == "y" else 3
        built.has_gt = self.kind is PairedImageDataset
        if not built.has_gt:
            sizes = header_sizes(paths) if not self.in_lmdb else []
            built.gt_sizes = [(height * scale, width * scale) for height, width in sizes]
            return
        files: list[list[str]] = []
        sides: list[list[Size]] = []
        for key, root in (("gt_path", block["dataroot_gt"]), ("lq_path", block["dataroot_lq"])):
            names = [entry[key] for entry in paths]
            listed = images_in_lmdb(root, self.where) if self.in_lmdb else []
            known = {image.key: (image.height, image.width) for image in listed}
            files.append([f"{root}/{name}" if known else name for name in names])
            sides.append([known[name] for name in names] if known else header_sizes(names))
        gt_size = block.get("gt_size", 0) if self.training else 0
        for file, (height, width), lq_file, (low, narrow) in zip(files[0], sides[0], files[1], sides[1], strict=True):
            if (height, width) != (low * scale, narrow * scale):
                raise BadImageError(
                    f"{file}: is {width}x{height}, expected {narrow * scale}x{low * scale}, {scale} times the "
                    f"{narrow}x{low} of {lq_file}"
                )
            if min(height, width) < gt_size:
                raise BadImageError(f"{file}: is {width}x{height}, expected both sides at least gt_size {gt_size}")
        built.gt_sizes = sides[0]


def _copied(dataset: Any) -> Any:
    """Copy a dataset, so that files which it opens for a first item are not shared with worker processes."""
    try:
        return copy.deepcopy(dataset)
    except Exception:  # of whatever kind: it holds what cannot be copied
        return dataset


def header_sizes(files: list[str]) -> list[Size]:
    """Read the sizes of image files, as BasicSR shows them, from their headers; a `BadImageError` names a bad one."""
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
