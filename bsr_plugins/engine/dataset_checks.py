"""Whether the datasets of a run can be built, and give what is wanted of them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.single_image_dataset import SingleImageDataset
from basicsr.utils import FileClient
from basicsr.utils.registry import DATASET_REGISTRY

from bsr_plugins.blocks import check_arguments
from bsr_plugins.data.dataset_options import PatchOptions, check_patch_size, read_options
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.data.positioned_items import PositionedDataset
from bsr_plugins.data.whole_images import WholeImages
from bsr_plugins.degradations import build_degradation
from bsr_plugins.engine.dataset_parts import check_epochs, check_parts
from bsr_plugins.engine.faults import Faults
from bsr_plugins.engine.image_sizes import Found, Pairs, files_of, header_sizes, paired_files, paired_in_lmdb
from bsr_plugins.engine.named_blocks import is_own, registered
from bsr_plugins.engine.trial import memory_bytes
from bsr_plugins.errors import BadImageError, BSRError, OptionError, did_you_mean, unknown_key, unknown_name
from bsr_plugins.models.blind_sr_model import BlindSRModel

_BYTES_A_NUMBER = 4
_BYTES_A_PLACE = 64  # of an epoch's order
_PHASES_OF_TRAINING, _PHASES_OF_TESTING = ("train", "val"), ("test",)
_LMDB_GIVEN = ("db_paths", "client_keys")  # by the datasets
_LMDB_OPEN = (
    *("map_size", "subdir", "metasync", "sync", "map_async", "mode", "create", "writemap", "meminit"),
    *("max_readers", "max_dbs", "max_spare_txns"),
)


def check_datasets(opt: Mapping[str, Any], model: Any, faults: Faults) -> dict[str, Found]:
    """Check all datasets.

    Args:
        opt: The run's options.
        model: The class that `model_type` names, or None.
        faults: Takes what is wrong.

    Returns:
        What is known of those that can be used, by their keys.
    """
    if not opt["datasets"]:
        faults.at(("datasets",), "{}, expected at least one dataset")
    sound = opt if faults.free(("degradation",)) else {**opt, "degradation": None}
    found: dict[str, Found] = {}
    names: dict[str, str] = {}
    for key, dataset_opt in opt["datasets"].items():
        place = ("datasets", key)
        _check_key(key, opt["is_train"], faults)
        name = dataset_opt.get("name")
        if isinstance(name, str) and dataset_opt["phase"] != "train":
            if name in names:
                faults.at((*place, "name"), f"{name!r} is the name of datasets.{names[name]} too, expected another")
            names.setdefault(name, key)
        if faults.free(place, ("scale",)):
            with faults.noted(*place):
                found[key] = _check_dataset(".".join(place), dataset_opt, sound, model)
        if key not in found:
            check_parts(place, dataset_opt, opt["world_size"], faults)
        elif dataset_opt["phase"] == "train":
            with faults.noted(*place):
                _check_loading(".".join(place), dataset_opt, found[key].items, opt)
    return found


def _check_key(key: str, is_train: bool, faults: Faults) -> None:
    phase, underscore, _ = key.partition("_")
    phases = _PHASES_OF_TRAINING if is_train else _PHASES_OF_TESTING
    if phase not in phases:
        faults.at(("datasets", key), f"expected a name that begins with {' or '.join(phases)} in this kind of run")
    elif phase == "train" and underscore:
        faults.at(("datasets", key), "expected the name 'train'; there is one training dataset")


def _check_dataset(place: str, dataset_opt: Mapping[str, Any], opt: Mapping[str, Any], model: Any) -> Found:
    kind = registered(DATASET_REGISTRY, dataset_opt["type"])
    if dataset_opt["phase"] != "train" and dataset_opt.get("persistent_workers"):
        raise OptionError(f"{place}.persistent_workers: true, expected false, as validation has no workers")
    if issubclass(kind, PairedDegradationDataset):
        return _check_own(place, dataset_opt, opt, model)
    if is_own(kind):
        _check_storage(place, dataset_opt)
    found = None
    if kind is PairedImageDataset:
        found = _check_pairs(place, dataset_opt)
    elif kind is SingleImageDataset and _on_disk(dataset_opt):
        found = _check_singles(place, dataset_opt, opt)
    items = len(_built(place, dataset_opt, kind))
    if not items:
        raise OptionError(f"{place}: holds no image, expected at least one")
    return found or Found(items)


def _check_storage(place: str, dataset_opt: Mapping[str, Any]) -> None:
    """Check where one of BasicSR's datasets is stored."""
    _check_backend(f"{place}.io_backend", dataset_opt.get("io_backend"))
    for key in ("dataroot_gt", "dataroot_lq"):
        root = dataset_opt.get(key)
        if isinstance(root, list):
            raise OptionError(f"{place}.{key}: {root!r}, expected one folder, as {dataset_opt['type']} takes")
        if root is not None and _on_disk(dataset_opt) and not Path(root).is_dir():
            raise OptionError(f"{place}.{key}: {root!r} is missing or no folder, expected a folder of images")


