"""Sharpening against BasicSR's, against the same in float64 with OpenCV's 2-D filter, and at every size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import bsr_plugins  # noqa: F401  isort: skip  (BasicSR cannot be imported before it)
from basicsr.utils.img_process_util import USMSharp, usm_sharp

from bsr_plugins.degradations.blur import sharpen
from tests.degradations.photographs import views

GREY_LEVELS = 255


def reference(image: Tensor, weight: float = 0.5, threshold: float = 10) -> NDArray[np.float64]:
    """Sharpen an image, shape (3, H, W), in float64."""
    x = image.numpy().transpose(1, 2, 0)
    profile = cv2.getGaussianKernel(51, 0)

    def blur(plane: NDArray[np.float64]) -> NDArray[np.float64]:
        blurred = cv2.filter2D(plane, cv2.CV_64F, profile @ profile.T, borderType=cv2.BORDER_REFLECT_101)
        return np.asarray(blurred)

    residual = x - blur(x)
    mask = blur((np.abs(residual) * GREY_LEVELS > threshold).astype(np.float64))
    sharp = np.clip(x + weight * residual, 0, 1)
    return np.asarray((mask * sharp + (1 - mask) * x).transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(96, 128), (26, 26), (27, 150), (60, 41)])
def test_equals_the_float64_reference(height: int, width: int) -> None:
    x = views(height, width, batch=2)[:, 0]
    made = sharpen(x)
    assert made.dtype == torch.float64
    for image, sharpened in zip(x, made, strict=True):
        assert float((sharpened - image).abs().max()) * GREY_LEVELS > 5
        np.testing.assert_allclose(sharpened, reference(image), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 30), (2, 3), (7, 25), (25, 60), (13, 13)])
def test_images_smaller_than_the_radius_are_reflected_again_and_again(height: int, width: int) -> None:
    x = views(height, width)[:, 0]
    np.testing.assert_allclose(sharpen(x)[0], reference(x[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("weight", "threshold"), [(1.5, 10), (0.5, 0), (0.8, 3.5)])
def test_other_settings_equal_the_reference(weight: float, threshold: float) -> None:
    x = views(50, 60)[:, 0]
    expected = reference(x[0], weight, threshold)
    np.testing.assert_allclose(sharpen(x, weight, threshold)[0], expected, rtol=0, atol=1e-12)


def test_equals_both_sharpenings_of_basicsr() -> None:
    """In float32 a pixel at the threshold may fall to either side, which counts for its share of the blurred mask."""
    x = views(96, 120, batch=2)[:, 0].float()
    made = sharpen(x)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, USMSharp()(x), rtol=0, atol=0.01 / GREY_LEVELS)
    for image, sharpened in zip(x, made, strict=True):
        expected = usm_sharp(image.numpy().transpose(1, 2, 0)).transpose(2, 0, 1)
        torch.testing.assert_close(sharpened, torch.from_numpy(expected), rtol=0, atol=0.01 / GREY_LEVELS)


def test_leaves_what_differs_little_from_its_blur() -> None:
    ramp = torch.linspace(0.2, 0.6, 200, dtype=torch.float64).expand(1, 3, 40, 200).contiguous()
    assert torch.equal(sharpen(ramp), ramp)
    assert not torch.equal(sharpen(ramp, threshold=0.01), ramp)


def test_stays_in_range_and_takes_any_leading_dimensions() -> None:
    x = (views(48, 40, batch=2, count=3) > 0.5).double()
    made = sharpen(x)
    assert made.shape == x.shape
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    for sample, sharpened in zip(x.flatten(0, 1), made.flatten(0, 1), strict=True):
        torch.testing.assert_close(sharpen(sample), sharpened, rtol=0, atol=1e-14)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_gives_the_same_images() -> None:
    x = views(96, 120, batch=2)
    on_cuda = sharpen(x.to("cuda"))
    assert on_cuda.device.type == "cuda"
    torch.testing.assert_close(on_cuda.cpu(), sharpen(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(sharpen(x.float().to("cuda")).cpu(), sharpen(x).float(), rtol=0, atol=0.01 / GREY_LEVELS)
