"""Find the images of folders, LMDBs and `demo`, and read them through BasicSR's FileClient."""

from __future__ import annotations

import importlib.resources
import itertools
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import lmdb
from basicsr.utils import FileClient
from PIL import Image

from bsr_plugins.data.decode import Pixels, decode
from bsr_plugins.errors import BadImageError, OptionError

DEMO = "demo"
"""The root that stands for the photographs of scikit-image, so that nothing is fetched."""

TRAIN_PHOTOGRAPHS = (
    "astronaut.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
)
VALIDATION_PHOTOGRAPHS = ("chelsea.png", "rocket.jpg")

BACKENDS = ("disk", "lmdb")
ENDINGS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
LMDB_ENDING = ".lmdb"

_META_LINE = re.compile(r"(.+)\.\w+ \((\d+), ?(\d+), ?\d+\) \d+")


class ImageFile(NamedTuple):
    """Where an image is, and its size as stored (an EXIF orientation may swap the two).

    Attributes:
        path: What users know it by: the file, or the LMDB folder and the key.
        name: Its place below its root, `/` between folders, without the ending; the same on disk and in LMDB.
        key: What its storage knows it by: the file's path, or the LMDB key.
        lmdb: The LMDB folder, or an empty string for a file on disk.
    """

    path: str
    name: str
    key: str
    lmdb: str
    height: int
    width: int


def find_images(
    roots: Sequence[str], backend: str, phase: str, where: str, bad: list[str] | None = None
) -> list[ImageFile]:
    """List the images of all roots: the roots in their order, the images of each sorted by name.

    On disk sub-folders are searched (links are followed), known endings count in either case, and what begins with a
    dot is ignored. The root `demo` stands for scikit-image's photographs of a phase (a folder of that name is
    `./demo`). An LMDB is what BasicSR's tool makes; its keys and sizes come from `meta_info.txt`.

    Args:
        roots: Folders, or `demo`; with the backend `lmdb`, folders that end in `.lmdb`.
        backend: `disk` or `lmdb`.
        phase: `train`, `val` or `test`.
        where: The option that names the roots, for messages.
        bad: If given, files whose header cannot be read are left out, and what is wrong with them is added to it.

    Raises:
        OptionError: A root is missing, is of the wrong kind, or holds no image; `demo` is not installed.
        BadImageError: A file's header cannot be read.
    """
    if backend == "lmdb":
        return [image for root in roots for image in images_in_lmdb(root, where)]
    listed = []
    for root in roots:
        if root == DEMO:
            listed += [_unopened(file, file.parent) for file in demo_photographs(phase, where)]
        else:
            listed += files_in_folder(root, where)
    images = []
    with ThreadPoolExecutor() as pool:
        for image, size in zip(listed, pool.map(_size_or_error, listed), strict=True):
            if not isinstance(size, BadImageError):
                images.append(image._replace(height=size[0], width=size[1]))
            elif bad is None:
                raise size
            else:
                bad.append(str(size))
    return images


def demo_photographs(phase: str, where: str) -> list[Path]:
    """Return the colour photographs of a split, sorted by name: 7 in phase `train`, 2 in `val` and `test`."""
    try:
        folder = Path(str(importlib.resources.files("skimage"))) / "data"
    except ModuleNotFoundError as error:
        raise OptionError(f"{where}: '{DEMO}' needs scikit-image, which is not installed") from error
    names = TRAIN_PHOTOGRAPHS if phase == "train" else VALIDATION_PHOTOGRAPHS
    for name in names:
        if not (folder / name).is_file():
            raise OptionError(f"{where}: '{DEMO}' needs {folder / name}, which this scikit-image lacks")
    return [folder / name for name in names]


def files_in_folder(root: str, where: str) -> list[ImageFile]:
    """List the images below a folder as `find_images` does, but open none: their sizes are 0."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise OptionError(f"{where}: '{root}' is missing or no folder, expected a folder of images or '{DEMO}'")
    if folder.suffix == LMDB_ENDING:
        raise OptionError(f"{where}: '{root}' is an LMDB, which needs io_backend: {{type: lmdb}}")
    files = [file for file in files_below(folder) if file.suffix.lower() in ENDINGS]
    if not files:
        raise OptionError(f"{where}: '{root}' holds no image, expected files ending in {', '.join(ENDINGS)}")
    return [_unopened(file, folder) for file in sorted(files, key=lambda file: file.relative_to(folder).as_posix())]


def files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder but hidden ones; a link to one of the folders `above` is not followed again."""
    above |= {folder.resolve()}
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield entry
        elif entry.resolve() not in above:
            yield from files_below(entry, above)


