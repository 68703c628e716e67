"""A loss of edges, for any model: `train: {edge_opt: {type: EdgeLoss, loss_weight: 0.1}}`."""

from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn


@LOSS_REGISTRY.register()
class EdgeLoss(nn.Module):
    """L1 distance of the differences of neighbouring pixels; logs `l_edge` and `edge_sharpness`."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, sr: Tensor, gt: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare SR with HR images, (B, C, H, W)."""
        distances = [(torch.diff(sr, dim=dim) - torch.diff(gt, dim=dim)).abs().mean() for dim in (2, 3)]
        return self.loss_weight * torch.stack(distances).sum(), {"sharpness": torch.diff(sr.detach()).abs().mean()}
