"""The loss that holds features of one image under two degradations to equal mean and covariance.

Features come in one tensor: those of B images under one degradation, then of the same images under another.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bsr_plugins.blocks import integer, number
from bsr_plugins.errors import BSRError, OptionError, unknown_name
from bsr_plugins.precision import at_least_float32
from bsr_plugins.registration import register
from bsr_plugins.whole_batch import gather_batch

STATISTICS = ("spatial", "pooled")
TERMS = ("linear_mean", "linear_covariance", "nonlinear_mean", "nonlinear_covariance")
Weights = tuple[float, float]  # of the distances of the means and of the covariances
_CACHED = 2**20  # numbers of each half in one pass on a CPU: what its caches hold


@register(LOSS_REGISTRY)
class AlignmentLoss(nn.Module):
    """Distance of the statistics of two batches of features (Simple-Align, Wang et al., CVPR 2024, Sec. 4).

    Row i of both batches is one image under two degradations. There are four terms, each with a weight that is the
    product of `loss_weight` and two others; a term of weight 0 is not computed:

    * `linear_mean` and `linear_covariance`: the distance of the means and of the covariances of the features;
    * `nonlinear_mean` and `nonlinear_covariance`: the same of random Fourier features `√2 · cos(ωx + φ)`,
      ω ~ N(0, 1), φ ~ U(0, 2π), drawn anew in each call, the same for both batches.

    With `statistics: spatial`, the paper's text, mean μ and covariance Σ of an image are those of its C-vectors at the
    H·W positions: `‖μ_a − μ_b‖²` and `‖Σ_a − Σ_b‖²_F`. Every channel has its n functions, those of all images. Ours,
    where the paper is silent: Σ is divided by H·W, not H·W − 1; the terms are means over the images; the functions are
    divided by √n, so that the size of the terms does not depend on n.

    With `statistics: pooled`, the released code, features are averaged over the positions to C-vectors u_i and v_i, and
    the mean over the batch is taken off. The mean term is `mean_c (u_ic − v_ic)²` and the covariance term
    `mean_cd (u_ic u_id − v_ic v_id)²`, both summed over the images. For the nonlinear terms every image has n values ω,
    shared by its channels, and n values φ per channel; ωx + φ is shifted and scaled to [0, π/2] over the channels of
    each vector, and the feature is `√(2/n) · (cos + sin)` of that. The released n is 1.

    Under `torch.distributed` the spatial loss is that of a rank's images, and the mean over the ranks is that of one
    process. The pooled loss is that of the batch of all ranks on every rank; see `RepresentationLoss`.

    Args:
        loss_weight: Factor on all terms, at least 0; the released code's is 1.
        statistics: `spatial` or `pooled`.
        linear_weight: Factor on the linear terms, at least 0.
        nonlinear_weight: Factor on the nonlinear terms, at least 0.
        mean_weight: Factor on the mean terms, at least 0.
        covariance_weight: Factor on the covariance terms, at least 0.
        num_random_features: n, at least 1: random Fourier features per channel. The covariance of the spatial
            nonlinear term has (n · C)² entries.
        stride: With s > 1, statistics are of every s-th row and column, from a random one of the first s on: ours,
            for about 1/s² of the cost. 1 is the paper's.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        statistics: str = "spatial",
        linear_weight: float = 1.0,
        nonlinear_weight: float = 1.0,
        mean_weight: float = 1.0,
        covariance_weight: float = 1.0,
        num_random_features: int = 1,
        stride: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(statistics, str) or statistics not in STATISTICS:
            raise unknown_name("statistics", statistics, STATISTICS)
        self.statistics = statistics
        self.num_random_features = integer(num_random_features, "num_random_features", 1)
        self.stride = integer(stride, "stride", 1)
        factors = {
            "loss": loss_weight,
            "linear": linear_weight,
            "nonlinear": nonlinear_weight,
            "mean": mean_weight,
            "covariance": covariance_weight,
        }
        for name, factor in factors.items():
            number(factor, f"{name}_weight", 0.0)
        self.linear, self.nonlinear = (
            (loss_weight * factor * mean_weight, loss_weight * factor * covariance_weight)
            for factor in (linear_weight, nonlinear_weight)
        )
        if not any((*self.linear, *self.nonlinear)):
            raise OptionError(f"loss_weight: {factors} switch every term off, expected one that is on")

    @property
    def least_batch(self) -> int:
        """How many images it needs, over all ranks: two where they are centred over the batch."""
        return 2 if self.statistics == "pooled" else 1

    def forward(
        self, paired_features: Tensor, generator: torch.Generator, views: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted terms, in float32 at least, under autocast too.

        Args:
            paired_features: (2·B, C, H, W): images under one degradation, then the same images under another.
            generator: CPU generator of ω, φ and of where to begin with a stride, in the same state on every rank.
            views: How many images, one after another, are one sample's; the order of all ranks' images follows from it.

        Returns:
            The sum of the weighted terms, 0-dim, which can be differentiated once; and without gradient those of them
            that are switched on, by name.
        """
        features = paired_features
        if features.dim() != 4 or len(features) % 2:
            raise BSRError(f"AlignmentLoss: paired_features {tuple(features.shape)}, expected (2·B, C, H, W)")
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_float32(self._thin_out(features, generator))
            if self.statistics == "pooled":
                total, terms = self._measure_pooled(features, views, generator)
            else:
                total, terms = self._measure_spatial(features, generator)
        named = zip(TERMS, (*self.linear, *self.nonlinear), terms, strict=True)
        return total, {name: term for name, weight, term in named if weight > 0}

    def _measure_spatial(self, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = (features.shape[1], self.num_random_features, 1)
        omega, phi = (draw.to(features) for draw in self._draw(shape, shape, generator))
        share = 2 / len(features)
        weights = [(mean * share, covariance * share) for mean, covariance in (self.linear, self.nonlinear)]
        found: tuple[Tensor, Tensor] = _SpatialDistance.apply(features.flatten(2), omega, phi, *weights)
        return found

    def _measure_pooled(self, features: Tensor, views: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # Samples first, so that the ranks' samples are put together, and with them both degradations and all views.
        local = features.mean(dim=(2, 3)).unflatten(0, (2, -1, views)).transpose(0, 1)
        vectors = gather_batch(local).transpose(0, 1).flatten(0, 2)
        batch, channels = len(vectors) // 2, vectors.shape[1]
        if batch < 2:
            raise BSRError(
                f"AlignmentLoss: a batch of {batch} over all ranks, expected at least 2 images with statistics: pooled"
            )
        n = self.num_random_features
        omega, phi = (draw.to(vectors) for draw in self._draw((batch, 1, n), (batch, channels, n), generator))
        one, other = (half - half.mean(dim=0) for half in vectors.chunk(2))
        terms = [vectors.new_zeros(2), vectors.new_zeros(2)]
        if any(self.linear):
            terms[0] = _vector_distance(one, other, self.linear)
        if any(self.nonlinear):
            terms[1] = _vector_distance(
                _vector_waves(one, omega, phi), _vector_waves(other, omega, phi), self.nonlinear
            )
        found = torch.cat(terms)
        return found.sum(), found.detach()

    def _thin_out(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Take every s-th row and column of (B, C, H, W)."""
        if self.stride == 1:
            return features
        if min(features.shape[2:]) <= self.stride:
            size = "x".join(map(str, features.shape[2:]))
            raise BSRError(f"AlignmentLoss.stride: {self.stride} for features of {size}, expected less than a side")
        first = [int(torch.randint(self.stride, (), generator=generator)) for _ in range(2)]
        return features[:, :, first[0] :: self.stride, first[1] :: self.stride]

    def _draw(
        self, of_omega: tuple[int, ...], of_phi: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw ω and φ of some shapes on the CPU, if they are needed."""
        if not any(self.nonlinear):
            return torch.zeros(of_omega), torch.zeros(of_phi)
        omega = torch.randn(of_omega, generator=generator, dtype=torch.float32)
        return omega, 2 * math.pi * torch.rand(of_phi, generator=generator, dtype=torch.float32)


class _SpatialDistance(torch.autograd.Function):
    """Sum over images of the squared distances of means and covariances over positions.

    Of features x (2·B, C, N), ω and φ (C, n, 1), and weights for x and for √(2/n) · cos(ωx + φ), it makes the sum,
    0-dim, and without gradient its terms (4,). The gradient is made along with them: autograd would take two products
    of matrices for one, and write a dozen more tensors of the size of the features.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, omega: Tensor, phi: Tensor, linear: Weights, nonlinear: Weights
    ) -> tuple[Tensor, Tensor]:
        count = len(features) // 2
        at_a_time = count if features.device.type != "cpu" else max(_CACHED // max(features[0].numel(), 1), 1)
        ctx.gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
        terms = features.new_zeros(4)
        for start in range(0, count, at_a_time):
            some = slice(start, min(start + at_a_time, count))
            one, other = features[:count][some], features[count:][some]
            into = ctx.gradient[:count][some].zero_(), ctx.gradient[count:][some].zero_()
            if any(linear):
                found, slopes = _distance(one, other, linear)
                terms[:2] += found
                for gradient, slope in zip(into, slopes, strict=True):
                    gradient += slope
            if any(nonlinear):
                terms[2:] += _add_waves(one, other, omega, phi, nonlinear, into)
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, terms: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        as_it_is = total.device.type == "cpu" and float(total) == 1  # on a GPU, to look would be to wait
        return ctx.gradient if as_it_is else ctx.gradient * total, None, None, None, None


def _distance(
    one: Tensor, other: Tensor, weights: Weights, rows: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Compare features (B, D, N) with others, and sum over B.

    Returns:
        The weighted distances of the means and of the covariances (2,), and the gradients of the two, their D rows
        multiplied by `rows` (D, 1).
    """
    positions = one.shape[2]
    if weights[1] == 0:
        means = one.mean(dim=2, keepdim=True) - other.mean(dim=2, keepdim=True)
        slope = 2 * weights[0] / positions * means
        terms = torch.stack([weights[0] * means.square().sum(), means.new_zeros(())])
        offsets = [slope, -slope] if rows is None else [rows * slope, rows * -slope]
        return terms, (offsets[0].expand_as(one), offsets[1].expand_as(other))
    # aaᵀ − bbᵀ = ½ (sdᵀ + dsᵀ) with s = a + b and d = a − b: one product for two, and equal digits do not cancel.
    total, difference = one + other, one - other
    sums, means = total.mean(dim=2, keepdim=True), difference.mean(dim=2, keepdim=True)
    product = torch.baddbmm(sums @ means.mT, total, difference.mT, beta=-1, alpha=1 / positions)
    covariances = (product + product.mT) / 2
    terms = torch.stack([weights[0] * means.square().sum(), weights[1] * covariances.square().sum()])
    matrix = 4 * weights[1] / positions * covariances
    slope = 2 * weights[0] / positions * means
    offsets = [slope - matrix @ (sums + means) / 2, matrix @ (sums - means) / 2 - slope]
    if rows is not None:
        matrix, offsets = rows * matrix, [rows * offset for offset in offsets]
    return terms, (torch.baddbmm(offsets[0], matrix, one), torch.baddbmm(offsets[1], matrix, other, alpha=-1))


def _add_waves(
    one: Tensor, other: Tensor, omega: Tensor, phi: Tensor, weights: Weights, into: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the terms of √(2/n) · cos(ωx + φ), (B, C·n, N), and add their gradient with respect to x to `into`."""
    phases = [torch.addcmul(phi, x.unsqueeze(2), omega).flatten(1, 2) for x in (one, other)]
    waves = [phase.cos() for phase in phases]
    factor = 2 / omega.shape[1]
    scaled = weights[0] * factor, weights[1] * factor**2  # the waves are not multiplied with √(2/n)
    terms, slopes = _distance(waves[0], waves[1], scaled, rows=-omega.reshape(-1, 1))
    for gradient, phase, slope in zip(into, phases, slopes, strict=True):
        if omega.shape[1] == 1:
            gradient.addcmul_(slope, phase.sin_())
        else:
            gradient += (slope * phase.sin_()).unflatten(1, omega.shape[:2]).sum(dim=2)
    return terms


def _vector_distance(one: Tensor, other: Tensor, weights: Weights) -> Tensor:
    """Return the weighted distances (2,) of vectors (B, D), and of their outer products."""
    difference = one - other
    terms = [weights[0] * difference.square().mean(dim=1).sum(), one.new_zeros(())]
    if weights[1] > 0:
        # uuᵀ − vvᵀ = ½ (sdᵀ + dsᵀ), as above: no matrix is needed.
        total = one + other
        squares = total.square().sum(dim=1) * difference.square().sum(dim=1)
        distance = (squares + (total * difference).sum(dim=1).square()) / 2
        terms[1] = weights[1] * distance.sum() / one.shape[1] ** 2
    return torch.stack(terms)


def _vector_waves(x: Tensor, omega: Tensor, phi: Tensor) -> Tensor:
    """Map vectors (B, C) to the released code's random features (B, C·n), by ω (B, 1, n) and φ (B, C, n)."""
    phase = x.unsqueeze(2) * omega + phi
    phase = phase - phase.amin(dim=1, keepdim=True)
    # With a single channel there is nothing to scale.
    phase = phase / phase.amax(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).eps) * (math.pi / 2)
    return (math.sqrt(2 / omega.shape[2]) * (phase.cos() + phase.sin())).flatten(1)
