"""Gaussian blur kernels, drawn up in batch (k of Eq. 1 of the ReDSR paper).

Kernels are odd-sized, centred and sum to 1. λ1 and λ2 are standard deviations in HR pixels along the two axes of
the kernel, θ turns the first axis from x towards y, in radians. λ = 0 stands for no blur, for isotropic kernels only.
"""

from __future__ import annotations

import torch
from torch import Tensor


def offsets(size: int, like: Tensor) -> Tensor:
    """Return the tap positions −r … r of a kernel of `size` = 2r + 1 taps, shape (size,)."""
    radius = size // 2
    return torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)


def gaussian_profiles(sigma: Tensor, size: int) -> Tensor:
    """Return 1-D Gaussians; the outer product of a profile with itself is the isotropic kernel of that width.

    Args:
        sigma: Standard deviations in HR pixels, shape (B,), ≥ 0; 0 gives the unit impulse.
        size: Number of taps, odd.

    Returns:
        Tensor: Profiles, shape (B, size), each summing to 1.
    """
    squared = offsets(size, sigma).square()
    widths = sigma.clamp_min(torch.finfo(sigma.dtype).tiny ** 0.25)[:, None]
    profiles = torch.exp(-squared / (2 * widths.square()))
    return profiles / profiles.sum(-1, keepdim=True)


def gaussian_kernels(lambda1: Tensor, lambda2: Tensor, theta: Tensor, size: int) -> Tensor:
    """Return 2-D Gaussian kernels with covariance R(θ) diag(λ1², λ2²) R(θ)ᵀ.

    Args:
        lambda1: Standard deviations along the axis at angle θ, shape (B,), > 0.
        lambda2: Standard deviations across it, shape (B,), > 0.
        theta: Angles in radians, shape (B,).
        size: Taps per axis, odd.

    Returns:
        Tensor: Kernels, shape (B, size, size), indexed [y, x], each summing to 1.
    """
    kernels = torch.exp(-quadratic_form(lambda1, lambda2, theta, size) / 2)
    return kernels / kernels.sum((-2, -1), keepdim=True)


def quadratic_form(lambda1: Tensor, lambda2: Tensor, theta: Tensor, size: int) -> Tensor:
    """Return `q = pᵀ Σ⁻¹ p` at every tap p, for the covariances Σ of `gaussian_kernels`.

    Args:
        lambda1: Standard deviations along the axis at angle θ, shape (B,), > 0.
        lambda2: Standard deviations across it, shape (B,), > 0.
        theta: Angles in radians, shape (B,).
        size: Taps per axis, odd.

    Returns:
        Tensor: Squared distances from the centre in units of the widths, shape (B, size, size), indexed [y, x].
    """
    axis = offsets(size, lambda1)
    y, x = axis[:, None], axis[None, :]
    cos, sin = theta.cos()[:, None, None], theta.sin()[:, None, None]
    along = (cos * x + sin * y) / lambda1[:, None, None]
    across = (cos * y - sin * x) / lambda2[:, None, None]
    return along.square() + across.square()
