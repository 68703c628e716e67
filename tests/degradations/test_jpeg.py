"""JPEG against OpenCV's encoder and decoder (libjpeg-turbo, in every wheel of opencv-python): the same pixels."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from bsr_plugins.degradations.stages.jpeg import jpeg
from tests.degradations.photographs import photograph

Image = NDArray[np.uint8]
PHOTOGRAPHS = ["astronaut.png", "coffee.png", "chelsea.png"]
# whole blocks of 8 and of 16, odd sides, single rows and columns; a side of up to 4 has one or two chroma samples
SIZES = [
    *[(8, 8), (16, 16), (24, 40), (64, 48), (15, 17), (17, 33), (31, 64), (9, 23)],
    *[(1, 1), (1, 16), (1, 37), (37, 1), (2, 40), (40, 2), (3, 5), (5, 3), (4, 4), (50, 4), (50, 5), (2, 2)],
]


def crop(name: str, height: int, width: int) -> Image:
    levels = (photograph(name)[:, 100 : 100 + height, 150 : 150 + width] * 255).round().byte()
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy())


def noise(height: int, width: int, *, two_levels: bool = False, seed: int = 0) -> Image:
    brightest = 1 if two_levels else 255
    levels = np.random.default_rng(seed).integers(0, brightest, (height, width, 3), endpoint=True)
    return (levels * (255 // brightest)).astype(np.uint8)


def opencv(image: Image, quality: int) -> Image:
    _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(decoded[..., ::-1], dtype=np.uint8)


def to_tensor(image: Image) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def to_image(x: Tensor) -> Image:
    return np.asarray((x * 255).round().byte().permute(1, 2, 0), dtype=np.uint8)


def assert_equal_to_opencv(image: Image, qualities: list[int]) -> None:
    """Code an image at many qualities, as one batch."""
    made = jpeg(to_tensor(image).expand(len(qualities), -1, -1, -1), torch.tensor(qualities))
    for quality, x in zip(qualities, made, strict=True):
        np.testing.assert_array_equal(to_image(x), opencv(image, quality), err_msg=f"quality {quality}")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_at_every_quality(name: str) -> None:
    assert_equal_to_opencv(crop(name, 56, 72), list(range(1, 101)))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_size(height: int, width: int) -> None:
    qualities = [1, 5, 23, 50, 77, 95, 100]
    assert_equal_to_opencv(crop("coffee.png", height, width), qualities)
    assert_equal_to_opencv(noise(height, width), qualities)
    assert_equal_to_opencv(noise(height, width, two_levels=True), qualities)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 100), st.integers(0, 2**32))
def test_random_images(height: int, width: int, quality: int, seed: int) -> None:
    assert_equal_to_opencv(noise(height, width, two_levels=seed % 2 == 0, seed=seed), [quality])
    assert_equal_to_opencv(crop(PHOTOGRAPHS[seed % 3], height, width), [quality])


def test_a_whole_photograph() -> None:
    assert_equal_to_opencv(crop("chelsea.png", 199, 301), [10, 75])


def test_every_sample_has_its_own_quality_and_views_share_it() -> None:
    qualities = [3, 40, 98]
    x = torch.stack([torch.stack([to_tensor(crop(name, 20, 27)) for name in PHOTOGRAPHS[:2]])] * 3)
    made = jpeg(x, torch.tensor(qualities))
    assert made.shape == (3, 2, 3, 20, 27)
    for sample, coded, quality in zip(x, made, qualities, strict=True):
        for view, image in zip(sample, coded, strict=True):
            np.testing.assert_array_equal(to_image(image), opencv(to_image(view), quality))
    assert torch.equal(jpeg(x[:, 0], torch.tensor(qualities)), made[:, 0])


@pytest.mark.parametrize("quality", [1.4, 30.4, 49.9, 50.25, 62.3, 94.5, 97.25, 99.8])
def test_between_whole_qualities_are_files_that_libjpeg_can_write(quality: float) -> None:
    """Their quantisation tables, scaled by hand, given to Pillow's libjpeg."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    standard = standard_tables()
    tables = [[min(max(int((step * percent + 50) // 100), 1), 255) for step in table] for table in standard]
    image = crop("coffee.png", 45, 62)
    file = io.BytesIO()
    PillowImage.fromarray(image).save(file, "JPEG", qtables=tables, subsampling="4:2:0")
    np.testing.assert_array_equal(
        to_image(jpeg(to_tensor(image)[None], torch.tensor([quality]))[0]), PillowImage.open(file)
    )


def standard_tables() -> list[list[int]]:
    """Return the tables of quality 50, which libjpeg takes as they stand in the standard, as Pillow reads them."""
    file = io.BytesIO()
    PillowImage.new("RGB", (8, 8)).save(file, "JPEG", quality=50)
    coded = PillowImage.open(file)
    assert isinstance(coded, JpegImageFile)
    return [list(table) for table in coded.quantization.values()]


def test_rounds_and_clamps_first_as_an_encoder_does() -> None:
    x = to_tensor(crop("astronaut.png", 24, 24))[None]
    outside = torch.where(x < 0.1, x - 0.2, torch.where(x > 0.9, x + 0.2, x + 0.001))
    levels = (outside.clamp(0, 1) * 255).round() / 255
    assert not torch.equal(levels, outside)
    assert torch.equal(jpeg(outside, torch.tensor([60])), jpeg(levels, torch.tensor([60])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_type_and_ends_on_the_8_bit_grid(dtype: torch.dtype) -> None:
    made = jpeg(torch.rand(2, 3, 19, 10, dtype=dtype), torch.tensor([30, 90]))
    assert made.dtype == dtype
    levels = made.double() * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert float(levels.min()) >= 0
    assert float(levels.max()) <= 255 + 1e-4
