"""The contrastive loss."""

from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.blocks import number
from bsr_plugins.registration import register
from bsr_plugins.whole_batch import gather_batch

_LOWEST_TEMPERATURE = 1e-4


@register(LOSS_REGISTRY)
class InfoNCELoss(nn.Module):
    """InfoNCE (van den Oord et al., 2018) of queries and positives against negatives, as MoCo uses it.

    For a query q, a positive p and negatives n_1 … n_K: `−log( exp(q·p/T) / (exp(q·p/T) + Σ_k exp(q·n_k/T))
    )`, averaged over queries and positives. Of several positives each stands alone against the negatives; the
    other positives do not enter its denominator. That averaging is ours: DASR has one positive, and AACL's
    abstract has no formula.

    Args:
        loss_weight: Factor on the loss, at least 0.
        temperature: T, above 0; DASR's is 0.07.
    """

    def __init__(self, loss_weight: float = 1.0, temperature: float = 0.07) -> None:
        super().__init__()
        self.loss_weight = number(loss_weight, "loss_weight", 0.0)
        self.temperature = number(temperature, "temperature", _LOWEST_TEMPERATURE)

    def forward(self, query: Tensor, positive: Tensor, negatives: Tensor, accepted: Tensor | None = None) -> Tensor:
        """Compute the weighted mean, 0-dim, in float32 at least, under autocast too; 0 if no query counts.

        Args:
            query: Unit vectors (B, D).
            positive: Unit vectors (B, D), or (B, M, D) for M positives of each query.
            negatives: Unit vectors (D, K), K ≥ 1, shared by all queries.
            accepted: Which queries count, (B,); None if all do. Under `torch.distributed` the mean of the losses over
                the ranks is then that of one process, however the accepted ones are spread.
        """
        share = 1.0
        if accepted is not None:
            everyones = gather_batch(accepted.sum()[None])
            here, in_all = int(accepted.sum()), int(everyones.sum())
            if here == 0:
                return query.sum() * 0
            query, positive, share = query[accepted], positive[accepted], here * len(everyones) / in_all
        dtype = torch.promote_types(query.dtype, torch.float32)
        if positive.dim() == 2:
            positive = positive.unsqueeze(1)
        with torch.autocast(query.device.type, enabled=False):
            scaled = query.to(dtype) / self.temperature
            for_positive = torch.einsum("bd,bmd->bm", scaled, positive.to(dtype))
            against = torch.logsumexp(scaled @ negatives.to(dtype), dim=1, keepdim=True)
            # -log(e^a / (e^a + e^b)) = -log sigmoid(a - b), which neither overflows nor cancels.
            loss = -F.logsigmoid(for_positive - against).mean()
        return self.loss_weight * loss * share
