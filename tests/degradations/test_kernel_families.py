"""Generalised Gaussian, plateau and sinc kernels against BasicSR's, and what has to hold for any of their shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bsr_plugins  # noqa: F401  isort: skip  (BasicSR cannot be imported before it)
from basicsr.data.degradations import bivariate_generalized_Gaussian, bivariate_plateau, circular_lowpass_kernel

from bsr_plugins.degradations.kernels import (
    gaussian_kernels,
    generalized_gaussian_kernels,
    plateau_kernels,
    sinc_kernels,
)

BESSEL = 3e-7  # PyTorch's Bessel function
SHAPED = [
    pytest.param(generalized_gaussian_kernels, bivariate_generalized_Gaussian, id="generalized"),
    pytest.param(plateau_kernels, bivariate_plateau, id="plateau"),
]
FAMILIES = [pytest.param(generalized_gaussian_kernels, id="generalized"), pytest.param(plateau_kernels, id="plateau")]
WIDTHS = st.floats(0.2, 4.0)
ANGLES = st.floats(-2 * math.pi, 2 * math.pi)
BETAS = st.floats(0.5, 4.0)
TAPS = st.integers(3, 10).map(lambda radius: 2 * radius + 1)
Family = Callable[..., Tensor]


def columns(*rows: tuple[float, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Turn one row per kernel into one tensor per parameter."""
    return list(torch.tensor(rows, dtype=dtype).T)


def padded(kernel: np.ndarray, size: int) -> np.ndarray:
    return np.pad(kernel, (size - kernel.shape[0]) // 2)


@pytest.mark.parametrize(("family", "stock"), SHAPED)
@settings(max_examples=40, deadline=None)
@given(lambda1=WIDTHS, lambda2=WIDTHS, theta=ANGLES, beta=BETAS, taps=TAPS)
def test_kernels_equal_those_of_basicsr(
    family: Family,
    stock: Callable[..., np.ndarray],
    lambda1: float,
    lambda2: float,
    theta: float,
    beta: float,
    taps: int,
) -> None:
    shape = columns((lambda1, lambda2, theta, beta))
    expected = stock(taps, lambda1, lambda2, theta, beta, isotropic=False)
    np.testing.assert_allclose(family(*shape, taps)[0], expected, rtol=0, atol=1e-12)
    among_zeros = family(*shape, 21, torch.tensor([taps]))[0]
    np.testing.assert_allclose(among_zeros, padded(expected, 21), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("family", "stock"), SHAPED)
@settings(max_examples=20, deadline=None)
@given(sigma=WIDTHS, theta=ANGLES, beta=BETAS, taps=TAPS)
def test_equal_widths_give_the_isotropic_kernels_of_basicsr(
    family: Family, stock: Callable[..., np.ndarray], sigma: float, theta: float, beta: float, taps: int
) -> None:
    made = family(*columns((sigma, sigma, theta, beta)), taps)[0]
    np.testing.assert_allclose(made, stock(taps, sigma, -1, None, beta, isotropic=True), rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(math.pi / 5, math.pi), TAPS)
def test_sinc_kernels_equal_those_of_basicsr(cutoff: float, taps: int) -> None:
    omega = torch.tensor([cutoff], dtype=torch.float64)
    np.testing.assert_allclose(sinc_kernels(omega, taps)[0], circular_lowpass_kernel(cutoff, taps), rtol=0, atol=BESSEL)
    among_zeros = sinc_kernels(omega, 21, torch.tensor([taps]))[0]
    np.testing.assert_allclose(among_zeros, circular_lowpass_kernel(cutoff, taps, 21), rtol=0, atol=BESSEL)


def test_a_sinc_passes_what_is_below_its_cutoff_and_stops_what_is_above() -> None:
    """A wide kernel's spectrum, along any direction, is 1 up to ω and 0 from there on."""
    kernel = sinc_kernels(torch.tensor([1.5], dtype=torch.float64), 101)[0]
    spectrum = torch.fft.fft2(kernel.roll((51, 51), (0, 1))).abs()
    for index in [(8, 0), (0, 16), (12, 12)]:  # 0.50, 1.00 and 1.06 radians per pixel
        assert float(spectrum[index]) == pytest.approx(1, abs=0.06)
    for index in [(32, 0), (0, 40), (24, 24)]:  # 1.99, 2.49 and 2.11
        assert float(spectrum[index]) == pytest.approx(0, abs=0.06)


@settings(max_examples=30, deadline=None)
@given(WIDTHS, WIDTHS, ANGLES, TAPS)
def test_beta_1_is_the_gaussian(lambda1: float, lambda2: float, theta: float, taps: int) -> None:
    first, second, angle, beta = columns((lambda1, lambda2, theta, 1.0))
    made = generalized_gaussian_kernels(first, second, angle, beta, taps)
    torch.testing.assert_close(made, gaussian_kernels(first, second, angle, taps), rtol=0, atol=1e-15)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=40, deadline=None)
