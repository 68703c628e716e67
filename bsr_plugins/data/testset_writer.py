"""Write a protocol's LR images to folders, with the HR images and a manifest: test sets for any tool."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

import bsr_plugins
from bsr_plugins.atomic_file import remove_leftovers, write_atomically
from bsr_plugins.blocks import integer
from bsr_plugins.data.dataset_options import WholeImageOptions
from bsr_plugins.data.decode import HEADER_ERRORS, Pixels
from bsr_plugins.data.image_files import DEMO, read_image
from bsr_plugins.data.whole_images import WholeImages
from bsr_plugins.data.workers import worker_pool
from bsr_plugins.degradations import Setting
from bsr_plugins.errors import OptionError
from bsr_plugins.options.declared import read_block

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
"""What the manifest is called until every image is written."""

_FORMAT = 1
_LEVELS = 255
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk: length, type, checksum


@dataclass(frozen=True, kw_only=True)
class SetRequest:
    """What test set is wanted.

    Attributes:
        roots: Folders of HR images, searched with their sub-folders, or `demo`.
        out: Folder to write: a new or empty one, or one that the same request has begun.
        settings: Names of those settings of the protocol that are wanted; None for all.
        seed: Of the noise, at least 0.
    """

    roots: tuple[str, ...]
    out: Path
    protocol: str
    scale: int
    settings: tuple[str, ...] | None = None
    seed: int = 0


class Count(NamedTuple):
    """How many images were there and whole, and how many were written."""

    kept: int
    written: int


def make_test_set(request: SetRequest, processes: int = 1, progress: bool = False) -> Count:
    """Write a test set, or what is missing of one.

    It has `HR/NAME.png`, the HR images cropped to multiples of the scale, their pixels (of 8 or 16 bits) unchanged, and
    `LR_SETTING/X4/NAME.png` (X and the scale) for each setting: the pixels that a `PairedDegradationDataset` of this
    protocol and seed gives for the same folder, whatever the number of processes. Names are those of the sources, with
    `_` between folders.

    `manifest.json` gives version, protocol, scale, seed, the parameters of every setting, and of every image its name,
    source, SHA-256 of the source, and sizes. It gets this name when the set is complete. What the same request has
    begun is taken up: every PNG that is whole (size and checksums) stays. All sources are read before anything is
    written.

    Raises:
        OptionError: The request cannot be carried out, or the folder holds something else.
        BadImageError: A source cannot be read or is too small.
        BSRError: A process died, or a file cannot be written.
        OSError: A folder cannot be made.
    """
    integer(processes, "processes", 1)
    maker = _Maker(request)
    _check_out(request)
    count = len(maker.items.images)
    with worker_pool(maker, count, min(processes, count), progress) as run:
        _begin(request.out, maker.manifest(run(_Maker.inspect, "reading")))
        counts = run(_Maker.make, "degrading")
    (request.out / UNFINISHED).replace(request.out / MANIFEST)
    return Count(sum(count.kept for count in counts), sum(count.written for count in counts))


class _Maker:
    """Makes the files of one image after the other; every process gets one."""

    def __init__(self, request: SetRequest) -> None:
        for root in request.roots:
            if Path(root).suffix == ".lmdb":
                raise OptionError(f"folder: '{root}' is an LMDB, expected a folder of image files")
        self.request = request
        block = {"name": "test set", "phase": "test", "scale": request.scale, "dataroot_gt": list(request.roots)}
        block |= {"seed": request.seed, "protocol": request.protocol}
        if request.settings is not None:
            block["settings"] = list(request.settings)
        self.items = WholeImages(read_block(WholeImageOptions, block))

    def inspect(self, number: int) -> dict[str, Any]:
        image, scale = self.items.images[number], self.request.scale
        sides = read_image(image).shape[:2]
        return {
            "name": f"{self.items.names[number]}.png",
            "source": image.name + Path(image.path).suffix,
            "sha256": hashlib.sha256(Path(image.path).read_bytes()).hexdigest(),
            "hr": [side - side % scale for side in sides],
            "lr": [side // scale for side in sides],
        }

    def manifest(self, images: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": bsr_plugins.__version__,
            "protocol": self.request.protocol,
            "scale": self.request.scale,
            "seed": self.request.seed,
            "settings": {setting.name: _parameters(setting) for setting in self.items.settings},
            "images": images,
        }

    def make(self, number: int) -> Count:
        out, scale, file = self.request.out, self.request.scale, f"{self.items.names[number]}.png"
        pixels, settings = read_image(self.items.images[number]), self.items.settings
        height, width = (side - side % scale for side in pixels.shape[:2])
        written = 0
        if not _is_whole(out / "HR" / file, height, width):
            _write_png(out / "HR" / file, pixels[:height, :width])
            written += 1
        for place, setting in enumerate(settings):
            target = out / f"LR_{setting.name}" / f"X{scale}" / file
            if not _is_whole(target, height // scale, width // scale):
                lq = self.items.item(number * len(settings) + place)["lq"]
                assert isinstance(lq, torch.Tensor)
                _write_png(target, (lq * _LEVELS).round().to(torch.uint8).permute(1, 2, 0).numpy())
                written += 1
        return Count(1 + len(settings) - written, written)


def _parameters(setting: Setting) -> dict[str, float]:
    """Return a setting's parameters, but for the seed of its noise, which differs between images."""
    return {key: float(value[0]) for key, value in setting.params.items() if key != "noise_seed"}


def _check_out(request: SetRequest) -> None:
    out = request.out
    for root in request.roots:
        if root != DEMO and out.resolve().is_relative_to(Path(root).expanduser().resolve()):
            raise OptionError(f"out: '{out}' lies in '{root}', expected a folder outside the HR images")
    if out.exists() and not out.is_dir():
        raise OptionError(f"out: '{out}' is no folder, expected a folder or a new name")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in (MANIFEST, UNFINISHED)):
        raise OptionError(f"out: '{out}' is not empty and has no {MANIFEST}, expected a new folder or one begun here")


def _begin(out: Path, manifest: dict[str, Any]) -> None:
    """Make the folders, and write the manifest under the name of an unfinished one."""
    for name in (MANIFEST, UNFINISHED):
        if (out / name).exists():
            _compare(out / name, manifest)
    for place in ("HR", *(f"LR_{setting}/X{manifest['scale']}" for setting in manifest["settings"])):
        (out / place).mkdir(parents=True, exist_ok=True)
        remove_leftovers(out / place)
    remove_leftovers(out)
    write_atomically(out / UNFINISHED, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    (out / MANIFEST).unlink(missing_ok=True)


def _compare(file: Path, manifest: dict[str, Any]) -> None:
    """Raise an OptionError that names the first difference between a manifest and a file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{file}: cannot be read, expected the manifest of a test set") from error
    for key, value in manifest.items():
        there = found.get(key) if isinstance(found, dict) else None
        if there != value:
            brief = isinstance(value, int | str) and isinstance(there, int | str)
            difference = f"{key} {there!r}, expected {value!r}" if brief else f"other {key}, expected the same"
            raise OptionError(f"{file}: is of a test set with {difference} (or another folder)")


def _is_whole(file: Path, height: int, width: int) -> bool:
    """Tell whether a file is a PNG of a size from its first byte to its last, by its chunks' checksums."""
    try:
        data = file.read_bytes()
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            image.verify()
            return image.size == (width, height) and data.endswith(_PNG_END)
    except HEADER_ERRORS:
        return False


def _write_png(file: Path, pixels: Pixels) -> None:
    _, data = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))
    write_atomically(file, data.tobytes())
