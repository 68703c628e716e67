"""Losses that hold a batch of representations to a known distribution: energy distance, and KL divergence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from bsr_plugins.blocks import boolean, integer, number
from bsr_plugins.errors import BSRError, unknown_name
from bsr_plugins.registration import register
from bsr_plugins.whole_batch import gather_batch

# Representations of an untrained encoder have variances of 1e-8, and need the gradient that spreads them.
LEAST_VARIANCE = 1e-12

DISTRIBUTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "gaussian": lambda samples, generator: samples.normal_(generator=generator),
    "uniform": lambda samples, generator: samples.uniform_(generator=generator),
    "exponential": lambda samples, generator: samples.exponential_(generator=generator),
}
"""What `EnergyDistanceLoss` can draw, into a float32 tensor on the CPU.

The paper names the three and gives no parameters; that these standard forms are meant is our reading.
"""


class RepresentationLoss(nn.Module, ABC):
    """A loss on the distribution of a batch of representations; its block goes with any model that has them.

    Under `torch.distributed` every rank computes the loss of the batch of all ranks. The backward pass of the gathering
    sums over ranks, and DistributedDataParallel averages the parameters' gradients, so that they are those of one
    process. For that, ranks need batches of equal size and generators in equal states.
    """

    least_batch = 1  # how many representations it needs, over all ranks

    def __init__(self, loss_weight: float = 0.01) -> None:
        super().__init__()
        self.loss_weight = number(loss_weight, "loss_weight", 0.0)

    def forward(self, representation: Tensor, generator: torch.Generator) -> Tensor:
        """Compute the weighted loss, 0-dim, in float32 at least, under autocast too.

        Args:
            representation: (B, C), this rank's part of the batch.
            generator: CPU generator of all that is drawn, in the same state on every rank.
        """
        if representation.dim() != 2:
            raise BSRError(f"{type(self).__name__}: representation {tuple(representation.shape)}, expected (B, C)")
        dtype = torch.promote_types(representation.dtype, torch.float32)
        with torch.autocast(representation.device.type, enabled=False):
            loss = self.measure(gather_batch(representation.to(dtype)), generator)
        return self.loss_weight * loss

    @abstractmethod
    def measure(self, representation: Tensor, generator: torch.Generator) -> Tensor:
        """Compute the unweighted loss, 0-dim, of the whole batch (B, C)."""


@register(LOSS_REGISTRY)
class EnergyDistanceLoss(RepresentationLoss):
    """Energy distance of a batch of representations to samples of a known distribution (ReDSR, Eq. 5).

    With representations f_1 … f_b and samples t_1 … t_m: `2/(bm) Σ_i Σ_j |f_i − t_j| − 1/b² Σ_i Σ_j |f_i − f_j| −
    1/m² Σ_i Σ_j |t_i − t_j|`, Euclidean norms, each point's pair with itself included. It is at least 0. The distance
    of two points that coincide has gradient 0.

    Args:
        loss_weight: Factor on the loss, at least 0; the paper's λ1 is 0.01.
        distribution: `gaussian` N(0, 1), `uniform` U(0, 1) or `exponential` of rate 1, independent in each
            component; see `DISTRIBUTIONS`. The paper's default is the Gaussian.
        num_samples: m, at least 1; the paper's is 64. They are drawn anew in each call, in float32.
        divide_by_dim: Whether to divide by C, as the released code does and Eq. 5 does not.
    """

    def __init__(
        self,
        loss_weight: float = 0.01,
        distribution: str = "gaussian",
        num_samples: int = 64,
        divide_by_dim: bool = False,
    ) -> None:
        super().__init__(loss_weight)
        if not isinstance(distribution, str) or distribution not in DISTRIBUTIONS:
            raise unknown_name("distribution", distribution, DISTRIBUTIONS)
        self.distribution = distribution
        self.num_samples = integer(num_samples, "num_samples", 1)
        self.divide_by_dim = boolean(divide_by_dim, "divide_by_dim")

    def measure(self, representation: Tensor, generator: torch.Generator) -> Tensor:
        dim = representation.shape[1]
        samples = torch.empty(self.num_samples, dim, dtype=torch.float32)
        samples = DISTRIBUTIONS[self.distribution](samples, generator).to(representation)
        distance = (
            2 * _mean_distance(representation, samples)
            - _mean_distance(representation, representation)
            - _mean_distance(samples, samples)
        )
        return distance / dim if self.divide_by_dim else distance


def _mean_distance(first: Tensor, second: Tensor) -> Tensor:
    # The faster form by a matrix product loses the digits of small distances.
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").mean()


@register(LOSS_REGISTRY)
class KLDivergenceLoss(RepresentationLoss):
    """KL divergence of the representations' Gaussian from N(0, I): the ablation of ReDSR's Table 2, model 7.

    The paper gives no formula. Ours fits a Gaussian with diagonal covariance to the batch, with mean μ_c and
    (biased) variance σ_c² per component: `1/2 Σ_c (μ_c² + σ_c² − 1 − ln σ_c²)`. A variance below
    `LEAST_VARIANCE` counts as that and takes no gradient.

    Args:
        loss_weight: Factor on the loss, at least 0; the paper names none for it, 0.01 is that of the energy
            distance which it replaces.
    """

    least_batch = 2

    def measure(self, representation: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        count = representation.shape[0]
        if count < 2:
            raise BSRError(f"KLDivergenceLoss: a batch of {count} over all ranks, expected at least 2 representations")
        variance = representation.var(dim=0, correction=0).clamp_min(LEAST_VARIANCE)
        return 0.5 * (representation.mean(dim=0).square() + variance - 1 - variance.log()).sum()
