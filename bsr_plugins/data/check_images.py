"""Check every image of a data set before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from bsr_plugins.blocks import integer
from bsr_plugins.data.decode import HEADER_ERRORS, UndecodableError, decode, kinds_of_file
from bsr_plugins.data.image_files import (
    ENDINGS,
    LMDB_ENDING,
    ImageFile,
    files_below,
    files_in_folder,
    images_in_lmdb,
    read_bytes,
)
from bsr_plugins.data.workers import worker_pool
from bsr_plugins.errors import BadImageError, OptionError

_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class CheckRequest:
    """What is to be checked.

    Attributes:
        roots: Folders of images, searched with their sub-folders, or LMDBs of BasicSR's tool.
        lq: The folder or LMDB of the LQ images that belong to the one root.
        lq_name: What an LQ image is called, `{}` standing for the name of its GT image.
        gt_size: The least that both sides of an image must have.
        scale: What both sides must be multiples of; with `lq`, how much larger a GT image is.
    """

    roots: tuple[str, ...]
    lq: str | None = None
    lq_name: str = "{}"
    gt_size: int | None = None
    scale: int | None = None

    def __post_init__(self) -> None:
        for name in ("gt_size", "scale"):
            if getattr(self, name) is not None:
                integer(getattr(self, name), name, 1)
        if self.lq is not None and self.scale is None:
            raise OptionError("scale: is missing, expected one with lq")
        if self.lq is not None and len(self.roots) > 1:
            raise OptionError(f"lq: {self.lq!r} with {len(self.roots)} folders, expected one folder of GT images")
        if "{}" not in self.lq_name:
            raise OptionError(f"lq_name: {self.lq_name!r}, expected {{}} in it, for the name of the GT image")


class Fault(NamedTuple):
    path: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        count: The number of images.
        faults: Bad files, and what is wrong with each; a file may have several faults.
        kinds: How many whole images are greyscale, have alpha, or more than 8 bits a channel.
        sizes: How many whole images there are of each size (height, width).
        others: Files with endings of no image, which were not checked.
    """

    count: int
    faults: tuple[Fault, ...]
    kinds: Counter[str]
    sizes: Counter[tuple[int, int]]
    others: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield the report as text: a line for each fault, then the counts."""
        for fault in self.faults:
            yield f"{fault.path}: {fault.reason}"
        yield f"{self.count} images checked, {len({fault.path for fault in self.faults})} bad"
        if self.sizes:
            by_area = sorted(self.sizes, key=lambda size: size[0] * size[1])
            (least_height, least_width), (height, width) = by_area[0], by_area[-1]
            yield f"sizes: {len(self.sizes)}, from {least_width}x{least_height} to {width}x{height}"
        if self.kinds:
            yield "unusual: " + ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        if self.others:
            more = f" and {len(self.others) - _LISTED} more" if len(self.others) > _LISTED else ""
            yield (
                f"not checked, as they do not end like images (BasicSR's datasets read all files of a folder): "
                f"{', '.join(self.others[:_LISTED])}{more}"
            )


def check_images(request: CheckRequest, processes: int = 1, progress: bool = False) -> Report:
    """Decode every image to its end and list all that a training run would stumble over.

    Faults are: files that cannot be read, are empty, no image, truncated, of another depth than 8 or 16 bits unsigned,
    smaller than `gt_size`, no multiples of `scale`, not of the size that their LMDB lists, or have the same name as
    another file of their folder but for the ending and case. With `lq`: images without a partner, and partners whose
    sizes do not differ by the scale.

    Raises:
        OptionError: A folder is missing or holds no image.
        BSRError: A process died.
        OSError: A folder cannot be listed.
    """
    integer(processes, "processes", 1)
    roots = [root for root in (*request.roots, request.lq) if root is not None]
    sets = [_list_images(root) for root in roots]
    images = [image for images in sets for image in images]
    num_gt = len(images) - (0 if request.lq is None else len(sets[-1]))
    with worker_pool(_Checker(images, num_gt, request), len(images), min(processes, len(images)), progress) as run:
        results: list[_Seen] = run(_Checker.check, "checking")
    faults = [Fault(image.path, seen.reason) for image, seen in zip(images, results, strict=True) if seen.reason]
    for one in sets:
        first: dict[str, str] = {}
        for image in one:
            same = first.setdefault(image.name.casefold(), image.path)
            if same != image.path:
                faults.append(Fault(image.path, f"has the same name as {same}"))
    if request.lq is not None:
        sizes = {image.path: seen.size for image, seen in zip(images, results, strict=True)}
        faults += _unpaired(sets[0], sets[1], sizes, request)
    return Report(
        len(images),
        tuple(faults),
        Counter(kind for seen in results for kind in seen.kinds),
        Counter(seen.size for seen in results if seen.size is not None),
        tuple(file for root in roots for file in _other_files(root)),
    )


class _Seen(NamedTuple):
    """What is wrong with an image, if anything; size and kinds of one that can be decoded."""

    reason: str
    size: tuple[int, int] | None = None
    kinds: tuple[str, ...] = ()


class _Checker(NamedTuple):
    """What every process gets; the images from `num_gt` on are LQ."""

    images: Sequence[ImageFile]
    num_gt: int
    request: CheckRequest

    def check(self, number: int) -> _Seen:
        image, data = self.images[number], b""
        try:
            data = read_bytes(image)
            height, width, _ = decode(data, image.path).shape
        except UndecodableError:
            return _Seen(_what_it_is(data))
        except BadImageError as error:
            return _Seen(str(error).removeprefix(f"{image.path}: "))
        reason = self._why_unfit(image, height, width, number < self.num_gt)
        return _Seen(reason, (height, width), tuple(kinds_of_file(BytesIO(data))))

    def _why_unfit(self, image: ImageFile, height: int, width: int, is_gt: bool) -> str:
        request, size = self.request, f"is {width}x{height}"
        if image.lmdb and sorted((height, width)) != sorted((image.height, image.width)):
            return f"{size}, but was listed as {image.width}x{image.height}"
        if not is_gt:  # its size is compared with that of the GT image
            return ""
        if request.gt_size is not None and min(height, width) < request.gt_size:
            return f"{size}, expected both sides at least gt_size {request.gt_size}"
        if request.scale is not None and (height % request.scale or width % request.scale):
            return f"{size}, expected multiples of scale {request.scale}"
        return ""


def _what_it_is(data: bytes) -> str:
    if not data:
        return "is empty (0 bytes)"
    try:
        with Image.open(BytesIO(data)) as image:
            return f"is truncated or damaged ({image.format}, {len(data)} bytes)"
    except HEADER_ERRORS:
        return f"is no image ({len(data)} bytes)"


def _list_images(root: str) -> list[ImageFile]:
    if Path(root).suffix == LMDB_ENDING:
        return images_in_lmdb(root, "folder")
    if not Path(root).expanduser().is_dir():
        raise OptionError(f"folder: '{root}' is missing or no folder, expected a folder of images or an LMDB")
    return files_in_folder(root, "folder")


def _other_files(root: str) -> list[str]:
    files = [] if Path(root).suffix == LMDB_ENDING else files_below(Path(root).expanduser())
    return sorted(str(file) for file in files if file.suffix.lower() not in ENDINGS)


def _unpaired(
    gt: Sequence[ImageFile], lq: Sequence[ImageFile], sizes: dict[str, tuple[int, int] | None], request: CheckRequest
) -> Iterator[Fault]:
    scale, partners = request.scale, {image.name: image for image in lq}
    assert scale is not None
    for image in gt:
        place = PurePosixPath(image.name)
        name = str(place.with_name(request.lq_name.replace("{}", place.name)))
        partner = partners.pop(name, None)
        if partner is None:
            yield Fault(image.path, f"has no LQ image {name} in {request.lq}")
            continue
        size, lq_size = sizes[image.path], sizes[partner.path]
        if size and lq_size and size != (lq_size[0] * scale, lq_size[1] * scale):
            expected = f"expected 1/{scale} of {image.path}, which is {size[1]}x{size[0]}"
            yield Fault(partner.path, f"is {lq_size[1]}x{lq_size[0]}, {expected}")
    for image in partners.values():
        yield Fault(image.path, f"has no GT image in {request.roots[0]}")
