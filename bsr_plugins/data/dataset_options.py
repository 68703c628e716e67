"""The options of a PairedDegradationDataset: which there are, and whether they can be used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from bsr_plugins.blocks import call_with, integer
from bsr_plugins.data.bad_images import ON_BAD_IMAGE, Replacement
from bsr_plugins.data.image_files import BACKENDS, ImageFile, find_images
from bsr_plugins.degradations import Degradation, build_degradation
from bsr_plugins.errors import BadImageError, OptionError, unknown_key, unknown_name

PHASES = ("train", "val", "test")
DEGRADE_ON = ("worker", "device")

TRAINER_KEYS = (
    "batch_size_per_gpu",
    "dataset_enlarge_ratio",
    "num_prefetch_queue",
    "num_worker_per_gpu",
    "persistent_workers",
    "pin_memory",
    "prefetch_mode",
    "type",
    "use_shuffle",
)
"""Keys that BasicSR's trainer and loaders read out of a dataset's block; `use_shuffle` only its files have."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(ABC):
    """What all phases need; see `PairedDegradationDataset` for the meaning of every key."""

    name: str
    phase: str
    scale: int
    dataroot_gt: str | list[str]
    io_backend: Mapping[str, Any] = field(default_factory=lambda: {"type": "disk"})
    seed: int = 0
    degradation: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        integer(self.scale, self.where("scale"), low=1)
        integer(self.seed, self.where("seed"), low=0)
        if not isinstance(self.io_backend, Mapping) or set(self.io_backend) != {"type"}:
            raise OptionError(
                f"{self.where('io_backend')}: {self.io_backend!r}, expected {{type: disk}} or {{type: lmdb}}"
            )
        self._one_of("io_backend.type", self.io_backend["type"], BACKENDS)
        roots = self._roots()
        if not roots or not all(isinstance(root, str | Path) for root in roots):
            raise OptionError(f"{self.where('dataroot_gt')}: {self.dataroot_gt!r}, expected a folder, 'demo' or a list")

    def where(self, key: str) -> str:
        """Name a key and whose it is, for messages."""
        return f"dataset '{self.name}'.{key}"

    def find_images(self) -> list[ImageFile]:
        """List the dataset's images.

        Raises:
            OptionError: A root is missing or holds no image.
            BadImageError: An image's header is unreadable, or its size will not do.
        """
        images = self._list_images(None)
        for image in images:
            self._check_size(image)
        return images

    def build_degradation(self) -> Degradation:
        """Build the degradation that the block describes, for this dataset's scale.

        Raises:
            OptionError: It cannot be built, or it is for another scale.
        """
        if not isinstance(self.degradation, Mapping):
            raise OptionError(
                f"{self.where('degradation')}: {self.degradation!r}, expected a block with the key 'type'"
            )
        return build_degradation(self.degradation, self.scale, self.where("degradation"))

    def _list_images(self, bad: list[str] | None) -> list[ImageFile]:
        roots = [str(root) for root in self._roots()]
        return find_images(roots, self.io_backend["type"], self.phase, self.where("dataroot_gt"), bad)

    @abstractmethod
    def _check_size(self, image: ImageFile) -> None:
        """Raise a BadImageError for an image whose size will not do."""

    def _roots(self) -> list[Any]:
        return list(self.dataroot_gt) if isinstance(self.dataroot_gt, list | tuple) else [self.dataroot_gt]

    def _one_of(self, key: str, value: object, known: Sequence[str]) -> None:
        if value not in known:
            raise unknown_name(self.where(key), value, known)

    def _boolean(self, key: str) -> None:
        if not isinstance(getattr(self, key), bool):
            raise OptionError(f"{self.where(key)}: {getattr(self, key)!r}, expected true or false")

    def _no_use(self, key: str, when: str) -> None:
        if getattr(self, key) is not None:
            raise OptionError(f"{self.where(key)}: {getattr(self, key)!r} has no use with {when}, expected no such key")