def _check_backend(place: str, backend: object) -> None:
    """Check the block of one of BasicSR's storage backends."""
    known = FileClient._backends
    if not isinstance(backend, Mapping):
        raise OptionError(f"{place}: {backend!r}, expected a block, as {{type: disk}}")
    if "type" not in backend:
        for key in backend:
            if did_you_mean(key, ["type"]):
                raise unknown_key(f"{place}.{key}", ["type"])
        raise OptionError(f"{place}.type: the key is missing, expected one of {', '.join(sorted(known))}")
    if not isinstance(backend["type"], str) or backend["type"] not in known:
        raise unknown_name(f"{place}.type", backend["type"], known)
    kind, arguments = known[backend["type"]], {key: value for key, value in backend.items() if key != "type"}
    names = list(inspect.signature(kind).parameters)
    if backend["type"] == "lmdb":
        names = [name for name in (*names, *_LMDB_OPEN) if name not in (*_LMDB_GIVEN, "kwargs")]
        for key in arguments:
            if key not in names:
                raise unknown_key(f"{place}.{key}", names)
    else:
        check_arguments(kind, arguments, place)


def _on_disk(dataset_opt: Mapping[str, Any]) -> bool:
    backend = dataset_opt.get("io_backend")
    return isinstance(backend, Mapping) and backend.get("type") == "disk"


def _skips(dataset_opt: Mapping[str, Any]) -> bool:
    """Whether single bad images are no fault of a dataset."""
    return dataset_opt["phase"] == "train" and dataset_opt.get("on_bad_image") == "skip"


