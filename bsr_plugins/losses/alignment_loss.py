"""The loss that holds features of one image under two degradations to equal mean and covariance."""

from __future__ import annotations

import math
from functools import partial

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from bsr_plugins.blocks import integer, number
from bsr_plugins.errors import BSRError, OptionError, unknown_name
from bsr_plugins.losses.alignment_distance import SpatialDistance, Weights, pooled_distance
from bsr_plugins.precision import at_least_float32
from bsr_plugins.registration import register
from bsr_plugins.whole_batch import gather_batch

STATISTICS = ("spatial", "pooled")
TERMS = ("linear_mean", "linear_covariance", "nonlinear_mean", "nonlinear_covariance")


@register(LOSS_REGISTRY)
class AlignmentLoss(nn.Module):
    """Distance of the statistics of two batches of features (Simple-Align, Wang et al., CVPR 2024, Sec. 4).

    Row i of both batches is one image under two degradations. There are four terms, each with a weight that is the
    product of `loss_weight` and two others; a term of weight 0 is not computed:

    * `linear_mean` and `linear_covariance`: the distance of the means and of the covariances of the features;
    * `nonlinear_mean` and `nonlinear_covariance`: the same of random Fourier features `√2 · cos(ωx + φ)`,
      ω ~ N(0, 1), φ ~ U(0, 2π), drawn anew in each call, the same for both batches.

    With `statistics: spatial`, the paper's text, mean μ and covariance Σ of an image are those of its C-vectors at the
    H·W positions: `‖μ_a − μ_b‖²` and `‖Σ_a − Σ_b‖²_F`. They do not depend on where in the image a vector is. Every
    channel has its n functions, with its ω and φ, which are those of all images. Ours, where the paper is
    silent: Σ is divided by H·W, not H·W − 1; the terms are means over the images; the functions are divided by √n,
    so that the size of the terms does not depend on n.

    With `statistics: pooled`, the released code, features are averaged over the positions to C-vectors u_i and v_i, and
    the mean over the batch is taken off. The mean term is `mean_c (u_ic − v_ic)²` and the covariance term
    `mean_cd (u_ic u_id − v_ic v_id)²`, both summed over the images. For the nonlinear terms every image has n values ω,
    shared by its channels, and n values φ per channel; ωx + φ is shifted and scaled to [0, π/2] over the channels of
    each vector, and the feature is `√(2/n) · (cos + sin)` of that. The released n is 1.

    Under `torch.distributed` the spatial loss is that of a rank's part of the batch, as each image stands alone,
    and the mean over the ranks is that of one process. The pooled loss is that of the batch of all ranks, gathered with
    gradient, on every rank; see `RepresentationLoss`.

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

    Raises:
        OptionError: An argument is out of its range or unknown, or every term has weight 0.
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
            Weights(loss_weight * factor * mean_weight, loss_weight * factor * covariance_weight)
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
            The sum of the weighted terms, 0-dim, which can be differentiated once; and without gradient the terms that
            are switched on, by name, each 0-dim.

        Raises:
            BSRError: The shape is another, or a batch of one is to be centred.
        """
        features = paired_features
        if features.dim() != 4 or len(features) % 2:
            raise BSRError(f"AlignmentLoss: paired_features {tuple(features.shape)}, expected (2·B, C, H, W)")
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_float32(self._thin_out(features, generator))
            measure = self._measure_spatial if self.statistics == "spatial" else partial(self._measure_pooled, views)
            total, terms = measure(features, generator)
        named = zip(TERMS, (*self.linear, *self.nonlinear), terms, strict=True)
        return total, {name: term for name, weight, term in named if weight > 0}

    def _measure_spatial(self, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Compare (2·B, C, H, W); returns the loss and its terms (4,)."""
        batch, channels = len(features) // 2, features.shape[1]
        omega, phi = (draw.to(features) for draw in self._draw(batch, channels, generator))
        weights = [weights.scaled_by(1 / batch) for weights in (self.linear, self.nonlinear)]
        found: tuple[Tensor, Tensor] = SpatialDistance.apply(features.flatten(2), omega, phi, *weights)
        return found

    def _measure_pooled(self, views: int, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Compare (2·B, C, H, W) of all ranks; returns the loss and its terms (4,)."""
        # Samples first, so that the ranks' samples are put together, and with them both degradations and all views.
        local = features.mean(dim=(2, 3)).unflatten(0, (2, -1, views)).transpose(0, 1)
        vectors = gather_batch(local).transpose(0, 1).flatten(0, 2)
        batch, channels = len(vectors) // 2, vectors.shape[1]
        if batch < 2:
            raise BSRError(
                f"AlignmentLoss: a batch of {batch} over all ranks, expected at least 2 images with statistics: pooled"
            )
        omega, phi = (draw.to(vectors) for draw in self._draw(batch, channels, generator))
        return pooled_distance(vectors, omega, phi, self.linear, self.nonlinear)

    def _thin_out(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Take every s-th row and column of (B, C, H, W)."""
        if self.stride == 1:
            return features
        if min(features.shape[2:]) <= self.stride:
            size = "x".join(map(str, features.shape[2:]))
            raise BSRError(f"AlignmentLoss.stride: {self.stride} for features of {size}, expected less than a side")
        first = [int(torch.randint(self.stride, (), generator=generator)) for _ in range(2)]
        return features[:, :, first[0] :: self.stride, first[1] :: self.stride]

    def _draw(self, batch: int, channels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ω and φ on the CPU, in the shapes that the arithmetic wants."""
        n = self.num_random_features
        shapes = [(channels, n, 1)] * 2 if self.statistics == "spatial" else [(batch, 1, n), (batch, channels, n)]
        if not self.nonlinear.any:
            return torch.zeros(shapes[0]), torch.zeros(shapes[1])
        omega = torch.randn(shapes[0], generator=generator, dtype=torch.float32)
        return omega, 2 * math.pi * torch.rand(shapes[1], generator=generator, dtype=torch.float32)
