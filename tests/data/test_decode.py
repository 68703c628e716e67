"""What is read from odd files, each made here and read as a whole file."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data

from bsr_plugins.data.decode import Pixels, decode, to_tensor
from bsr_plugins.errors import BadImageError

HEIGHT, WIDTH = 12, 10
Array = npt.NDArray[np.generic]


def photograph(channels: int, depth: type[np.unsignedinteger]) -> Array:
    """Cut a piece of a photograph; with 16 bits, the lower byte is not a copy of the upper one."""
    rgb = data.astronaut()[100 : 100 + HEIGHT, 200 : 200 + WIDTH]
    alpha = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    alpha[0] = 0
    pixels = np.concatenate([rgb, alpha], axis=2)[..., :channels]
    if depth is np.uint16:
        pixels = pixels.astype(np.uint16) * 256 + 77
    return pixels


def png(pixels: Array, colour_type: int, bits: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a PNG by its specification: neither library writes all kinds."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in pixels)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def by_pillow(image: Image.Image, file_type: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_type, **options)
    return buffer.getvalue()


def by_opencv(ending: str, pixels: Array) -> bytes:
    return bytes(cv2.imencode(ending, pixels)[1].tobytes())


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("colour_type", [0, 2, 4, 6], ids=["grey", "rgb", "grey+alpha", "rgba"])
def test_png_kinds(colour_type: int, depth: type[np.unsignedinteger]) -> None:
    stored = photograph({0: 1, 2: 3, 4: 2, 6: 4}[colour_type], depth)
    pixels = decode(png(stored, colour_type, 8 * np.dtype(depth).itemsize), "x.png")
    colours = {0: stored[..., [0, 0, 0]], 2: stored, 4: stored[..., [0, 0, 0]], 6: stored[..., :3]}[colour_type]
    assert pixels.dtype == depth
    np.testing.assert_array_equal(pixels, colours)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4], ids=["grey", "rgb", "rgba"])
def test_tiff_kinds(channels: int, depth: type[np.unsignedinteger]) -> None:
    stored = photograph(channels, depth)
    bgr = stored if channels == 1 else stored[..., [2, 1, 0, 3][:channels]]
    pixels = decode(by_opencv(".tiff", bgr), "x.tiff")
    assert pixels.dtype == depth
    np.testing.assert_array_equal(pixels, stored[..., [0, 0, 0] if channels == 1 else [0, 1, 2]])


def test_palette_and_transparent_colour() -> None:
    indexed = Image.fromarray(photograph(3, np.uint8)).quantize(16)
    colours = np.asarray(indexed.convert("RGB"))
    np.testing.assert_array_equal(decode(by_pillow(indexed, "PNG"), "x.png"), colours)
    np.testing.assert_array_equal(decode(by_pillow(indexed, "PNG", transparency=0), "x.png"), colours)
    stored = photograph(3, np.uint16)
    chunk = (b"tRNS", stored[0, 0].astype(">u2").tobytes())
    np.testing.assert_array_equal(decode(png(stored, 2, 16, chunk), "x.png"), stored)


def test_one_bit() -> None:
    bits = np.greater(photograph(1, np.uint8)[..., 0], 60)
    pixels = decode(by_pillow(Image.fromarray(bits), "PNG"), "x.png")
    assert 0 < bits.mean() < 1
    np.testing.assert_array_equal(pixels, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_type", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(file_type: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    written = by_pillow(Image.fromarray(data.astronaut()[:64, :48]), file_type, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(written))).convert("RGB")
    difference = decode(written, "x").astype(int) - np.asarray(upright, dtype=int)
    assert np.abs(difference).max() <= 2  # the two JPEG decoders may round differently


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", [np.float32, np.float64, np.int32])
def test_other_depths_are_refused(depth: type[np.generic], channels: int) -> None:
    written = by_opencv(".tiff", photograph(channels, np.uint8).astype(depth))
    with pytest.raises(BadImageError, match=rf"^deep\.tiff: has {np.dtype(depth)} pixels, expected 8 or 16 bits"):
        decode(written, "deep.tiff")


WHOLE_FILES = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 90}),
    "progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "webp": ("WEBP", {}),
    "ppm": ("PPM", {}),
}


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.97])
@pytest.mark.parametrize("kind", WHOLE_FILES)
def test_truncated(kind: str, kept: float) -> None:
    file_type, options = WHOLE_FILES[kind]
    written = by_pillow(Image.fromarray(data.astronaut()[:200, :200]), file_type, **options)
    assert decode(written, "whole").shape == (200, 200, 3)
    with pytest.raises(BadImageError, match=r"^cut: cannot be decoded, expected a whole image file"):
        decode(written[: int(len(written) * kept)], "cut")


def test_jpeg_with_thumbnail_and_trailer() -> None:
    photo = Image.fromarray(data.astronaut()[:100, :100])
    thumbnail = by_pillow(photo.resize((16, 16)), "JPEG")
    whole = by_pillow(photo, "JPEG")
    segment = b"\xff\xe5" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    with_thumbnail = whole[:2] + segment + whole[2:]
    np.testing.assert_array_equal(decode(with_thumbnail, "x.jpg"), decode(whole, "x.jpg"))
    np.testing.assert_array_equal(decode(with_thumbnail + b"\xff\xda trailer", "x.jpg"), decode(whole, "x.jpg"))
    with pytest.raises(BadImageError):
        decode(with_thumbnail[:-200], "x.jpg")


def test_truncated_jpeg_where_opencv_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before version 5 OpenCV returned an image for it, with anything in the missing part."""
    photo = Image.fromarray(data.astronaut()[:100, :100])
    thumbnail = by_pillow(photo.resize((16, 16)), "JPEG")
    whole = by_pillow(photo, "JPEG", exif=Image.Exif())
    segment = b"\xff\xe5" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((100, 100, 3), np.uint8))
    for file in (whole, whole[:2] + segment + whole[2:]):
        assert decode(file, "x.jpg").shape == (100, 100, 3)
        for kept in (0.6, 0.97):
            with pytest.raises(BadImageError, match=r"^x\.jpg: cannot be decoded"):
                decode(file[: int(len(file) * kept)], "x.jpg")


@pytest.mark.parametrize("content", [b"", b"just text", b"\xff\xd8", b"\xff\xd8 no segment", b"\x89PNG\r\n\x1a\n"])
def test_no_image(content: bytes) -> None:
    with pytest.raises(BadImageError, match=r"^x\.png: cannot be decoded"):
        decode(content, "x.png")


def test_to_tensor_scales_by_depth() -> None:
    ramp = np.linspace(0, 1, 24).reshape(2, 4, 3)
    files: tuple[tuple[Pixels, int], ...] = (
        ((ramp * 255).astype(np.uint8), 255),
        ((ramp * 65535).astype(np.uint16), 65535),
    )
    for pixels, end in files:
        tensor = to_tensor(pixels)
        assert tensor.dtype == torch.float32
        assert tensor.shape == (3, 2, 4)
        assert tensor.is_contiguous()
        assert (float(tensor.min()), float(tensor.max())) == (0.0, 1.0)
        expected = pixels.astype(np.float64).transpose(2, 0, 1) / end
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-7)
