"""Kernels against their closed form, and what follows from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bsr_plugins.degradations.kernels import gaussian_kernels, gaussian_profiles, offsets
from tests.degradations.reference import gaussian_kernel

WIDTHS = st.floats(0.1, 10.5)
ANGLES = st.floats(-2 * math.pi, 2 * math.pi)
SIZES = st.integers(0, 12).map(lambda radius: 2 * radius + 1)


def kernel(lambda1: float, lambda2: float, theta: float, size: int = 21) -> Tensor:
    first, second, angle = torch.tensor([[lambda1], [lambda2], [theta]], dtype=torch.float64)
    return gaussian_kernels(first, second, angle, size)[0]


def profile(sigma: float, size: int = 21) -> Tensor:
    return gaussian_profiles(torch.tensor([sigma], dtype=torch.float64), size)[0]


@settings(max_examples=60, deadline=None)
@given(WIDTHS, WIDTHS, ANGLES, SIZES)
def test_kernels_equal_the_closed_form(lambda1: float, lambda2: float, theta: float, size: int) -> None:
    made = kernel(lambda1, lambda2, theta, size)
    assert made.shape == (size, size)
    np.testing.assert_allclose(made, gaussian_kernel(lambda1, lambda2, theta, size), rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(WIDTHS, WIDTHS, ANGLES, SIZES)
def test_kernels_are_symmetric_about_their_centre_and_sum_to_1(
    lambda1: float, lambda2: float, theta: float, size: int
) -> None:
    made = kernel(lambda1, lambda2, theta, size)
    assert torch.equal(made, made.flip(0, 1))
    assert float(made.sum()) == pytest.approx(1, abs=1e-12)
    assert float(made.min()) >= 0
    assert float(made.max()) == float(made[size // 2, size // 2])


@settings(max_examples=40, deadline=None)
@given(WIDTHS, WIDTHS, ANGLES)
def test_angles_repeat_after_half_a_turn_and_swapped_widths_are_a_quarter(
    lambda1: float, lambda2: float, theta: float
) -> None:
    made = kernel(lambda1, lambda2, theta)
    torch.testing.assert_close(kernel(lambda1, lambda2, theta + math.pi), made, rtol=0, atol=1e-12)
    torch.testing.assert_close(kernel(lambda2, lambda1, theta + math.pi / 2), made, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("theta", "widest"), [(0, (0, 1)), (45, (1, 1)), (90, (1, 0)), (135, (1, -1))])
def test_theta_turns_the_first_axis_from_x_towards_y(theta: float, widest: tuple[int, int]) -> None:
    """The kernel falls off most slowly along its first axis, given here as a step (y, x)."""
    made = kernel(4.0, 1.0, math.radians(theta))
    steps = [(0, 1), (1, 1), (1, 0), (1, -1)]
    reach = {(y, x): float(made[10 + 2 * y, 10 + 2 * x]) for y, x in steps}
    assert max(reach, key=lambda step: reach[step]) == widest


@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 2.0), st.floats(0.3, 2.0), ANGLES)
def test_widths_are_standard_deviations(lambda1: float, lambda2: float, theta: float) -> None:
    """Where the kernel is neither cut off nor coarse, its second moments are `R diag(λ²) Rᵀ`."""
    lambda1, lambda2 = lambda1 + 0.6, lambda2 + 0.6
    made = kernel(lambda1, lambda2, theta, 41)
    axis = offsets(41, made)
    cos, sin = math.cos(theta), math.sin(theta)
    x_variance = float((made.sum(0) * axis.square()).sum())
    covariance = float(axis @ made @ axis)
    assert x_variance == pytest.approx((lambda1 * cos) ** 2 + (lambda2 * sin) ** 2, rel=1e-3)
    assert covariance == pytest.approx((lambda1**2 - lambda2**2) * sin * cos, abs=1e-2)


@settings(max_examples=40, deadline=None)
@given(WIDTHS, ANGLES, SIZES)
def test_profiles_are_the_factors_of_isotropic_kernels(sigma: float, theta: float, size: int) -> None:
    made = profile(sigma, size)
    assert float(made.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(torch.outer(made, made), kernel(sigma, sigma, theta, size), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_width_of_0_gives_the_unit_impulse(dtype: torch.dtype) -> None:
    impulse = gaussian_profiles(torch.tensor([0.0], dtype=dtype), 7)[0]
    assert impulse.tolist() == [0, 0, 0, 1, 0, 0, 0]


def test_a_batch_is_made_of_single_kernels() -> None:
    shapes = [(2.0, 0.2, 0.3), (3.5, 1.5, 1.2), (4.0, 4.0, -2.0)]
    lambda1, lambda2, theta = torch.tensor(shapes, dtype=torch.float64).T
    together = gaussian_kernels(lambda1, lambda2, theta, 21)
    assert torch.equal(together, torch.stack([kernel(*shape) for shape in shapes]))
    profiles = gaussian_profiles(torch.tensor([0.0, 1.8, 3.2], dtype=torch.float64), 21)
    assert torch.equal(profiles, torch.stack([profile(sigma) for sigma in (0.0, 1.8, 3.2)]))
