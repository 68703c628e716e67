"""Blur kernels, made in batch: Gaussians (k of Eq. 1 of the ReDSR paper) and those of the second-order degradation.

Kernels have the shape (B, size, size), are odd-sized, indexed [y, x], centred and sum to 1. λ1 and λ2 are standard
deviations in HR pixels along the two axes of the kernel, θ turns the first axis from x (columns) towards y (rows), in
radians, and Σ = R(θ) diag(λ1², λ2²) R(θ)ᵀ; `q = pᵀ Σ⁻¹ p` is the squared distance of tap p in units of the widths.

The generalised, plateau and sinc kernels are those of Real-ESRGAN (Wang et al., 2021, Sec. 3 and its released code), as
BasicSR's `bivariate_generalized_Gaussian`, `bivariate_plateau` and `circular_lowpass_kernel` compute them; λ1 is
`sig_x` and λ2 `sig_y` there. They are cut to `taps` per axis, odd, at most `size`, where these are given.

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
    """Return 1-D Gaussians, shape (B, size), whose outer products are the isotropic kernels; σ = 0 is an impulse."""
    squared = offsets(size, sigma).square()
    widths = sigma.clamp_min(torch.finfo(sigma.dtype).tiny ** 0.25)[:, None]
    profiles = torch.exp(-squared / (2 * widths.square()))
    return profiles / profiles.sum(-1, keepdim=True)


def gaussian_kernels(lambda1: Tensor, lambda2: Tensor, theta: Tensor, size: int) -> Tensor:
    """Return Gaussian kernels, `exp(−½ q)`; widths are above 0."""
    return _normalised(torch.exp(-_quadratic_form(lambda1, lambda2, theta, size) / 2), None)


def generalized_gaussian_kernels(
    lambda1: Tensor, lambda2: Tensor, theta: Tensor, beta: Tensor, size: int, taps: Tensor | None = None
) -> Tensor:
    """Return generalised Gaussian kernels, `exp(−½ q^β)`: β = 1 is the Gaussian, above it they are flatter.

    They are finite for any width and β above 0: a power that overflows is a weight of 0, and the centre's is 1 before.
    """
    powers = _quadratic_form(lambda1, lambda2, theta, size).pow(beta[:, None, None])
    return _normalised(torch.exp(-powers / 2), taps)


def plateau_kernels(
    lambda1: Tensor, lambda2: Tensor, theta: Tensor, beta: Tensor, size: int, taps: Tensor | None = None
) -> Tensor:
    """Return plateau-shaped kernels, `1 / (1 + q^β)`, likewise; the larger β, the flatter the plateau."""
    powers = _quadratic_form(lambda1, lambda2, theta, size).pow(beta[:, None, None])
    return _normalised(1 / (1 + powers), taps)


def sinc_kernels(cutoff: Tensor, size: int, taps: Tensor | None = None) -> Tensor:
    """Return circular low-pass kernels, `ω J₁(ω r) / (2π r)`, with ω² / 4π at the centre: some taps are negative.

    The cut-off ω, in radians per pixel, is in (0, π]. PyTorch's Bessel function J₁ is good to 5e-7, so that taps are
    good to some 2e-7 in float64 too.
    """
    axis = offsets(size, cutoff)
    radius = torch.hypot(axis[:, None], axis[None, :])
    away = torch.where(radius > 0, radius, 1.0)  # the quotient's limit at the centre is filled in below
    omega = cutoff[:, None, None]
    weights = omega * torch.special.bessel_j1(omega * away) / (2 * math.pi * away)
    return _normalised(torch.where(radius > 0, weights, omega.square() / (4 * math.pi)), taps)


def _quadratic_form(lambda1: Tensor, lambda2: Tensor, theta: Tensor, size: int) -> Tensor:
    axis = offsets(size, lambda1)
    y, x = axis[:, None], axis[None, :]
    cos, sin = theta.cos()[:, None, None], theta.sin()[:, None, None]
    along = (cos * x + sin * y) / lambda1[:, None, None]
    across = (cos * y - sin * x) / lambda2[:, None, None]
    return along.square() + across.square()


def _normalised(weights: Tensor, taps: Tensor | None) -> Tensor:
    """Cut each kernel down to its taps and let it sum to 1."""
    if taps is not None:
        distance = offsets(weights.shape[-1], weights).abs()
        farthest = torch.maximum(distance[:, None], distance[None, :])
        radius = taps.to(weights.device)[:, None, None] // 2
        weights = torch.where(farthest <= radius, weights, 0.0)
    return weights / weights.sum((-2, -1), keepdim=True)
