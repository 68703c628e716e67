"""Adaptive alignment contrastive learning (AACL)."""

from __future__ import annotations

import torch
from basicsr.utils.registry import MODEL_REGISTRY
from pydantic import Field
from torch import Tensor

from bsr_plugins.degradations import Params, degraded_distance, sigma_align
from bsr_plugins.models.contrastive_model import ContrastiveModel
from bsr_plugins.models.step_losses import same
from bsr_plugins.options.declared import OptionBlock, Whole
from bsr_plugins.registration import register


class SigmaAlignment(OptionBlock):
    """How positives are chosen among the views of an image."""

    keep: Whole = Field(default=2, ge=2, description="How many views m are kept: one query and m - 1 positives.")
    max_std: float | None = Field(
        default=None,
        ge=0,
        description="Sets with a larger standard deviation of the degraded distance, in grey levels, give no contrast.",
    )


@register(MODEL_REGISTRY)
class AACLModel(ContrastiveModel):
    """Trains a network with a contrastive encoder, e.g. `AACLNet`, on views that are aligned by degraded distance.

    Of an image's V views (`num_views`), all under one degradation, those m are kept whose degraded distances have the
    smallest standard deviation (sigma-alignment); one of them is the query and is super-resolved, the others are its
    positives. Contrast is MoCo's, with the settings of DASR. Adaptive degradation sampling (ADS) is the `ads` sampler
    of the degradation block. To the options of `ContrastiveModel` comes `train.sigma_alignment`. A set whose deviation
    is above its `max_std` is left out of the contrast, not of the restoration, and its keys still serve as negatives.
    Losses get `accepted` (B,): whether a set counts. `align_std` (mean deviation of the kept sets, in grey levels) and
    `align_accepted` are logged.

    Source: AACL's abstract names ADS, sigma-alignment and the fusion modules; the losses, the phase and how these are
    put together are DASR's, or ours where DASR has no counterpart.
    """

    class TrainOptions(ContrastiveModel.TrainOptions):
        sigma_alignment: SigmaAlignment | None = Field(
            default=None, description="How positives are chosen among the views of an image; null takes the defaults."
        )

    train_options: TrainOptions

    def init_training_settings(self) -> None:
        super().init_training_settings()
        keep = self.alignment.keep
        line = f"datasets.train.num_views: {self.num_views}, expected at least train.sigma_alignment.keep, which is"
        self.expect(self.num_views >= keep, f"{line} {keep}")

    @property
    def alignment(self) -> SigmaAlignment:
        """How positives are chosen."""
        return self.train_options.sigma_alignment or SigmaAlignment()

    @property
    def keys_per_query(self) -> int:
        return self.alignment.keep - 1

    def offers(self, key: str) -> dict[str, str]:
        return super().offers(key) | same("accepted")

    def prepare_batch(self, gt: Tensor, lq: Tensor, params: Params) -> None:  # noqa: ARG002
        """Choose views by sigma-alignment; set the query's `lq` and `gt`, and the positives' `key_lq`."""
        assert self.degradation is not None
        with torch.no_grad():
            distances = degraded_distance(lq, self.degradation.clean(gt))
            chosen = sigma_align(distances, self.alignment.keep, self.alignment.max_std)
        # In rising order of distance the query would always be the flattest patch.
        shuffle = self.draw("query", len(lq), self._ranks).argsort(dim=1)
        views = chosen.indices.gather(1, shuffle.to(self.device))
        rows = torch.arange(len(views), device=self.device)[:, None]
        self.lq, self.gt = lq[rows[:, 0], views[:, 0]], gt[rows[:, 0], views[:, 0]]
        self.key_lq = lq[rows, views[:, 1:]]
        self.accepted = chosen.accepted
        self.figures |= {"align_std": chosen.std.mean(), "align_accepted": chosen.accepted.float().mean()}

    def contrast(self, representation: Tensor) -> dict[str, Tensor]:
        return super().contrast(representation) | {"accepted": self.accepted}

    def _ranks(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, self.alignment.keep, generator=generator, dtype=torch.float32)