def _built(place: str, dataset_opt: Mapping[str, Any], kind: Any) -> Any:
    """Build a dataset for trial, and take an item; it has its own copy of the options, as BasicSR's change theirs."""
    try:
        dataset = kind(copy.deepcopy(dict(dataset_opt)))
        if len(dataset) and _on_disk(dataset_opt) and not _skips(dataset_opt):
            # Not of an LMDB, which can be opened only once in a process.
            PositionedDataset(dataset, 0, name=str(dataset_opt["name"]))[0]
    except Exception as error:
        if isinstance(error, BSRError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise OptionError(f"{place}: {dataset_opt['type']} cannot be used with this block ({reason})") from error
    return dataset


def _check_own(place: str, dataset_opt: Mapping[str, Any], opt: Mapping[str, Any], model: Any) -> Found:
    """Check a `PairedDegradationDataset`."""
    options = read_options(dataset_opt)
    if not isinstance(options, PatchOptions):
        whole, scale = WholeImages(options), options.scale
        cropped = [(image.height - image.height % scale, image.width - image.width % scale) for image in whole.images]
        return Found(len(whole), cropped, has_gt=True)
    if options.degrade_on == "device" and model is not None and not issubclass(model, BlindSRModel):
        raise OptionError(
            f"{place}.degrade_on: 'device', expected 'worker', as {opt['model_type']} takes images with LR"
        )
    if options.degrade_on == "worker":
        options.check_degradation(options.build_degradation())
    elif opt.get("degradation") is not None:
        options.check_degradation(build_degradation(opt["degradation"], opt.get("scale")))
    _check_memory(f"{place}.calibration_images", options.calibration_images, options.gt_size)
    images = options.find_images()
    return Found(len(images), [(image.height, image.width) for image in images], has_gt=True)


def _check_pairs(place: str, dataset_opt: Mapping[str, Any]) -> Found | None:
    """Check BasicSR's `PairedImageDataset`, which would crop HR images that do not fit, and say nothing.

    Returns:
        What it has, or None if it is stored neither on disk nor in LMDBs.
    """
    _check_pair_options(place, dataset_opt)
    if dataset_opt["io_backend"]["type"] == "lmdb":
        pairs = paired_in_lmdb(dataset_opt, place)
    elif _on_disk(dataset_opt):
        pairs = paired_files(dataset_opt, place)
    else:
        return None
    channels = 1 if dataset_opt.get("color") == "y" else 3
    if _skips(dataset_opt):
        return Found(len(pairs.gt), None, True, channels)
    if _on_disk(dataset_opt):
        pairs.gt_sizes, pairs.lq_sizes = header_sizes(pairs.gt), header_sizes(pairs.lq)
    _check_sizes(pairs, dataset_opt["scale"], dataset_opt["gt_size"] if dataset_opt["phase"] == "train" else None)
    return Found(len(pairs.gt), pairs.gt_sizes, True, channels)


def _check_pair_options(place: str, dataset_opt: Mapping[str, Any]) -> None:
    training, template = dataset_opt["phase"] == "train", dataset_opt.get("filename_tmpl", "{}")
    for key in ("dataroot_gt", "dataroot_lq", *(("gt_size", "use_hflip", "use_rot") if training else ()), "scale"):
        if dataset_opt.get(key) is None:
            raise OptionError(f"{place}.{key}: the key is missing")
    if training:
        check_patch_size(dataset_opt["gt_size"], dataset_opt["scale"], f"{place}.gt_size")
    if not isinstance(template, str) or "{}" not in template or set("{}") & set(template.replace("{}", "", 1)):
        raise OptionError(f"{place}.filename_tmpl: {template!r}, expected text that holds '{{}}' once, as '{{}}x4'")


def _check_sizes(pairs: Pairs, scale: int, gt_size: int | None) -> None:
    for file, lq_file, (height, width), (lq_height, lq_width) in zip(
        pairs.gt, pairs.lq, pairs.gt_sizes, pairs.lq_sizes, strict=True
    ):
        if (height, width) != (lq_height * scale, lq_width * scale):
            raise BadImageError(
                f"{file}: is {width}x{height}, expected {lq_width * scale}x{lq_height * scale}, {scale} times the "
                f"{lq_width}x{lq_height} of {lq_file}"
            )
        if gt_size is not None and min(height, width) < gt_size:
            raise BadImageError(f"{file}: is {width}x{height}, expected both sides at least gt_size {gt_size}")


def _check_singles(place: str, dataset_opt: Mapping[str, Any], opt: Mapping[str, Any]) -> Found:
    """Check BasicSR's `SingleImageDataset`: LR images alone, of which the outputs are `scale` times as large."""
    root = dataset_opt.get("dataroot_lq")
    if dataset_opt.get("meta_info_file") is not None:
        return Found(len(files_of(root, f"{place}.dataroot_lq")), has_gt=False)
    names = files_of(root, f"{place}.dataroot_lq")
    sizes = header_sizes([f"{root}/{name}" for name in names])
    scale = opt.get("scale", 1)
    channels = 1 if dataset_opt.get("color") == "y" else 3
    return Found(len(names), [(height * scale, width * scale) for height, width in sizes], False, channels)


def _check_loading(place: str, dataset_opt: Mapping[str, Any], items: int, opt: Mapping[str, Any]) -> None:
    """Check that an epoch has a batch, and that batches fit in memory."""
    if dataset_opt.get("prefetch_mode") == "cuda" and dataset_opt.get("pin_memory") is not True:
        raise OptionError(
            f"{place}.pin_memory: {dataset_opt.get('pin_memory')}, expected true with prefetch_mode: cuda"
        )
    if dataset_opt.get("persistent_workers") and not dataset_opt["num_worker_per_gpu"]:
        raise OptionError(f"{place}.persistent_workers: true, expected false with num_worker_per_gpu: 0")
    batch, ratio = dataset_opt["batch_size_per_gpu"], dataset_opt.get("dataset_enlarge_ratio", 1)
    check_epochs(items, place, dataset_opt, opt["world_size"])
    if items * ratio * _BYTES_A_PLACE > memory_bytes():
        raise OptionError(f"{place}.dataset_enlarge_ratio: {ratio}, which makes epochs that do not fit in memory")
    gt_size = dataset_opt.get("gt_size")
    if isinstance(gt_size, int):
        views = dataset_opt.get("num_views")
        _check_memory(f"{place}.batch_size_per_gpu", batch * (views if isinstance(views, int) else 1), gt_size)


def _check_memory(place: str, patches: int, side: int) -> None:
    needed = patches * 3 * side**2 * _BYTES_A_NUMBER
    if needed > memory_bytes():
        raise OptionError(f"{place}: {patches} patches of {side}x{side} pixels do not fit in memory")
