"""Turn the bytes of an image file into pixels and tensors, and find unusual kinds of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from bsr_plugins.errors import BadImageError

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

# ANYDEPTH keeps 16 bits; COLOR makes three channels of whatever there is and applies the orientation.
_FLAGS = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR
_DEPTHS = (np.dtype(np.uint8), np.dtype(np.uint16))

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"

_MOST = 2000
_GREY_MODES = ("1", "L", "LA", "La", "F", "I")
HEADER_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for files that are no image, or too large a one."""

GREY, ALPHA, DEEP = "greyscale", "with an alpha channel", "of 16 bits or more a channel"


class UndecodableError(BadImageError):
    """A file is no whole image."""


def decode(data: bytes, path: str) -> Pixels:
    """Decode the bytes of an image file, which `path` names in messages, with OpenCV.

    Greyscale and palette files become three channels, alpha is dropped (colours under transparency stay as they are),
    16-bit files keep their precision, and the EXIF orientation is applied (in WebP files only by OpenCV 5 and newer).

    Returns:
        (H, W, 3) RGB pixels, 8 or 16 bits unsigned.

    Raises:
        BadImageError: The data is no image or truncated (an `UndecodableError`), or its pixels are of other depths.
    """
    pixels = _opencv(data, _FLAGS)
    if pixels is None:
        # OpenCV cannot turn greyscale of other depths into colour, but it can read their depth.
        pixels = _opencv(data, cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.dtype in _DEPTHS:
            raise UndecodableError(f"{path}: cannot be decoded, expected a whole image file ({len(data)} bytes given)")
    if pixels.dtype not in _DEPTHS:
        raise BadImageError(f"{path}: has {pixels.dtype} pixels, expected 8 or 16 bits unsigned")
    rgb: Pixels = pixels[..., ::-1]
    return rgb


def to_tensor(pixels: Pixels) -> Tensor:
    """Turn (H, W, 3) pixels of 8 or 16 bits into a contiguous float32 tensor (3, H, W) in [0, 1]."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(planes / np.float32(np.iinfo(pixels.dtype).max))


def _opencv(data: bytes, flags: int) -> Any:
    if not data or _is_cut_jpeg(data):
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # for some files it raises, for most it returns None
        return None


def _is_cut_jpeg(data: bytes) -> bool:
    """Tell whether a JPEG has no end: OpenCV before 5 fills the rest with grey or with what memory held."""
    if not data.startswith(_JPEG_START):
        return False
    position = len(_JPEG_START)
    while data[position : position + 2] != _JPEG_SCAN:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position : position + 1] != b"\xff" or length < 2:
            return False  # no segment begins here: the header is damaged, which OpenCV notices
        position += 2 + length
    return data.find(_JPEG_END, position) < 0


def unusual_images(paths: Iterable[str | Path], keeps_depth: bool = False) -> str | None:
    """Say in one line how many of some images a dataset converts; None if all are plain.

    Only the headers of the first 2000 are read, and those that Pillow does not know do not count.

    Args:
        paths: Files.
        keeps_depth: Whether the dataset reads 16 bits as they are, as BasicSR's do not.
    """
    with ThreadPoolExecutor() as pool:
        kinds = list(pool.map(kinds_of_file, islice(paths, _MOST)))
    counts = Counter(kind for some in kinds for kind in some)
    converted = [kind for kind in ((GREY, ALPHA) if keeps_depth else (GREY, ALPHA, DEEP)) if counts[kind]]
    if not converted:
        return None
    parts = ", ".join(f"{counts[kind]} {kind}" for kind in converted)
    depth = "" if keeps_depth else " of 8 bits"
    return f"among the first {len(kinds)} files are {parts}; they are read as RGB{depth} without alpha"


def kinds_of_file(file: str | Path | IO[bytes]) -> list[str]:
    """Return in which ways an image file is unusual: `GREY`, `ALPHA`, `DEEP`; none if its header cannot be read."""
    try:
        with Image.open(file) as image:
            grey = image.mode in _GREY_MODES or image.mode.startswith("I;")
            alpha = "A" in image.getbands() or "transparency" in image.info
            # Pillow has no mode for colour of 16 bits; how it is stored is in its decoder's arguments.
            deep = image.mode[0] in "IF" or any("16" in str(arguments) for _, _, _, arguments in image.tile)
    except HEADER_ERRORS:
        return []
    return [kind for kind, true in ((GREY, grey), (ALPHA, alpha), (DEEP, deep)) if true]
