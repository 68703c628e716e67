"""The reconstruction loss that trusts a sample as far as its representation could re-degrade it."""

from __future__ import annotations

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from bsr_plugins.blocks import number
from bsr_plugins.errors import BSRError
from bsr_plugins.precision import at_least_float32
from bsr_plugins.registration import register


def redegradation_distance(reproduced: Tensor, lq: Tensor) -> Tensor:
    """Measure how far each reproduced LR image (B, C, h, w) is from the true one: d of ReDSR's Eq. 8.

    That is the RMSE of each sample (B,), in float32 at least; a measurement, without gradient.
    """
    _check_images("redegradation_distance", "reproduced", reproduced, "lq", lq)
    error = at_least_float32(reproduced.detach()) - at_least_float32(lq.detach())
    return error.square().flatten(1).mean(dim=1).sqrt()


def modulation(distance: Tensor) -> Tensor:
    """Weigh samples by confidence (ReDSR, Eq. 8): W = 2 / (1 + C⁻¹) with the confidence C = 1/d, so 2 / (1 + d).

    W (B,) is in float32 at least, in (0, 2], without gradient: 2 for a perfect reproduction, 1 at d = 1.
    """
    return 2 / (1 + at_least_float32(distance.detach()))


@register(LOSS_REGISTRY)
class ModulatedL1Loss(nn.Module):
    """L1 loss with each sample weighted by the confidence of its re-degradation (ReDSR, Eq. 7 and 8).

    `mean_i( W_i · mean|sr_i − gt_i| )`, W from `modulation`, through which no gradient flows. That the norm of Eq. 7
    is a mean over pixels and channels is our reading. The released code's W is the constant 2, which is BasicSR's
    `L1Loss` with `loss_weight: 2`.

    Args:
        loss_weight: Factor on the loss, at least 0.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = number(loss_weight, "loss_weight", 0.0)

    def forward(self, sr: Tensor, gt: Tensor, distance: Tensor) -> Tensor:
        """Compute the weighted loss, 0-dim, in float32 at least, of images (B, C, H, W) and of d (B,)."""
        _check_images("ModulatedL1Loss", "sr", sr, "gt", gt)
        if distance.shape != sr.shape[:1]:
            raise BSRError(f"ModulatedL1Loss: distance {tuple(distance.shape)}, expected ({sr.shape[0]},)")
        error = at_least_float32(sr) - at_least_float32(gt)
        return self.loss_weight * (modulation(distance) * error.abs().flatten(1).mean(dim=1)).mean()


def _check_images(where: str, name: str, images: Tensor, other_name: str, others: Tensor) -> None:
    if images.dim() != 4 or images.shape != others.shape:
        shapes = f"{name} {tuple(images.shape)} and {other_name} {tuple(others.shape)}"
        raise BSRError(f"{where}: {shapes}, expected two equal shapes (B, C, H, W)")
