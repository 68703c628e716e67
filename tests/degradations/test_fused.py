"""Blur and bicubic as one strided convolution: exact for any kernel, at any size, borders included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bsr_plugins.degradations import blur as blur_module
from bsr_plugins.degradations.blur import blur, blur_bicubic, fused_blur_bicubic, worth_fusing
from bsr_plugins.degradations.kernels import gaussian_kernels
from bsr_plugins.degradations.resize import bicubic_resize
from tests.degradations import reference
from tests.degradations.photographs import views

GREY_LEVELS = 255
AGREEMENT = 1e-3  # grey levels


def lopsided_kernels(count: int, size: int) -> Tensor:
    """Kernels without any symmetry, summing to 1."""
    drawn = torch.rand(count, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    return drawn / drawn.sum((-2, -1), keepdim=True)


# (scale, height, width, taps): LR sides that leave 0 to 3 pixels over after tiles of 4
CASES = [
    (4, 64, 72, 21),
    (4, 68, 60, 21),
    (4, 44, 64, 7),
    (3, 57, 60, 21),
    (3, 45, 51, 9),
    (2, 60, 54, 21),
    (5, 90, 75, 1),
]


@pytest.mark.parametrize("border", ["clamp", "mirror"])
@pytest.mark.parametrize(("scale", "height", "width", "taps"), CASES)
def test_equals_the_reference(scale: int, height: int, width: int, taps: int, border: str) -> None:
    plane, kernel = views(height, width)[0, 0, :1], lopsided_kernels(1, taps)[0]
    expected = reference.blur_bicubic(plane, kernel.numpy(), scale, border)
    made = fused_blur_bicubic(plane, kernel, scale, border)
    np.testing.assert_allclose(made.numpy(), expected, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.integers(0, 10),
    st.sampled_from(["clamp", "mirror"]),
)
def test_equals_blur_and_bicubic_one_after_the_other(
    scale: int, size: tuple[int, int], radius: int, border: str
) -> None:
    """At every size that the padding fits into, down to those whose two edges share a tile."""
    height, width = (scale * side for side in size)
    taps = 2 * radius + 1
    tiling = blur_module._tiling(scale, taps, torch.float64)
    assume(tiling.fits(height, width))
    x, kernel = views(height, width)[:, 0], lopsided_kernels(1, taps)
    made = fused_blur_bicubic(x[0], kernel[0], scale, border)
    torch.testing.assert_close(made, bicubic_resize(blur(x, kernel), size, border)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("border", ["clamp", "mirror"])
@pytest.mark.parametrize(("scale", "height", "width"), [(4, 128, 100), (3, 93, 120), (4, 72, 128)])
def test_float32_images_go_this_way_and_agree(
    scale: int, height: int, width: int, border: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sample of a batch with another kernel, both views with the same, and no FFT on the way."""
    monkeypatch.setattr(blur_module, "blur", None)
    x, kernels = views(height, width, batch=2, count=2), lopsided_kernels(2, 21)
    lambda1, lambda2, theta = torch.tensor([[3.5], [0.8], [0.6]], dtype=torch.float64)
    kernels[0] = gaussian_kernels(lambda1, lambda2, theta, 21)[0]
    made = blur_bicubic(x.float(), kernels.float(), scale, border)
    assert made.dtype == torch.float32
    for images, kernel, lq in zip(x, kernels, made, strict=True):
        expected = reference.blur_bicubic(images, kernel.numpy(), scale, border)
        assert np.abs(lq.double().numpy() - expected).max() * GREY_LEVELS < AGREEMENT


def test_takes_only_what_it_is_exact_and_fast_for() -> None:
    large = torch.empty(1, 3, 256, 256)
    assert worth_fusing(large, 21, 4)
    assert worth_fusing(large, 21, 3)
    assert not worth_fusing(large.double(), 21, 4), "convolutions of float64 are slow"
    assert not worth_fusing(large, 61, 4), "large kernels are for the FFT"
    assert not worth_fusing(large, 21, 1)
    assert not worth_fusing(large[..., :48, :48], 21, 4), "the edges of small images cost too much"
    assert not worth_fusing(torch.empty(1, 3, 16, 4096), 21, 4), "the padding of 16 pixels does not fit"
    assert worth_fusing(torch.empty(1, 3, 32, 4096), 21, 4)


def test_gradients() -> None:
    x = views(24, 28)[0, 0, :1].clone().requires_grad_()
    kernel = lopsided_kernels(1, 5)[0]
    assert torch.autograd.gradcheck(lambda planes: fused_blur_bicubic(planes, kernel, 4, "clamp"), x)


def test_is_differentiable_after_a_first_call_in_inference_mode() -> None:
    """What a call keeps for the next must not be an inference tensor, which autograd refuses."""
    x = torch.zeros(1, 3, 112, 124, requires_grad=True)
    kernels = lopsided_kernels(1, 13).float()
    with torch.inference_mode():
        blur_bicubic(x, kernels, 4)
    (gradient,) = torch.autograd.grad(blur_bicubic(x, kernels, 4).sum(), x)
    assert math.isclose(float(gradient.sum()), 3 * 28 * 31, rel_tol=1e-5)
