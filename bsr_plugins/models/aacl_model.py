"""Adaptive alignment contrastive learning (AACL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

from bsr_plugins.blocks import call_with, integer, number
from bsr_plugins.degradations import Params, degraded_distance, sigma_align
from bsr_plugins.errors import OptionError
from bsr_plugins.models.contrastive_model import ContrastiveModel
from bsr_plugins.registration import register
from bsr_plugins.whole_batch import gather_batch


class SigmaAlignment(NamedTuple):
    """How positives are chosen among the views of an image.

    Attributes:
        keep: How many views m are kept: one query and m − 1 positives.
        max_std: Sets with a larger standard deviation of the degraded distance, in grey levels, give no contrast.
    """

    keep: int = 2
    max_std: float | None = None


@register(MODEL_REGISTRY)
class AACLModel(ContrastiveModel):
    """Trains a network with a contrastive encoder, e.g. `AACLNet`, on views that are aligned by degraded distance.

    Of an image's V views (`num_views`), all under one degradation, those m are kept whose degraded distances have the
    smallest standard deviation (sigma-alignment); one of them is the query and is super-resolved, the others are its
    positives. Contrast is MoCo's, with the settings of DASR. Adaptive degradation sampling (ADS) is the `ads` sampler
    of the degradation block. Options besides those of `ContrastiveModel`:

    * `train.sigma_alignment: {keep: 2, max_std: null}`: see `SigmaAlignment`. A set whose deviation is above `max_std`
      is left out of the contrast, not of the restoration, and its keys still serve as negatives.

    Logged besides what `ContrastiveModel` logs: `align_std` (mean deviation of the kept sets, in grey levels) and
    `align_accepted`.

    Source: AACL's abstract names ADS, sigma-alignment and the fusion modules; the losses, the phase and how these are
    put together are DASR's, or ours where DASR has no counterpart.

    Raises:
        OptionError: The blocks do not fit together.
    """

    def build_losses(self) -> None:
        """Build the losses and read the settings of the alignment."""
        super().build_losses()
        self.alignment = _alignment(self.opt["train"])

    @classmethod
    def keys_per_query(cls, train_opt: Mapping[str, Any]) -> int:
        """See `ContrastiveModel.keys_per_query`."""
        return _alignment(train_opt).keep - 1

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> None:
        """See `BlindSRModel.check_options`."""
        super().check_options(opt)
        if not opt["is_train"]:
            return
        num_views, keep = opt["datasets"]["train"].get("num_views") or 1, _alignment(opt["train"]).keep
        if num_views < keep:
            raise OptionError(
                f"datasets.train.num_views: {num_views}, expected at least train.sigma_alignment.keep, which is {keep}"
            )

    def prepare_batch(self, gt: Tensor, lq: Tensor, params: Params) -> None:  # noqa: ARG002
        """Choose views by sigma-alignment; set the query's `lq` and `gt`, and the positives' `key_lq`."""
        assert self.degradation is not None
        with torch.no_grad():
            distances = degraded_distance(lq, self.degradation.clean(gt))
            chosen = sigma_align(distances, self.alignment.keep, self.alignment.max_std)
        # In rising order of distance the query would always be the flattest patch.
        shuffle = self.draw("query", len(lq), self._orders)
        views = chosen.indices.gather(1, shuffle.to(self.device))
        rows = torch.arange(len(views), device=self.device)[:, None]
        self.lq, self.gt = lq[rows[:, 0], views[:, 0]], gt[rows[:, 0], views[:, 0]]
        self.key_lq = lq[rows, views[:, 1:]]
        self.accepted = chosen.accepted
        self.figures |= {"align_std": chosen.std.mean(), "align_accepted": chosen.accepted.float().mean()}

    def _orders(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw an order of the kept views for so many samples, (count, m)."""
        ranks = torch.rand(count, self.alignment.keep, generator=generator, dtype=torch.float32)
        return ranks.argsort(dim=1)

    def contrast(self, query: Tensor) -> Tensor:
        """Return the contrastive loss of the sets that are aligned well enough.

        Its mean over the ranks is the mean over all ranks' sets, however they are spread.
        """
        accepted = self.accepted.sum()
        own, in_all = int(accepted), int(gather_batch(accepted[None]).sum())
        if own == 0:
            return query.sum() * 0
        loss: Tensor = self.cri_contrast(query[self.accepted], self.keys[self.accepted], self.bare_moco.queue)
        share: float = own * self.opt["world_size"] / in_all
        return loss * share


def _alignment(train_opt: Mapping[str, Any]) -> SigmaAlignment:
    alignment = call_with(SigmaAlignment, train_opt.get("sigma_alignment") or {}, "train.sigma_alignment")
    integer(alignment.keep, "train.sigma_alignment.keep", 2)
    if alignment.max_std is not None:
        number(alignment.max_std, "train.sigma_alignment.max_std", 0.0)
    return alignment
