"""align8 against OpenCV, Pillow and libjpeg themselves, stage by stage, on photographs."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from bsr_plugins.degradations import (
    ClassicalDegradation,
    classical_params,
    protocol_degradation,
    protocol_settings,
    with_noise_seed,
)
from bsr_plugins.degradations.protocols import Align8Degradation
from bsr_plugins.errors import BSRError
from tests.degradations.photographs import dataset, photograph, views
from tests.degradations.reference import gaussian_kernel

Levels = npt.NDArray[np.uint8]
SEED = 7
NAMES = [setting.name for setting in protocol_settings("align8", 4)]


def levels(image: Tensor) -> Levels:
    """Return the grey levels of an image (3, H, W) on the 8-bit grid, shape (H, W, 3)."""
    scaled = image.double() * 255
    assert torch.allclose(scaled, scaled.round(), atol=1e-4)
    return scaled.round().byte().permute(1, 2, 0).numpy()


def tensor(pixels: Levels) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float()[None] / 255


def cropped(pixels: Levels, scale: int) -> Levels:
    height, width, _ = pixels.shape
    return pixels[: height - height % scale, : width - width % scale]


def to_8bit(pixels: npt.NDArray[Any]) -> Levels:
    return pixels.round().clip(0, 255).astype(np.uint8)


def reference(pixels: Levels, scale: int, stages: str) -> Levels:
    """Degrade an RGB image with the libraries that the field makes its test sets with."""
    if "blur" in stages:
        kernel = gaussian_kernel(2.0, 2.0, 0.0)
        pixels = to_8bit(cv2.filter2D(pixels.astype(np.float64), -1, kernel, borderType=cv2.BORDER_REFLECT_101))
    height, width, _ = pixels.shape
    lq = np.asarray(Image.fromarray(pixels).resize((width // scale, height // scale), Image.Resampling.BICUBIC))
    if "noise" in stages:
        field = torch.randn(3, *lq.shape[:2], generator=torch.Generator().manual_seed(SEED))
        lq = to_8bit(lq + 20 * field.permute(1, 2, 0).double().numpy())
    if "jpeg" in stages:
        _, data = cv2.imencode(".jpg", lq[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 50])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None
        lq = decoded[..., ::-1].astype(np.uint8)
    return lq


def degraded(pixels: Levels, scale: int, name: str) -> Levels:
    (setting,) = (setting for setting in protocol_settings("align8", scale) if setting.name == name)
    lq = protocol_degradation("align8", scale)(tensor(pixels), with_noise_seed(setting.params, SEED))
    assert lq.dtype == torch.float32
    return levels(lq[0])


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_libraries(name: str, scale: int) -> None:
    for file in ("chelsea.png", "coffee.png"):
        pixels = cropped(levels(photograph(file)), scale)
        found, expected = degraded(pixels, scale, name), reference(pixels, scale, name)
        assert found.shape == expected.shape
        different = found != expected
        # A float32 sum of image and noise may fall on the other side of a half.
        assert float(different.mean()) < (1e-4 if "noise" in name else 1e-9), f"{file}: {different.sum()}"


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 8])
def test_clean_is_pillows_bicubic_exactly(scale: int) -> None:
    degradation = Align8Degradation(scale)
    for file in ("astronaut.png", "motorcycle_left.png", "retina.jpg"):
        pixels = cropped(levels(photograph(file)), scale)
        expected = reference(pixels, scale, "clean")
        assert np.array_equal(levels(degradation(tensor(pixels), classical_params())[0]), expected)
        assert np.array_equal(levels(degradation.clean(tensor(pixels))[0]), expected)


def test_clean_and_blurred_on_a_larger_set() -> None:
    for file in dataset("Set14")[:4]:
        pixels = cropped(levels(photograph(file)), 4)
        for name in ("clean", "blur"):
            assert np.array_equal(degraded(pixels, 4, name), reference(pixels, 4, name)), file


def test_it_is_not_matlabs_bicubic() -> None:
    """The two differ at the borders and by Pillow's rounding between the axes."""
    gt = tensor(cropped(levels(photograph("chelsea.png")), 4))
    difference = (Align8Degradation(4).clean(gt) - ClassicalDegradation(4).clean(gt)).abs() * 255
    assert 0.5 < float(difference.max()) < 40
    assert float(difference.mean()) < 1


def test_samples_of_a_batch_with_views_do_not_meet() -> None:
    degradation = Align8Degradation(4)
    gt = views(48, 64, batch=4, count=2).float()
    params = classical_params([0.0, 2.0, 0.0, 1.2], noise_level=[0, 0, 20, 5], noise_seed=[1, 2, 3, 4])
    lq = degradation(gt, params)
    assert lq.shape == (4, 2, 3, 12, 16)
    for number in range(4):
        alone = {name: value[number : number + 1] for name, value in params.items()}
        assert torch.equal(degradation(gt[number : number + 1], alone)[0], lq[number])
    kept = gt.clone()
    degradation(gt, params)
    assert torch.equal(gt, kept)


def test_other_precisions_are_kept() -> None:
    gt = views(48, 44, batch=1)
    params = classical_params(2.0)
    double = Align8Degradation(4)(gt, params)
    half = Align8Degradation(4)(gt.half(), params)
    assert (double.dtype, half.dtype) == (torch.float64, torch.float16)
    assert torch.allclose(double.float(), Align8Degradation(4)(gt.float(), params), atol=1e-6)


def test_an_anisotropic_blur_can_be_asked_for() -> None:
    pixels = levels(views(64, 60)[0, 0])
    kernel = gaussian_kernel(3.0, 1.0, 0.5)
    blurred = to_8bit(cv2.filter2D(pixels.astype(np.float64), -1, kernel, borderType=cv2.BORDER_REFLECT_101))
    found = levels(Align8Degradation(4)(tensor(pixels), classical_params(3.0, 1.0, 0.5))[0])
    assert np.array_equal(found, reference(blurred, 4, "clean"))


def test_sides_have_to_fit() -> None:
    with pytest.raises(BSRError, match="multiples of 4"):
        Align8Degradation(4)(torch.rand(1, 3, 30, 32), classical_params())
    with pytest.raises(BSRError, match="too small for a kernel of 21 taps"):
        Align8Degradation(4)(torch.rand(1, 3, 8, 32), classical_params(2.0))
    assert Align8Degradation(4).smallest_side(classical_params(2.0)) == 11
    assert Align8Degradation(4).smallest_side(classical_params()) == 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    gt, degradation = views(96, 112, batch=2, count=2).float(), Align8Degradation(4)
    params = classical_params([0.0, 2.0])
    lq = degradation(gt.to("cuda"), params)
    assert lq.is_cuda
    assert torch.equal(lq.cpu(), degradation(gt, params))