@dataclass(frozen=True, kw_only=True)
class PatchOptions(ImageOptions):
    """Options of phase train."""

    degrade_on: str
    gt_size: int
    use_hflip: bool
    use_rot: bool
    num_views: int | None = None
    calibration_images: int = 32
    on_bad_image: str = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("degrade_on", self.degrade_on, DEGRADE_ON)
        integer(self.gt_size, self.where("gt_size"), low=1)
        check_patch_size(self.gt_size, self.scale, self.where("gt_size"))
        integer(self.calibration_images, self.where("calibration_images"), low=1)
        self._one_of("on_bad_image", self.on_bad_image, ON_BAD_IMAGE)
        self._boolean("use_hflip")
        self._boolean("use_rot")
        if self.degrade_on == "device":
            self._no_use("degradation", "degrade_on: device (the model degrades)")
        else:
            self._no_use("num_views", "degrade_on: worker (one view an item)")
        if self.num_views is not None:
            integer(self.num_views, self.where("num_views"), low=1)

    def find_images(self) -> list[ImageFile]:
        """List the dataset's images; with `on_bad_image: skip`, those that are not seen to be bad.

        Raises:
            OptionError: A root is missing or holds no image.
            BadImageError: An image's header is unreadable, or its size will not do; with `skip`, that of all images.
        """
        return self.sift_images()[0]

    def sift_images(self) -> tuple[list[ImageFile], list[str]]:
        """List the images as `find_images` does, and what is wrong with those that it leaves out.

        Raises:
            OptionError: See `find_images`.
            BadImageError: See `find_images`.
        """
        if self.on_bad_image == "error":
            return super().find_images(), []
        good, bad = [], list[str]()
        for image in self._list_images(bad):
            try:
                self._check_size(image)
            except BadImageError as error:
                bad.append(str(error))
            else:
                good.append(image)
        if not good:
            raise BadImageError(f"{bad[0]} (and none of the {len(bad)} images of dataset '{self.name}' can be used)")
        return good, bad

    def replacement(self, images: Sequence[ImageFile]) -> Replacement | None:
        """Make what takes another one of the images in the place of a bad one; None if a bad one is an error."""
        if self.on_bad_image == "error":
            return None
        return Replacement(f"dataset '{self.name}'", len(images), self.seed, partial(_path_of, images))

    def check_degradation(self, degradation: Degradation) -> None:
        """Check that patches are large enough for a degradation.

        Raises:
            OptionError: They are not.
        """
        smallest = degradation.smallest_side()
        if self.gt_size < smallest:
            raise OptionError(
                f"{self.where('gt_size')}: {self.gt_size}, expected at least {smallest} for the degradation's kernels"
            )

    def _check_size(self, image: ImageFile) -> None:
        if min(image.height, image.width) < self.gt_size:
            raise BadImageError(
                f"{image.path}: is {image.width}x{image.height}, expected both sides at least gt_size {self.gt_size}"
            )


def check_patch_size(gt_size: int, scale: int, where: str) -> None:
    """Check that HR patches can be made of whole LR pixels.

    Args:
        gt_size: Pixels a side of the HR patches.
        scale: How many of them one LR pixel stands for.
        where: The option that names the size, for messages.

    Raises:
        OptionError: They cannot.
    """
    if gt_size % scale:
        raise OptionError(f"{where}: {gt_size}, expected a multiple of scale {scale}")


def _path_of(images: Sequence[ImageFile], number: int, _error: BadImageError) -> str:
    return images[number].path


@dataclass(frozen=True, kw_only=True)
class WholeImageOptions(ImageOptions):
    """Options of phases val and test."""

    protocol: str | None = None
    settings: list[str] | None = None
    mod_crop: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._boolean("mod_crop")
        if (self.protocol is None) == (self.degradation is None):
            raise OptionError(
                f"{self.where('protocol')}: expected a protocol's name or a degradation block, one of the two"
            )
        if self.protocol is None:
            self._no_use("settings", "a degradation block")
        elif self.settings is not None and not (isinstance(self.settings, list) and self.settings):
            raise OptionError(f"{self.where('settings')}: {self.settings!r}, expected a list of its settings' names")

    def _check_size(self, image: ImageFile) -> None:
        size = f"{image.path}: is {image.width}x{image.height}"
        if min(image.height, image.width) < self.scale:
            raise BadImageError(f"{size}, expected both sides at least scale {self.scale}")
        if not self.mod_crop and (image.height % self.scale or image.width % self.scale):
            raise BadImageError(f"{size}, expected multiples of scale {self.scale} (or mod_crop: true)")


def read_options(opt: Mapping[str, Any]) -> PatchOptions | WholeImageOptions:
    """Check a dataset's block of options; the block is left as it is.

    Raises:
        OptionError: A key is unknown, missing or of no use in the block's phase, or a value cannot be used.
    """
    where = f"dataset '{opt.get('name', '?')}'"
    if opt.get("phase") not in PHASES:
        raise unknown_name(f"{where}.phase", opt.get("phase"), PHASES)
    train, whole = ([f.name for f in fields(kind)] for kind in (PatchOptions, WholeImageOptions))
    own = train if opt["phase"] == "train" else whole
    known = sorted({*train, *whole, *TRAINER_KEYS})
    for key in opt:
        if key not in known:
            raise unknown_key(f"{where}.{key}", known)
        if key not in own and key not in TRAINER_KEYS:
            raise OptionError(f"{where}.{key}: has no use in phase {opt['phase']}, expected no such key")
    arguments = {key: value for key, value in opt.items() if key in own}
    if opt["phase"] == "train":
        return call_with(PatchOptions, arguments, where)
    return call_with(WholeImageOptions, arguments, where)
