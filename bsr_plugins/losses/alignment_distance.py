"""How far apart the statistics of two batches of features are: the arithmetic of `AlignmentLoss`.

Features come in one tensor: those of B images under one degradation, then of the same images under another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CACHED = 2**20  # numbers of each half in one pass


class Weights(NamedTuple):
    """Weights of the distances of the means and of the covariances."""

    mean: float
    covariance: float

    @property
    def any(self) -> bool:
        """Whether there is anything to compute."""
        return self.mean > 0 or self.covariance > 0

    def scaled_by(self, factor: float) -> Weights:
        """Return both weights times a factor."""
        return Weights(self.mean * factor, self.covariance * factor)

    def for_scaled(self, factor: float) -> Weights:
        """Return the weights for features that are to be multiplied with √factor and are not."""
        return Weights(self.mean * factor, self.covariance * factor**2)


class SpatialDistance(torch.autograd.Function):
    """Sum over images of the squared distances of means and covariances over positions.

    The gradient is made along with the distances. Autograd would take two products of matrices for one, and write a
    dozen more tensors of the size of the features.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, omega: Tensor, phi: Tensor, linear: Weights, nonlinear: Weights
    ) -> tuple[Tensor, Tensor]:
        """Compute the weighted sum, 0-dim, and without gradient its terms (4,).

        Args:
            ctx: What the backward pass gets.
            features: x, (2·B, C, N).
            omega: ω, (C, n, 1).
            phi: φ, (C, n, 1).
            linear: Weights for x.
            nonlinear: Weights for √(2/n) · cos(ωx + φ).
        """
        count = len(features) // 2
        halves = features[:count], features[count:]
        gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
        terms = features.new_zeros(4)
        for some in _passes(halves[0]):
            one, other = (half[some] for half in halves)
            into = None
            if ctx.needs_input_grad[0]:
                into = gradient[:count][some].zero_(), gradient[count:][some].zero_()
            if linear.any:
                terms[:2] += _add_linear(one, other, linear, into)
            if nonlinear.any:
                terms[2:] += _add_nonlinear(one, other, omega, phi, nonlinear, into)
        ctx.gradient = gradient
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, terms: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        """Scale the gradient, which is there already."""
        as_it_is = total.device.type == "cpu" and float(total) == 1  # on a GPU, to look would be to wait
        return ctx.gradient if as_it_is else ctx.gradient * total, None, None, None, None


