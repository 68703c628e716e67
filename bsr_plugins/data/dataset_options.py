"""The options of a PairedDegradationDataset, and those that BasicSR's trainer and loaders read of any dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from bsr_plugins.data.bad_images import Replacement
from bsr_plugins.data.image_files import ImageFile, find_images
from bsr_plugins.degradations import Degradation, build_degradation
from bsr_plugins.errors import BadImageError, OptionError, unknown_key, unknown_name
from bsr_plugins.options.declared import OptionBlock, Whole, read_block

PHASES = ("train", "val", "test")


class LoaderOptions(OptionBlock):
    """What BasicSR's trainer and loaders read out of a dataset's block, whatever dataset it is."""

    type: str = Field(description="The dataset's class.")
    batch_size_per_gpu: Whole = Field(1, ge=1, description="Items of a batch, of every process; for training.")
    num_worker_per_gpu: Whole = Field(
        0, ge=0, le=1024, description="Worker processes that load, of every process; for training."
    )
    dataset_enlarge_ratio: float = Field(1, gt=0, description="How many times an epoch goes through the images.")
    prefetch_mode: Literal["cpu", "cuda"] | None = Field(
        None, description="What prefetches beyond the workers: a thread, a CUDA stream (with `pin_memory`), or nothing."
    )
    num_prefetch_queue: Whole = Field(1, ge=1, description="Batches that `prefetch_mode: cpu` holds.")
    pin_memory: bool = Field(False, description="Whether batches are put into pinned memory.")
    persistent_workers: bool = Field(False, description="Whether workers live on from epoch to epoch.")
    use_shuffle: bool | None = Field(None, description="In BasicSR's option files; nothing reads it.")


TRAINER_KEYS = tuple(LoaderOptions.model_fields)


def _check_backend(value: object) -> object:
    if value not in ({"type": "disk"}, {"type": "lmdb"}):
        raise ValueError("expected {type: disk} or {type: lmdb}")
    return value


def _as_roots(value: object) -> list[str]:
    roots = list(value) if isinstance(value, list | tuple) else [value]
    if not roots or not all(isinstance(root, str | Path) and str(root) for root in roots):
        raise ValueError("expected a folder, 'demo', or a list of folders")
    return [str(root) for root in roots]


_ROOTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


class ImageOptions(OptionBlock, ABC):
    """What all phases need; see `PairedDegradationDataset`."""

    name: str | int = Field(description="What the dataset is called in logs and messages.")
    phase: Literal["train", "val", "test"] = Field(description="Set by the trainer, from the block's key.")
    scale: Whole = Field(ge=1, description="Set by the trainer, from `scale`.")
    dataroot_gt: Annotated[list[str], BeforeValidator(_as_roots), WithJsonSchema(_ROOTS_SCHEMA)] = Field(
        description="A folder of HR images, `demo` (scikit-image's photographs), or a list; sub-folders are searched."
    )
    io_backend: Annotated[dict[str, Any], BeforeValidator(_check_backend)] = Field(
        {"type": "disk"}, description="`{type: disk}`, or `{type: lmdb}` for LMDBs that BasicSR's tool has made."
    )
    seed: Whole = Field(0, ge=0, description="What draws are a function of; `manual_seed`, where it is not given.")
    degradation: dict[str, Any] | None = Field(
        None, description="The degradation: of `degrade_on: worker`, or drawn once for every whole image."
    )

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
        if self.degradation is None:
            raise OptionError("degradation: None, expected a block with the key 'type'")
        return build_degradation(self.degradation, self.scale, "degradation")

    def _list_images(self, bad: list[str] | None) -> list[ImageFile]:
        return find_images(self.dataroot_gt, self.io_backend["type"], self.phase, "dataroot_gt", bad)

    @abstractmethod
    def _check_size(self, image: ImageFile) -> None:
        """Raise a BadImageError for an image whose size will not do."""

    def _no_use(self, key: str, when: str) -> None:
        if getattr(self, key) is not None:
            raise OptionError(f"{key}: {getattr(self, key)!r} has no use with {when}, expected no such key")


class PatchOptions(ImageOptions):
    """Options of phase train."""

    degrade_on: Literal["worker", "device"] = Field(
        description="Who degrades: the dataset (`worker`, for any model), or the model on its device."
    )
    gt_size: Whole = Field(ge=1, description="Side of the HR patches in pixels, a multiple of scale.")
    use_hflip: bool = Field(description="Whether patches are mirrored left and right with probability 1/2.")
    use_rot: bool = Field(
        description="Whether they are mirrored top and bottom, and turned, each with probability 1/2."
    )
    num_views: Whole | None = Field(None, ge=1, description="Patches of an image in an item of `degrade_on: device`.")
    calibration_images: Whole = Field(32, ge=1, description="Patches that a sampler is calibrated on.")
    on_bad_image: Literal["error", "skip"] = Field(
        "error", description="Whether a bad image ends the run, or another image takes its place."
    )

    @model_validator(mode="after")
    def _fits(self) -> PatchOptions:
        check_patch_size(self.gt_size, self.scale, "gt_size")
        if self.degrade_on == "device":
            self._no_use("degradation", "degrade_on: device (the model degrades)")
        else:
            self._no_use("num_views", "degrade_on: worker (one view an item)")
        return self

    def find_images(self) -> list[ImageFile]:
        return self.sift_images()[0]

    def sift_images(self) -> tuple[list[ImageFile], list[str]]:
        """List the images, and what is wrong with those that `on_bad_image: skip` leaves out as bad.

        Raises:
            OptionError: A root is missing or holds no image.
            BadImageError: An image's header is unreadable, or its size will not do; with `skip`, that of all images.
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
        """Raise an OptionError if patches are too small for a degradation."""
        smallest = degradation.smallest_side()
        if self.gt_size < smallest:
            raise OptionError(f"gt_size: {self.gt_size}, expected at least {smallest} for the degradation's kernels")

    def _check_size(self, image: ImageFile) -> None:
        if min(image.height, image.width) < self.gt_size:
            raise BadImageError(
                f"{image.path}: is {image.width}x{image.height}, expected both sides at least gt_size {self.gt_size}"
            )


