"""Turn the bytes of an image file into pixels, and refuse what would be read as something else."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bsr_plugins.errors import BadImageError

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

# ANYDEPTH keeps 16 bits; COLOR makes three channels of whatever there is and applies the orientation.
_FLAGS = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR
_DEPTHS = (np.dtype(np.uint8), np.dtype(np.uint16))

_JPEG_START = b"\xff\xd8"
_JPEG_SCAN = b"\xff\xda"
_JPEG_END = b"\xff\xd9"


class DepthError(BadImageError):
    """An image file is whole, but its pixels are neither of 8 nor of 16 bits unsigned."""


def decode(data: bytes, path: str) -> Pixels:
    """Decode an image with OpenCV.

    Greyscale and palette files become three channels, alpha is dropped (colours under transparency stay as
    they are), 16-bit files keep their precision, and the EXIF orientation is applied (in WebP files only by
    OpenCV 5 and newer).

    Args:
        data: A whole image file.
        path: The file's name, for messages.

    Returns:
        (H, W, 3) RGB pixels, 8 or 16 bits unsigned.

    Raises:
        BadImageError: The data is no image, or truncated, or (a `DepthError`) has pixels other than 8 or 16 bits
            unsigned.
    """
    pixels = _opencv(data, _FLAGS)
    if pixels is None:
        # OpenCV cannot turn greyscale of other depths into colour, but it can tell their depth.
        pixels = _opencv(data, cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.dtype in _DEPTHS:
            raise BadImageError(f"{path}: cannot be decoded, expected a whole image file ({len(data)} bytes given)")
    if pixels.dtype not in _DEPTHS:
        raise DepthError(f"{path}: has {pixels.dtype} pixels, expected 8 or 16 bits unsigned")
    rgb: Pixels = pixels[..., ::-1]
    return rgb


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