def _passes(features: Tensor) -> Iterator[slice]:
    """Divide features (B, C, N) into what is worked on at a time: on a CPU, what its caches hold."""
    count = len(features)
    if features.device.type == "cpu":
        count = max(_CACHED // max(features[0].numel(), 1), 1)
    return (slice(start, start + count) for start in range(0, len(features), count))


class _Distance(NamedTuple):
    """How far features (B, D, N) are from others.

    Attributes:
        terms: The weighted distances of the means and of the covariances (2,).
        matrix: With the offsets, their gradient: `matrix @ one + offset` and `−matrix @ other + other_offset`. None
            stands for zeros.
        offset: (B, D, 1).
        other_offset: (B, D, 1).
    """

    terms: Tensor
    matrix: Tensor | None
    offset: Tensor
    other_offset: Tensor

    def gradients(self, one: Tensor, other: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the gradients of the two, their D rows multiplied by `rows` (D, 1)."""
        matrix, offsets = self.matrix, (self.offset, self.other_offset)
        if rows is not None:
            matrix, offsets = None if matrix is None else rows * matrix, (rows * offsets[0], rows * offsets[1])
        if matrix is None:
            return offsets[0].expand_as(one), offsets[1].expand_as(other)
        return torch.baddbmm(offsets[0], matrix, one), torch.baddbmm(offsets[1], matrix, other, alpha=-1)


def _distance(one: Tensor, other: Tensor, weights: Weights) -> _Distance:
    """Compare features (B, D, N) with others, and sum over B."""
    positions = one.shape[2]
    if weights.covariance == 0:
        means = one.mean(dim=2, keepdim=True) - other.mean(dim=2, keepdim=True)
        slope = 2 * weights.mean / positions * means
        return _Distance(torch.stack([weights.mean * means.square().sum(), means.new_zeros(())]), None, slope, -slope)
    # aaᵀ − bbᵀ = ½ (sdᵀ + dsᵀ) with s = a + b and d = a − b: one product for two, and equal digits do not cancel.
    total, difference = one + other, one - other
    sums, means = total.mean(dim=2, keepdim=True), difference.mean(dim=2, keepdim=True)
    product = torch.baddbmm(sums @ means.mT, total, difference.mT, beta=-1, alpha=1 / positions)
    covariances = (product + product.mT) / 2
    terms = torch.stack([weights.mean * means.square().sum(), weights.covariance * covariances.square().sum()])
    matrix = 4 * weights.covariance / positions * covariances
    slope = 2 * weights.mean / positions * means
    return _Distance(terms, matrix, slope - matrix @ (sums + means) / 2, matrix @ (sums - means) / 2 - slope)


def _add_linear(one: Tensor, other: Tensor, weights: Weights, into: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return the terms of x, (B, C, N), and add their gradient to `into`."""
    distance = _distance(one, other, weights)
    if into is not None:
        for gradient, slope in zip(into, distance.gradients(one, other), strict=True):
            gradient += slope
    return distance.terms


def _add_nonlinear(
    one: Tensor, other: Tensor, omega: Tensor, phi: Tensor, weights: Weights, into: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Return the terms of √(2/n) · cos(ωx + φ), (B, C·n, N), and add their gradient with respect to x to `into`."""
    phases = [torch.addcmul(phi, x.unsqueeze(2), omega).flatten(1, 2) for x in (one, other)]
    waves = [phase.cos() for phase in phases]
    distance = _distance(waves[0], waves[1], weights.for_scaled(2 / omega.shape[1]))
    if into is not None:
        slopes = distance.gradients(waves[0], waves[1], rows=-omega.reshape(-1, 1))
        for gradient, phase, slope in zip(into, phases, slopes, strict=True):
            if omega.shape[1] == 1:
                gradient.addcmul_(slope, phase.sin_())
            else:
                gradient += (slope * phase.sin_()).unflatten(1, omega.shape[:2]).sum(dim=2)
    return distance.terms


def pooled_distance(
    vectors: Tensor, omega: Tensor, phi: Tensor, linear: Weights, nonlinear: Weights
) -> tuple[Tensor, Tensor]:
    """Compare pooled features as the released code does, summed over images.

    Args:
        vectors: Features averaged over positions, (2·B, C).
        omega: ω, (B, 1, n).
        phi: φ, (B, C, n).
        linear: Weights for the vectors, centred over the batch.
        nonlinear: Weights for their random features.

    Returns:
        The weighted sum, 0-dim, and without gradient its terms (4,).
    """
    one, other = (half - half.mean(dim=0) for half in vectors.chunk(2))
    terms = [vectors.new_zeros(2), vectors.new_zeros(2)]
    if linear.any:
        terms[0] = _vector_distance(one, other, linear)
    if nonlinear.any:
        terms[1] = _vector_distance(_waves_of(one, omega, phi), _waves_of(other, omega, phi), nonlinear)
    found = torch.cat(terms)
    return found.sum(), found.detach()


def _vector_distance(one: Tensor, other: Tensor, weights: Weights) -> Tensor:
    """Return the weighted distances (2,) of vectors (B, D), and of their outer products."""
    difference = one - other
    terms = [weights.mean * difference.square().mean(dim=1).sum(), one.new_zeros(())]
    if weights.covariance > 0:
        # uuᵀ − vvᵀ = ½ (sdᵀ + dsᵀ), as above: no matrix is needed.
        total = one + other
        squares = total.square().sum(dim=1) * difference.square().sum(dim=1)
        distance = (squares + (total * difference).sum(dim=1).square()) / 2
        terms[1] = weights.covariance * distance.sum() / one.shape[1] ** 2
    return torch.stack(terms)


def _waves_of(x: Tensor, omega: Tensor, phi: Tensor) -> Tensor:
    """Map vectors (B, C) to the released code's random features (B, C·n)."""
    phase = x.unsqueeze(2) * omega + phi
    phase = phase - phase.amin(dim=1, keepdim=True)
    # With a single channel there is nothing to scale.
    phase = phase / phase.amax(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).eps) * (math.pi / 2)
    return (math.sqrt(2 / omega.shape[2]) * (phase.cos() + phase.sin())).flatten(1)