def check_patch_size(gt_size: int, scale: int, where: str) -> None:
    """Raise an OptionError about the option `where` if HR patches cannot be made of whole LR pixels."""
    if gt_size % scale:
        raise OptionError(f"{where}: {gt_size}, expected a multiple of scale {scale}")


def _path_of(images: Sequence[ImageFile], number: int, _error: BadImageError) -> str:
    return images[number].path


class WholeImageOptions(ImageOptions):
    """Options of phases val and test."""

    protocol: str | None = Field(None, description="The protocol that degrades; without one, `degradation` does.")
    settings: list[str] | None = Field(
        None, min_length=1, description="Names of the protocol's settings that are wanted; all without it."
    )
    mod_crop: bool = Field(
        True, description="Whether images are cut to multiples of scale; without, others are refused."
    )

    @model_validator(mode="after")
    def _fits(self) -> WholeImageOptions:
        if (self.protocol is None) == (self.degradation is None):
            raise OptionError("protocol: expected a protocol's name or a degradation block, one of the two")
        if self.protocol is None:
            self._no_use("settings", "a degradation block")
        return self

    def _check_size(self, image: ImageFile) -> None:
        size = f"{image.path}: is {image.width}x{image.height}"
        if min(image.height, image.width) < self.scale:
            raise BadImageError(f"{size}, expected both sides at least scale {self.scale}")
        if not self.mod_crop and (image.height % self.scale or image.width % self.scale):
            raise BadImageError(f"{size}, expected multiples of scale {self.scale} (or mod_crop: true)")


def options_of(phase: object) -> type[PatchOptions] | type[WholeImageOptions]:
    """Return what declares the options of a phase; an OptionError says that there is no such one."""
    if phase not in PHASES:
        raise unknown_name("phase", phase, PHASES)
    return PatchOptions if phase == "train" else WholeImageOptions


def read_options(opt: Mapping[str, Any]) -> PatchOptions | WholeImageOptions:
    """Check a dataset's block of options; the block is left as it is.

    Raises:
        OptionError: A key is unknown, missing or of no use in the block's phase, or a value cannot be used.
    """
    kind = options_of(opt.get("phase"))
    fields, known = kind.model_fields, {*PatchOptions.model_fields, *WholeImageOptions.model_fields, *TRAINER_KEYS}
    wrong: list[str] = []
    for key in opt:
        if key not in known:
            wrong += unknown_key(str(key), sorted(known)).lines
        elif key not in fields and key not in TRAINER_KEYS:
            wrong.append(f"{key}: has no use in phase {opt['phase']}, expected no such key")
    try:
        options = read_block(kind, {key: value for key, value in opt.items() if key in fields})
    except OptionError as error:
        raise OptionError(*wrong, *error.lines) from error
    if wrong:
        raise OptionError(*wrong)
    return options
