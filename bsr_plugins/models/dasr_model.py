"""DASR: unsupervised degradation representation learning by contrast."""

from __future__ import annotations

from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

from bsr_plugins.degradations import Params
from bsr_plugins.models.contrastive_model import ContrastiveModel
from bsr_plugins.registration import register


@register(MODEL_REGISTRY)
class DASRModel(ContrastiveModel):
    """Trains `DASR`, or another network with a contrastive encoder, as DASR (Wang et al., CVPR 2021) does.

    Two patches of an image share one degradation: the first is the query and is super-resolved, the second is its
    positive. Options are those of `ContrastiveModel`. With `train.representation_opt: {type: EnergyDistanceLoss}` it
    is the "DASR + ED loss" of ReDSR's Table 4.
    """

    def init_training_settings(self) -> None:
        super().init_training_settings()
        line = f"datasets.train.num_views: {self.num_views}, expected 2, a query and its positive"
        self.expect(self.num_views == 2, line)

    def prepare_batch(self, gt: Tensor, lq: Tensor, params: Params) -> None:  # noqa: ARG002
        """Take the first view as the query, the second as its key."""
        self.lq, self.gt, self.key_lq = lq[:, 0], gt[:, 0], lq[:, 1]
