"""Blur kernels, made in batch: Gaussians (k of Eq. 1 of the ReDSR paper) and those of the second-order degradation.

Kernels are odd-sized, centred and sum to 1. λ1 and λ2 are standard deviations in HR pixels along the two axes of the
kernel, θ turns the first axis from x (columns) towards y (rows), in radians, and Σ = R(θ) diag(λ1², λ2²) R(θ)ᵀ. λ = 0
stands for no blur, for isotropic kernels only.

The generalised, plateau and sinc kernels are those of Real-ESRGAN (Wang et al., 2021, Sec. 3 and its released code), as
BasicSR's `bivariate_generalized_Gaussian`, `bivariate_plateau` and `circular_lowpass_kernel` compute them; λ1 is
`sig_x` and λ2 `sig_y` there.

All parameters are tensors of shape (B,) on one device; the kernels come out there, in the parameters' dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def offsets(size: int, like: Tensor) -> Tensor:
    """Return the tap positions −r … r of a kernel of `size` = 2r + 1 taps, shape (size,)."""
    radius = size // 2
    return torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)


def gaussian_profiles(sigma: Tensor, size: int) -> Tensor:
    """Return 1-D Gaussians, shape (B, size), each summing to 1, whose outer products are the isotropic kernels.

    Args:
        sigma: Standard deviations, ≥ 0; 0 gives the unit impulse.
        size: Number of taps, odd.
    """
    squared = offsets(size, sigma).square()
    widths = sigma.clamp_min(torch.finfo(sigma.dtype).tiny ** 0.25)[:, None]
    profiles = torch.exp(-squared / (2 * widths.square()))
    return profiles / profiles.sum(-1, keepdim=True)


def gaussian_kernels(lambda1: Tensor, lambda2: Tensor, theta: Tensor, size: int) -> Tensor:
    """Return Gaussian kernels, shape (B, size, size), indexed [y, x], each summing to 1; arguments as below."""
    kernels = torch.exp(-quadratic_form(lambda1, lambda2, theta, size) / 2)
    return kernels / kernels.sum((-2, -1), keepdim=True)


def quadratic_form(lambda1: Tensor, lambda2: Tensor, theta: Tensor, size: int) -> Tensor:
    """Return `q = pᵀ Σ⁻¹ p` at every tap p: squared distances from the centre in units of the widths.

    Args:
        lambda1: Standard deviations along the axis at angle θ, > 0.
        lambda2: Standard deviations across it, > 0.
        theta: Angles in radians.
        size: Taps per axis, odd.

    Returns:
        Tensor: Shape (B, size, size), indexed [y, x].
    """
    axis = offsets(size, lambda1)
    y, x = axis[:, None], axis[None, :]
    cos, sin = theta.cos()[:, None, None], theta.sin()[:, None, None]
    along = (cos * x + sin * y) / lambda1[:, None, None]
    across = (cos * y - sin * x) / lambda2[:, None, None]
    return along.square() + across.square()


def generalized_gaussian_kernels(
    lambda1: Tensor, lambda2: Tensor, theta: Tensor, beta: Tensor, size: int, taps: Tensor | None = None
) -> Tensor:
    """Return generalised Gaussian kernels, `exp(−½ q^β)` with `q = pᵀ Σ⁻¹ p`.

    Args:
        lambda1: As in `quadratic_form`.
        lambda2: As there.
        theta: As there.
        beta: Shapes β, > 0: 1 is the Gaussian, above it the kernel is flatter, below it more peaked.
        size: Taps per axis of the result, odd.
        taps: Taps per axis of each kernel, odd, in [1, size], integers; the kernel is centred among zeros and
            normalised over these taps. None: all have `size`.

    Returns:
        Tensor: Kernels, shape (B, size, size), indexed [y, x], each summing to 1. Finite for any width and shape above
        0: a power that overflows is a weight of 0, and the weight at the centre is 1 before normalisation.
    """
    powers = quadratic_form(lambda1, lambda2, theta, size).pow(beta[:, None, None])
    return _normalised(torch.exp(-powers / 2), taps)


def plateau_kernels(
    lambda1: Tensor, lambda2: Tensor, theta: Tensor, beta: Tensor, size: int, taps: Tensor | None = None
) -> Tensor:
    """Return plateau-shaped kernels, `1 / (1 + q^β)`, likewise; the larger β, the flatter the plateau."""
    powers = quadratic_form(lambda1, lambda2, theta, size).pow(beta[:, None, None])
    return _normalised(1 / (1 + powers), taps)


def sinc_kernels(cutoff: Tensor, size: int, taps: Tensor | None = None) -> Tensor:
    """Return circular low-pass kernels, `ω J₁(ω r) / (2π r)`, with ω² / 4π at the centre: they ring.

    PyTorch's Bessel function J₁, which is used, is good to 5e-7, so that taps are good to some 2e-7 in float64 too.

    Args:
        cutoff: Cut-off frequencies ω in radians per pixel, shape (B,), > 0 and ≤ π. Real-ESRGAN draws them from π/3
            (kernels below 13 taps) or π/5 (all others) upwards.
        size: Taps per axis of the result, odd.
        taps: As in `generalized_gaussian_kernels`.

    Returns:
        Tensor: Kernels, shape (B, size, size), each summing to 1; some taps are negative.
    """
    axis = offsets(size, cutoff)
    radius = torch.hypot(axis[:, None], axis[None, :])
    away = torch.where(radius > 0, radius, 1.0)  # the quotient's limit at the centre is filled in below
    omega = cutoff[:, None, None]
    weights = omega * torch.special.bessel_j1(omega * away) / (2 * math.pi * away)
    return _normalised(torch.where(radius > 0, weights, omega.square() / (4 * math.pi)), taps)


def _normalised(weights: Tensor, taps: Tensor | None) -> Tensor:
    """Cut each kernel down to its taps and let it sum to 1."""
    if taps is not None:
        distance = offsets(weights.shape[-1], weights).abs()
        farthest = torch.maximum(distance[:, None], distance[None, :])
        radius = taps.to(weights.device)[:, None, None] // 2
        weights = torch.where(farthest <= radius, weights, 0.0)
    return weights / weights.sum((-2, -1), keepdim=True)
