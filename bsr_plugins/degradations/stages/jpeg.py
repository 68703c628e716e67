"""JPEG as a stage."""

from __future__ import annotations

from torch import Tensor

from bsr_plugins.blocks import interval
from bsr_plugins.degradations.jpeg import jpeg
from bsr_plugins.degradations.params import Params, require
from bsr_plugins.degradations.stages.base import STAGES, Block, Interval, LRStage

_QUALITIES = (1.0, 100.0)


@STAGES.register("jpeg")
class JPEG(LRStage):
    """Baseline JPEG: `jpeg: {quality: [30, 95]}`.

    Args:
        quality: Qualities in [1, 100]; any number in the range is drawn, not whole ones alone, so that a sampler can be
            even.
        sampler: The sampler.
    """

    columns = ("jpeg_quality",)
    order = 200

    def __init__(self, quality: Interval, sampler: Block = "uniform") -> None:
        super().__init__(sampler, interval(quality, "quality", *_QUALITIES))

    @classmethod
    def check(cls, params: Params) -> None:
        """See `Stage.check`."""
        quality = params["jpeg_quality"]
        low, high = _QUALITIES
        fine = (quality == 0) | (quality >= low) & (quality <= high)
        require(params, "jpeg_quality", fine, "a number in [1, 100], or 0 for none")

    @classmethod
    def change(cls, lq: Tensor, params: Params) -> Tensor:
        """See `LRStage.change`."""
        return jpeg(lq, params["jpeg_quality"])
