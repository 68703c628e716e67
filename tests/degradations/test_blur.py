"""Blur, and blur with downsampling, against the plain float64 reference, and against symmetries that it must have."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bsr_plugins.degradations.blur import blur, blur_bicubic, separable_blur_bicubic
from bsr_plugins.degradations.kernels import gaussian_kernels, gaussian_profiles
from bsr_plugins.degradations.resize import bicubic_resize
from bsr_plugins.errors import BSRError
from tests.degradations import reference
from tests.degradations.photographs import views

GREY_LEVELS = 255
AGREEMENT = 1e-3  # grey levels


class Shape(NamedTuple):
    """The shape of a Gaussian kernel."""

    lambda1: float
    lambda2: float
    theta: float


SHAPES = [Shape(2.0, 0.2, 0.0), Shape(3.5, 1.5, math.pi / 6), Shape(4.0, 2.0, 2.4), Shape(0.2, 0.2, 0.0)]
SIGMAS = [0.0, 0.2, 1.8, 4.0]
# (scale, height, width): square and not, large and small, just above the kernel's radius
SIZES = [
    *[(2, 48, 48), (2, 26, 70), (2, 90, 104), (3, 36, 57), (3, 12, 33), (3, 96, 93)],
    *[(4, 64, 64), (4, 44, 100), (4, 12, 136), (4, 128, 128), (4, 100, 84), (4, 32, 300)],
]


def kernels(*shapes: Shape, size: int = 21) -> Tensor:
    lambda1, lambda2, theta = torch.tensor(shapes, dtype=torch.float64).T
    return gaussian_kernels(lambda1, lambda2, theta, size)


def profiles(*sigmas: float, size: int = 21) -> Tensor:
    return gaussian_profiles(torch.tensor(sigmas, dtype=torch.float64), size)


def assert_agree(made: Tensor, expected: np.ndarray | Tensor) -> None:
    difference = np.abs(made.double().numpy() - np.asarray(expected)) * GREY_LEVELS
    assert difference.max() < AGREEMENT


def assert_batch_agrees(made: Tensor, x: Tensor, shapes: list[Shape], scale: int, border: str) -> None:
    assert made.dtype == torch.float32
    assert made.shape == (*x.shape[:-2], x.shape[-2] // scale, x.shape[-1] // scale)
    for images, shape, lq in zip(x, shapes, made, strict=True):
        assert_agree(lq, reference.blur_bicubic(images, reference.gaussian_kernel(*shape), scale, border))


@pytest.mark.parametrize("border", ["clamp", "mirror"])
@pytest.mark.parametrize(("scale", "height", "width"), SIZES)
def test_any_kernel_and_bicubic_equal_the_reference(scale: int, height: int, width: int, border: str) -> None:
    """Every sample of the batch with another kernel, both views with the same; borders included."""
    x = views(height, width, batch=len(SHAPES), count=2)
    assert_batch_agrees(blur_bicubic(x.float(), kernels(*SHAPES).float(), scale, border), x, SHAPES, scale, border)


@pytest.mark.parametrize("border", ["clamp", "mirror"])
@pytest.mark.parametrize(("scale", "height", "width"), SIZES)
def test_isotropic_kernels_and_bicubic_equal_the_reference(scale: int, height: int, width: int, border: str) -> None:
    x = views(height, width, batch=len(SIGMAS), count=2)
    shapes = [Shape(sigma, sigma, 0) for sigma in SIGMAS]
    made = separable_blur_bicubic(x.float(), profiles(*SIGMAS).float(), scale, border)
    assert_batch_agrees(made, x, shapes, scale, border)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([2, 3, 4]),
    st.tuples(st.integers(4, 40), st.integers(4, 40)),
    st.tuples(st.floats(0.2, 4.0), st.floats(0.2, 4.0), st.floats(0, math.pi)),
    st.sampled_from(["clamp", "mirror"]),
)
def test_any_size_and_any_kernel(
    scale: int, size: tuple[int, int], drawn: tuple[float, float, float], border: str
) -> None:
    shape, height, width = Shape(*drawn), scale * max(size[0], 11 // scale + 1), scale * max(size[1], 11 // scale + 1)
    x = views(height, width)[:, :, :1]
    made = blur_bicubic(x.float(), kernels(shape).float(), scale, border)
    assert_agree(made, reference.blur_bicubic(x, reference.gaussian_kernel(*shape), scale, border))


@pytest.mark.parametrize(("height", "width"), [(48, 48), (128, 100)])
def test_what_is_computed_for_gradients_is_the_same(height: int, width: int) -> None:
    """And the gradient of single precision is that of double, which the finite differences below vouch for."""
    x, kernel = views(height, width), kernels(SHAPES[1])
    weights = torch.rand(1, 1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(0))
    expected, gradients = blur_bicubic(x, kernel, 4), list[Tensor]()
    for dtype in (torch.float32, torch.float64):
        gt = x.clone().to(dtype).requires_grad_()
        lq = blur_bicubic(gt, kernel.to(dtype), 4)
        assert_agree(lq.detach(), expected)
        gradients += torch.autograd.grad((lq * weights).sum(), gt)
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "height", "width"), [(21, 11, 40), (21, 64, 48), (5, 17, 9), (1, 6, 7), (15, 128, 30)]
)
def test_blur_alone_equals_the_reference(size: int, height: int, width: int) -> None:
    shapes = SHAPES[:2]
    x = views(height, width, batch=2)
    made = blur(x.float(), kernels(*shapes, size=size).float())
    assert made.shape == x.shape
    for images, shape, blurred in zip(x, shapes, made, strict=True):
        kernel = reference.gaussian_kernel(*shape, size=size)
        assert_agree(blurred, np.stack([[reference.blur(plane, kernel) for plane in images[0].numpy()]]))


def test_kernels_are_applied_as_correlations() -> None:
    """A kernel without symmetry shows on which side of its centre a tap takes its pixel: the same as conv2d."""
    kernel = torch.zeros(1, 5, 5, dtype=torch.float64)
    kernel[0, 2, 4], kernel[0, 1, 2] = 0.75, 0.25
    x = views(20, 24)
    made = blur(x, kernel)[0, 0, 0, 3:-3, 3:-3]
    plane = x[0, 0, 0]
    torch.testing.assert_close(made, 0.75 * plane[3:-3, 5:-1] + 0.25 * plane[2:-4, 3:-3], rtol=0, atol=1e-12)
    both = blur_bicubic(x, kernel, 4)
    torch.testing.assert_close(both, bicubic_resize(blur(x, kernel), (5, 6)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dims", [(), (3,), (2, 3), (2, 2, 3)])
def test_any_dimensions_lie_between_the_batch_and_the_image(dims: tuple[int, ...]) -> None:
    x = torch.rand(2, *dims, 24, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shape, flat = (2, *dims, 6, 8), x.reshape(2, -1, 24, 32)
    kernel, profile = kernels(*SHAPES[:2]), profiles(0.7, 2.0)
    for function, argument in ((blur_bicubic, kernel), (separable_blur_bicubic, profile)):
        assert function(x, argument, 4).shape == shape
        assert_agree(function(x, argument, 4), function(flat, argument, 4).view(shape))
    assert_agree(blur(x, kernel), blur(flat, kernel).view(x.shape))


def test_planes_worked_on_in_parts_are_all_there() -> None:
    """Large images with many views go through in pieces on a CPU."""
    x = views(256, 256, count=6)
    kernel = kernels(SHAPES[1])
    made = blur_bicubic(x, kernel, 4)
    one_by_one = torch.cat([blur_bicubic(view[:, None], kernel, 4) for view in x.unbind(1)], dim=1)
    torch.testing.assert_close(made, one_by_one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 2.0, 6.0])
def test_separable_and_any_kernel_are_one_function(sigma: float) -> None:
    x = views(44, 60, batch=2)
    profile = profiles(sigma, 1.1)
    outer = profile[:, :, None] * profile[:, None, :]
    for border in ("clamp", "mirror"):
        made = separable_blur_bicubic(x, profile, 2, border)
        torch.testing.assert_close(made, blur_bicubic(x, outer, 2, border), rtol=0, atol=1e-10)


def test_a_width_of_0_is_bicubic_alone() -> None:
    x = views(36, 48)
    made = separable_blur_bicubic(x, profiles(0.0), 3)
    torch.testing.assert_close(made, bicubic_resize(x, (12, 16)), rtol=0, atol=1e-12)


def degrade(x: Tensor, shape: Shape, scale: int) -> Tensor:
    if shape.lambda1 == shape.lambda2:
        return separable_blur_bicubic(x, profiles(shape.lambda1), scale)
    return blur_bicubic(x, kernels(shape), scale)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([2, 3, 4]),
    st.tuples(st.floats(0.2, 4.0), st.floats(0.2, 4.0), st.floats(0, math.pi)),
    st.booleans(),
)
def test_flips_and_turns_commute_with_the_degradation(
    scale: int, drawn: tuple[float, float, float], isotropic: bool
) -> None:
    shape = Shape(drawn[0], drawn[0] if isotropic else drawn[1], drawn[2])
    mirrored = shape._replace(theta=-shape.theta)
    transposed = shape._replace(theta=math.pi / 2 - shape.theta)
    x = views(24, 36)
    lq = degrade(x, shape, scale)
    for made, expected in (
        (degrade(x.flip(-1, -2), shape, scale), lq.flip(-1, -2)),
        (degrade(x.flip(-1), mirrored, scale), lq.flip(-1)),
        (degrade(x.flip(-2), mirrored, scale), lq.flip(-2)),
        (degrade(x.mT, transposed, scale), lq.mT),
    ):
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [Shape(2.0, 2.0, 0.0), Shape(3.0, 1.0, 0.7)])
@pytest.mark.parametrize("centre", [(47.5, 47.5), (41.2, 55.9)])
def test_nothing_is_shifted(scale: int, shape: Shape, centre: tuple[float, float]) -> None:
    """The centroid of a blob stays where it is, pixel i of the LR image being s pixels wide."""
    y, x = torch.meshgrid(*(torch.arange(96, dtype=torch.float64) - at for at in centre), indexing="ij")
    blob = torch.exp(-(y.square() + x.square()) / (2 * 5.0**2))[None, None]
    lq = degrade(blob, shape, scale)[0, 0]
    axis = (torch.arange(96 // scale, dtype=torch.float64) + 0.5) * scale - 0.5
    found = [float(lq.sum(1 - dim) @ axis / lq.sum()) for dim in (0, 1)]
    assert found == pytest.approx(centre, abs=1e-3)


@pytest.mark.parametrize(("height", "width"), [(10, 40), (40, 10), (8, 8)])
def test_images_within_the_kernels_radius_are_an_error(height: int, width: int) -> None:
    x = torch.zeros(1, 3, height, width)
    message = rf"^blur: an image of {height}x{width} pixels is too small .* 21 taps, expected sides above 10$"
    with pytest.raises(BSRError, match=message):
        blur(x, torch.ones(1, 21, 21) / 441)
    with pytest.raises(BSRError, match=message):
        blur_bicubic(x, torch.ones(1, 21, 21) / 441, 2)
    with pytest.raises(BSRError, match=message):
        separable_blur_bicubic(x, torch.ones(1, 21) / 21, 2)


@pytest.mark.parametrize("isotropic", [True, False])
def test_gradients(isotropic: bool) -> None:
    x = views(8, 12, batch=2)[:, :, :1].clone().requires_grad_()

    def degraded(x: Tensor) -> Tensor:
        if isotropic:
            return separable_blur_bicubic(x, profiles(0.8, 1.5, size=7), 2)
        return blur_bicubic(x, kernels(*SHAPES[1:3], size=7), 2)

    assert torch.autograd.gradcheck(degraded, x)


def test_is_differentiable_after_a_first_call_in_inference_mode() -> None:
    """What a call keeps for the next must not be an inference tensor, which autograd refuses."""
    x = torch.zeros(1, 3, 28, 44, requires_grad=True)
    for function, argument in ((blur_bicubic, kernels(SHAPES[1])), (separable_blur_bicubic, profiles(1.0))):
        with torch.inference_mode():
            function(torch.zeros(1, 3, 28, 44), argument.float(), 4)
        (gradient,) = torch.autograd.grad(function(x, argument.float(), 4).sum(), x)
        assert float(gradient.sum()) == pytest.approx(3 * 7 * 11, rel=1e-5)
