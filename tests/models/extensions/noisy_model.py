"""A model with a key under `train`: `model_type: NoisyModel`, `train: {lq_noise: 0.02}`."""

from __future__ import annotations

import torch
from basicsr.utils.registry import MODEL_REGISTRY
from pydantic import Field
from torch import Tensor

from bsr_plugins.degradations import Params
from bsr_plugins.models import BlindSRModel


@MODEL_REGISTRY.register()
class NoisyModel(BlindSRModel):
    """A `BlindSRModel` whose LR patches get Gaussian noise after their degradation."""

    class TrainOptions(BlindSRModel.TrainOptions):
        """Keys under `train`."""

        lq_noise: float = Field(default=0.0, ge=0, le=1, description="Standard deviation of the noise.")

    train_options: TrainOptions

    def prepare_batch(self, gt: Tensor, lq: Tensor, params: Params) -> None:
        """Add noise, drawn for the batch of all ranks, a function of seed and iteration."""
        super().prepare_batch(gt, lq, params)
        noise = self.draw("lq noise", len(self.lq), self._noise).to(self.lq)
        self.lq = self.lq + self.train_options.lq_noise * noise
        self.figures["lq_noise"] = self.train_options.lq_noise * noise.std()

    def _noise(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, *self.lq.shape[1:], generator=generator)