@given(widths=st.tuples(st.floats(1e-3, 4.0), st.floats(1e-3, 4.0)), theta=ANGLES, beta=st.floats(0.1, 20.0), taps=TAPS)
def test_no_width_or_shape_gives_other_than_weights(
    family: Family, dtype: torch.dtype, widths: tuple[float, float], theta: float, beta: float, taps: int
) -> None:
    """Distances of up to 1e4 widths to the 40th power overflow in both dtypes."""
    made = family(*columns((*widths, theta, beta), dtype=dtype), 21, torch.tensor([taps]))[0]
    assert made.dtype == dtype
    assert bool(made.isfinite().all())
    assert float(made.min()) >= 0
    assert float(made.sum()) == pytest.approx(1, abs=1e-5 if dtype == torch.float32 else 1e-12)
    assert float(made.max()) == float(made[10, 10])
    torch.testing.assert_close(made, made.flip(0, 1), rtol=1e-4, atol=1e-12)  # powers differ in their last bits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_narrowest_kernels_drawn_are_unit_impulses_or_nearly(family: Family) -> None:
    for dtype in (torch.float32, torch.float64):
        made = family(*columns((0.2, 0.2, 0.0, 4.0), dtype=dtype), 21)[0]
        assert float(made[10, 10]) == pytest.approx(1, abs=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_single_precision_agrees_with_double(family: Family) -> None:
    rows = [(0.2, 3.0, 0.4, 0.5), (0.3, 0.3, 0.0, 4.0), (3.0, 1.2, -2.0, 2.0)]
    taps = torch.tensor([21, 7, 13])
    single, double = (family(*columns(*rows, dtype=dtype), 21, taps) for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-6)


def test_single_precision_sincs_agree_with_double() -> None:
    omega = torch.linspace(0.7, math.pi, 7, dtype=torch.float64)
    made = sinc_kernels(omega.float(), 21)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), sinc_kernels(omega, 21), rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_made_of_single_kernels(family: Family) -> None:
    rows = [(2.0, 0.2, 0.3, 0.7), (3.5, 1.5, 1.2, 4.0), (4.0, 4.0, -2.0, 1.0)]
    taps = [7, 21, 13]
    together = family(*columns(*rows), 21, torch.tensor(taps))
    alone = [family(*columns(row), count)[0] for row, count in zip(rows, taps, strict=True)]
    for made, kernel in zip(together, alone, strict=True):
        torch.testing.assert_close(made, torch.from_numpy(padded(kernel.numpy(), 21)), rtol=0, atol=1e-15)


def test_a_batch_of_sincs_is_made_of_single_kernels() -> None:
    omega, taps = torch.tensor([0.8, 3.1, 2.0], dtype=torch.float64), [7, 21, 13]
    together = sinc_kernels(omega, 21, torch.tensor(taps))
    for index, count in enumerate(taps):
        alone = padded(sinc_kernels(omega[index, None], count)[0].numpy(), 21)
        torch.testing.assert_close(together[index], torch.from_numpy(alone), rtol=0, atol=1e-15)
    assert float(together.sum((1, 2)).sub(1).abs().max()) < 1e-12


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(("dtype", "agreement"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_cuda_makes_the_same_kernels(dtype: torch.dtype, agreement: float) -> None:
    taps = torch.tensor([7, 21])
    shape = columns((0.2, 2.0, 0.3, 4.0), (3.0, 1.0, -1.0, 0.5), dtype=dtype)
    cutoff = columns((0.7,), (3.1,), dtype=dtype)
    families: list[tuple[Family, list[Tensor]]] = [
        (generalized_gaussian_kernels, shape),
        (plateau_kernels, shape),
        (sinc_kernels, cutoff),
    ]
    for family, parameters in families:
        on_cuda = family(*[parameter.to("cuda") for parameter in parameters], 21, taps)
        assert on_cuda.device.type == "cuda"
        torch.testing.assert_close(on_cuda.cpu(), family(*parameters, 21, taps), rtol=0, atol=agreement)