def _unopened(file: Path, folder: Path) -> ImageFile:
    return ImageFile(str(file), file.relative_to(folder).with_suffix("").as_posix(), str(file), "", 0, 0)


def _size_or_error(file: ImageFile) -> tuple[int, int] | BadImageError:
    try:
        with Image.open(file.path) as image:
            return image.height, image.width
    except (OSError, Image.DecompressionBombError):
        pass  # Pillow does not know all that OpenCV reads, and OpenCV can say what is wrong with the rest.
    try:
        height, width, _ = decode(Path(file.path).read_bytes(), file.path).shape
    except OSError as error:
        return BadImageError(f"{file.path}: cannot be read ({error.strerror})")
    except BadImageError as error:
        return error
    return height, width


def images_in_lmdb(root: str, where: str) -> list[ImageFile]:
    """List the images of an LMDB as `find_images` does."""
    folder = Path(root).expanduser()
    if folder.suffix != LMDB_ENDING or not folder.is_dir():
        raise OptionError(f"{where}: '{root}' is missing or no LMDB, expected a folder ending in {LMDB_ENDING}")
    for file in ("data.mdb", "meta_info.txt"):
        if not (folder / file).is_file():
            raise OptionError(f"{where}: '{root}' lacks {file}, expected an LMDB made by BasicSR's tool")
    images = []
    for line in (folder / "meta_info.txt").read_text(encoding="utf-8").splitlines():
        match = _META_LINE.fullmatch(line)
        if match is None:
            raise OptionError(f"{where}: '{folder / 'meta_info.txt'}' says {line!r}, expected 'KEY.png (H,W,C) LEVEL'")
        key, height, width = match.groups()
        images.append(ImageFile(f"{folder}/{key}", key, key, str(folder), int(height), int(width)))
    if not images:
        raise OptionError(f"{where}: '{root}' holds no image, expected lines in its meta_info.txt")
    return sorted(images, key=lambda image: image.key)


def distinct_names(images: Iterable[ImageFile]) -> list[str]:
    """Give every image a name that no other has: folders joined with `_`, repeated names numbered `-2`, `-3` …

    Names that differ in case alone count as the same, because some file systems say so.
    """
    taken: dict[str, str] = {}
    for image in images:
        name = flat = image.name.replace(os.sep, "_").replace("/", "_")
        numbers = itertools.count(2)
        while name.casefold() in taken:
            name = f"{flat}-{next(numbers)}"
        taken[name.casefold()] = name
    return list(taken.values())


def read_image(image: ImageFile) -> Pixels:
    """Read the pixels of an image; see `decode`.

    Raises:
        BadImageError: It is missing, unreadable, truncated, of an unknown depth, or not of the size it was listed with.
    """
    pixels = decode(read_bytes(image), image.path)
    height, width, _ = pixels.shape
    if sorted((height, width)) != sorted((image.height, image.width)):
        raise BadImageError(f"{image.path}: is {width}x{height}, but was listed as {image.width}x{image.height}")
    return pixels


def read_bytes(image: ImageFile) -> bytes:
    """Read what is stored of an image; a BadImageError if that cannot be."""
    try:
        data: bytes | None = _client(image.lmdb).get(image.key)
    except (OSError, lmdb.Error) as error:
        raise BadImageError(f"{image.path}: cannot be read ({error})") from error
    if data is None:
        raise BadImageError(f"{image.path}: the LMDB has no such key, though its meta_info.txt lists it")
    return data


_clients: dict[str, FileClient] = {}
_clients_lock = threading.Lock()


def _client(lmdb_folder: str) -> FileClient:
    """Return the client of a folder, the only one in this process, as LMDB wants; that of the disk for no folder."""
    with _clients_lock:
        if lmdb_folder not in _clients:
            _clients[lmdb_folder] = FileClient("lmdb", db_paths=lmdb_folder) if lmdb_folder else FileClient("disk")
        return _clients[lmdb_folder]


def _begin_after_fork() -> None:
    """Close inherited clients, because LMDB wants a folder to be used by the process that opened it."""
    global _clients_lock
    for folder, client in _clients.items():
        if folder:
            for environment in client.client._client.values():
                environment.close()
    _clients.clear()
    _clients_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_begin_after_fork)
