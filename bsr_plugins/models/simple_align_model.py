"""Simple-Align: one degradation of an image must give the features that another gives."""

from __future__ import annotations

from typing import Any

from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

from bsr_plugins.models.blind_sr_model import BlindSRModel
from bsr_plugins.registration import register


@register(MODEL_REGISTRY)
class SimpleAlignModel(BlindSRModel):
    """Trains any network, e.g. `MSRResNet`, on two degradations of every image (Wang et al., CVPR 2024).

    Options are those of `BlindSRModel`, and tell the paper's three kinds of run apart:

    * `train.align_opt: {type: AlignmentLoss}`: both LR images go through `network_g` in one pass and both outputs are
      held to the HR image; the alignment is added;
    * `train.dropout: {p: 0.7}`: the competitor, on one degradation per image;
    * with neither: the baseline, on one degradation per image.

    In the other models `align_opt` leaves the second output without a loss of its own.

    Raises:
        OptionError: The blocks do not fit together.
    """

    def method_part(self, result: Any) -> Any:
        """Return all that `network_g` gave: the other losses see both degradations."""
        return result

    def restoration_losses(self, output: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """Return the losses of `train.pixel_opt` and `train.perceptual_opt`, over both outputs where there are two."""
        return super().restoration_losses(output, gt if len(output) == len(gt) else gt.repeat(2, 1, 1, 1))
