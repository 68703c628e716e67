"""Tell which images are not plain colour images of 8 bits, by their headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from PIL import Image, ImageFile

_MOST = 2000
_GREY_MODES = ("1", "L", "LA", "La", "F", "I")
HEADER_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for files that are no image, or too large a one."""

GREY, ALPHA, DEEP = "greyscale", "with an alpha channel", "of 16 bits or more a channel"


def unusual_images(paths: Iterable[str | Path], keeps_depth: bool = False) -> str | None:
    """Say how many of some images a dataset converts; only headers are read.

    Args:
        paths: Files; after the first 2000 no more are looked at. Those that Pillow does not know do not count.
        keeps_depth: Whether the dataset reads 16 bits as they are, as BasicSR's do not.

    Returns:
        One line, None if all are plain.
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


def kinds_of_file(path: str | Path) -> list[str]:
    """Return in which ways a file is unusual: `GREY`, `ALPHA`, `DEEP`; none if it cannot be read."""
    try:
        with Image.open(path) as image:
            return kinds_of_image(image)
    except HEADER_ERRORS:
        return []


def kinds_of_image(image: Image.Image) -> list[str]:
    """Return in which ways an opened image is unusual: `GREY`, `ALPHA`, `DEEP`."""
    grey = image.mode in _GREY_MODES or image.mode.startswith("I;")
    alpha = "A" in image.getbands() or "transparency" in image.info
    # Pillow has no mode for colour of 16 bits; how it is stored is what its decoder is told.
    decoders = image.tile if isinstance(image, ImageFile.ImageFile) else ()
    deep = image.mode[0] in "IF" or any("16" in str(arguments) for _, _, _, arguments in decoders)
    return [kind for kind, true in ((GREY, grey), (ALPHA, alpha), (DEEP, deep)) if true]
