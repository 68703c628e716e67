"""MATLAB's bicubic against Pillow's, BasicSR's, a plain reference, and published figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_psnr
from basicsr.utils import tensor2img
from basicsr.utils.matlab_functions import imresize
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from bsr_plugins.degradations import build_degradation
from bsr_plugins.degradations.resize import BORDERS, bicubic_matrix, bicubic_resize, border_indices
from bsr_plugins.errors import OptionError
from tests.degradations import reference
from tests.degradations.photographs import dataset, photograph

# (from, to): down and up, even and odd scales, no whole scale, one axis alone
SIZES = [
    ((96, 144), (24, 36)),
    ((96, 144), (32, 48)),
    ((96, 144), (48, 72)),
    ((24, 36), (96, 144)),
    ((33, 27), (99, 81)),
    ((50, 64), (75, 96)),
    ((90, 75), (60, 50)),
    ((31, 45), (31, 60)),
]


def image(size: tuple[int, int]) -> Tensor:
    return photograph("chelsea.png")[:, 60 : 60 + size[0], 120 : 120 + size[1]]


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_equals_the_plain_reference(before: tuple[int, int], after: tuple[int, int], border: str) -> None:
    x = image(before)
    made = bicubic_resize(x, after, border)
    for plane, resized in zip(x.numpy(), made.numpy(), strict=True):
        np.testing.assert_allclose(resized, reference.bicubic(plane, after, border), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.5, 2, 3, 4])
def test_mirrored_borders_equal_the_imresize_of_basicsr(scale: float) -> None:
    x = image((96, 72)).float()
    expected = imresize(x, scale)
    _, height, width = expected.shape
    torch.testing.assert_close(bicubic_resize(x, (height, width), "mirror"), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_equals_pillow_inside_the_borders(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Pillow rounds to 8 bits after each axis, and leaves out what is beyond the border instead of repeating it."""
    x = image(before)
    pillow = Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy())
    expected = np.asarray(pillow.resize(after[::-1], Image.Resampling.BICUBIC), dtype=np.float64)
    made = (bicubic_resize(x, after) * 255).clamp(0, 255).permute(1, 2, 0).numpy()
    margins = [int(np.ceil(2 * max(new / old, 1))) + 1 for old, new in zip(before, after, strict=True)]
    inner = tuple(slice(margin, -margin) for margin in margins)
    assert np.abs(made[inner] - expected[inner]).max() < 1.5
    assert np.abs(made[inner] - expected[inner]).mean() < 0.4


@settings(max_examples=50, deadline=None)
@given(st.integers(4, 60), st.integers(1, 60), st.sampled_from(BORDERS))
def test_matrices_keep_flat_images_and_have_no_preferred_side(before: int, after: int, border: str) -> None:
    matrix = bicubic_matrix(before, after, border)
    assert matrix.shape == (after, before)
    torch.testing.assert_close(matrix.sum(1), torch.ones(after, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix.flip(0, 1), matrix, rtol=0, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 60), st.sampled_from(BORDERS))
def test_the_same_size_is_the_same_image(size: int, border: str) -> None:
    torch.testing.assert_close(
        bicubic_matrix(size, size, border), torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(-40, 40))
def test_border_indices(size: int, position: int) -> None:
    for border in BORDERS:
        found = int(border_indices(torch.tensor([position]), size, border))
        assert found == reference.inside(position, size, border)


def test_an_unknown_border_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"^border: unknown name 'mirrow', .*; did you mean 'mirror'\?$"):
        bicubic_resize(torch.zeros(1, 8, 8), (4, 4), "mirrow")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_type_and_leading_dimensions(dtype: torch.dtype) -> None:
    x = image((24, 36)).to(dtype).expand(2, 5, -1, -1, -1)
    made = bicubic_resize(x, (8, 12))
    assert made.dtype == dtype
    assert made.shape == (2, 5, 3, 8, 12)
    torch.testing.assert_close(made[1, 3], bicubic_resize(x[0, 0], (8, 12)))


def test_is_differentiable_after_a_first_call_in_inference_mode() -> None:
    """What a call keeps for the next must not be an inference tensor, which autograd refuses."""
    with torch.inference_mode():
        bicubic_resize(torch.zeros(3, 28, 44), (7, 11))
    x = torch.zeros(3, 28, 44, requires_grad=True)
    bicubic_resize(x, (7, 11)).sum().backward()
    assert x.grad is not None
    assert float(x.grad.sum()) == pytest.approx(3 * 7 * 11, rel=1e-5)


def psnr_of_clean_bicubic(file: Path, scale: int, border: str) -> float:
    """Return PSNR on Y, crop `scale`, of an image after bicubic ↓s and ↑s, each rounded to 8 bits."""
    gt = photograph(file)
    gt = gt[:, : gt.shape[1] // scale * scale, : gt.shape[2] // scale * scale]
    degradation = build_degradation({"type": "ClassicalDegradation", "scale": scale, "border": border})
    restored = bicubic_resize(degradation.clean(gt[None])[0], (gt.shape[1], gt.shape[2]), border)
    images = [tensor2img(each.float(), rgb2bgr=True) for each in (restored, gt)]
    return float(calculate_psnr(*images, crop_border=scale, test_y_channel=True))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("name", "published"), [("Set5", 28.42), ("Set14", 26.00)])
def test_clean_bicubic_has_the_published_psnr(name: str, published: float, border: str) -> None:
    """The two sets here are cropped for ×4 and stored anew, hence a tenth of a decibel."""
    figures = [psnr_of_clean_bicubic(file, 4, border) for file in dataset(name)]
    assert float(np.mean(figures)) == pytest.approx(published, abs=0.05 if name == "Set5" else 0.12)


def test_clean_bicubic_has_the_psnr_that_basicsr_gives() -> None:
    """On a photograph that is always at hand; resizing without antialiasing is more than 1 dB off."""
    x = photograph("chelsea.png")[:, :, :448]
    small = (imresize(x.float(), 1 / 4).clamp(0, 1) * 255).round() / 255
    images = [tensor2img(each.float(), rgb2bgr=True) for each in (imresize(small, 4), x)]
    expected = calculate_psnr(*images, crop_border=4, test_y_channel=True)
    assert psnr_of_clean_bicubic(Path("chelsea.png"), 4, "mirror") == pytest.approx(expected, abs=0.02)
