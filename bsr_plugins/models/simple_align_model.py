"""Simple-Align: one degradation of an image must give the features that another gives."""

from __future__ import annotations

from basicsr.utils.registry import MODEL_REGISTRY

from bsr_plugins.models.blind_sr_model import BlindSRModel
from bsr_plugins.registration import register


@register(MODEL_REGISTRY)
class SimpleAlignModel(BlindSRModel):
    """Trains any network, e.g. `MSRResNet`, on two degradations of every image (Wang et al., CVPR 2024).

    Options are those of `BlindSRModel`, and distinguish the paper's three kinds of run:

    * `train.align_opt: {type: AlignmentLoss}`: both LR images go through `network_g` in one pass and both outputs are
      held to the HR image; the alignment is added;
    * `train.dropout: {p: 0.7}`: the competitor, on one degradation per image;
    * with neither: the baseline, on one degradation per image.

    In the other models `align_opt` leaves the second output without a loss of images.
    """

    restores_pairs = True
