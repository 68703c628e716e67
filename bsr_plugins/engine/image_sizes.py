"""What the checks know of a dataset's images without reading a pixel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basicsr.utils import scandir
from PIL import Image

from bsr_plugins.data.image_files import images_in_lmdb
from bsr_plugins.errors import BadImageError, OptionError

Size = tuple[int, int]
"""Height and width."""

_ORIENTATION, _SWAPPED = 0x0112, (5, 6, 7, 8)  # EXIF's orientations that swap the sides
_NAMED = 3  # images without a partner


@dataclass
class Found:
    """What a dataset has.

    Attributes:
        items: How many items it has.
        gt_sizes: Sizes of its HR images; None where they are not known.
        has_gt: Whether its items have HR images; None where that is not known.
        channels: Of its images.
    """

    items: int
    gt_sizes: list[Size] | None = None
    has_gt: bool | None = None
    channels: int = 3


@dataclass
class Pairs:
    """The images of BasicSR's `PairedImageDataset`, and their sizes.

    Attributes:
        gt: HR images: files, or LMDB folders with keys.
        lq: Their LR images.
        gt_sizes: Sizes of the HR images.
        lq_sizes: Sizes of the LR images.
    """

    gt: list[str]
    lq: list[str]
    gt_sizes: list[Size] = field(default_factory=list)
    lq_sizes: list[Size] = field(default_factory=list)


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
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadImageError(f"{file}: cannot be read ({reason}), expected an image file") from error
    return (width, height) if turned else (height, width)


def files_of(folder: object, place: str) -> list[str]:
    """List the files of a folder as BasicSR does: not those of folders in it, and none that begins with a dot.

    Raises:
        OptionError: It is missing or empty.
    """
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise OptionError(f"{place}: {folder!r} is missing or no folder, expected a folder of images")
    names = sorted(scandir(folder))
    if not names:
        raise OptionError(f"{place}: {folder!r} holds no image, expected a folder of images")
    return names


def paired_files(dataset_opt: Mapping[str, Any], place: str) -> Pairs:
    """Find the pairs of BasicSR's `PairedImageDataset` on disk.

    Raises:
        OptionError: A folder is missing or empty, or there is no LR image for an HR one.
    """
    gt_root, lq_root = dataset_opt["dataroot_gt"], dataset_opt["dataroot_lq"]
    gt_names, lq_names = files_of(gt_root, f"{place}.dataroot_gt"), files_of(lq_root, f"{place}.dataroot_lq")
    template, meta = dataset_opt.get("filename_tmpl", "{}"), dataset_opt.get("meta_info_file")
    if meta is not None:
        if not Path(str(meta)).is_file():
            raise OptionError(f"{place}.meta_info_file: {meta!r}: there is no such file")
        gt_names = [line.strip().split(" ")[0] for line in Path(meta).read_text().splitlines()]
    partners = {name: f"{template.format(Path(name).stem)}{Path(name).suffix}" for name in gt_names}
    if meta is None and len(gt_names) != len(lq_names):
        raise OptionError(
            f"{place}.dataroot_lq: {lq_root!r} holds {len(lq_names)} files, expected {len(gt_names)}, as dataroot_gt"
            f"{_partnerless(partners.values(), lq_names)} (folders and broken links are no files)"
        )
    there, pairs = set(lq_names), Pairs([], [])
    for name in gt_names:
        if partners[name] not in there:
            raise OptionError(
                f"{place}.dataroot_lq: {lq_root!r} holds no {partners[name]}, expected it for dataroot_gt's {name}"
            )
        pairs.gt.append(str(Path(gt_root) / name))
        pairs.lq.append(str(Path(lq_root) / partners[name]))
    return pairs


def paired_in_lmdb(dataset_opt: Mapping[str, Any], place: str) -> Pairs:
    """Find the pairs of BasicSR's `PairedImageDataset` in two LMDBs, with the sizes that their `meta_info.txt` have.

    Raises:
        OptionError: One is missing, is no LMDB of BasicSR's tool or holds no image, or their keys are not the same.
    """
    gt_root, lq_root = dataset_opt["dataroot_gt"], dataset_opt["dataroot_lq"]
    gt_images = {image.key: image for image in images_in_lmdb(gt_root, f"{place}.dataroot_gt")}
    lq_images = images_in_lmdb(lq_root, f"{place}.dataroot_lq")
    unmatched = _partnerless(gt_images, [image.key for image in lq_images])
    if unmatched:
        raise OptionError(
            f"{place}.dataroot_lq: {lq_root!r} has other keys than {gt_root!r}, expected the same{unmatched}"
        )
    pairs = Pairs([], [])
    for lq_image in lq_images:
        for image, files, sizes in (
            (gt_images[lq_image.key], pairs.gt, pairs.gt_sizes),
            (lq_image, pairs.lq, pairs.lq_sizes),
        ):
            files.append(image.path)
            sizes.append((image.height, image.width))
    return pairs


def _partnerless(wanted: Iterable[str], there: Iterable[str]) -> str:
    """Name the first LR images that are wanted and not there, and those that are there and not wanted."""
    lacking, surplus = sorted(set(wanted) - set(there)), sorted(set(there) - set(wanted))
    text = f"; there is no LR image {', '.join(lacking[:_NAMED])}" if lacking else ""
    return text + (f"; there is no HR image for {', '.join(surplus[:_NAMED])}" if surplus else "")
