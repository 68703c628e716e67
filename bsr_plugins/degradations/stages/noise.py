"""Gaussian noise as a stage."""

from __future__ import annotations

from torch import Tensor

from bsr_plugins.blocks import interval
from bsr_plugins.degradations.noise import GREY_LEVELS, gaussian_noise
from bsr_plugins.degradations.params import SEED, Params
from bsr_plugins.degradations.stages.base import STAGES, Block, Interval, LRStage


@STAGES.register("noise")
class GaussianNoise(LRStage):
    """White Gaussian noise, drawn once per pixel and channel: `noise: {level: [0, 25]}`.

    Args:
        level: Standard deviations on the 0–255 scale, in [0, 255].
        sampler: The sampler.
    """

    columns = ("noise_level",)
    order = 100

    def __init__(self, level: Interval, sampler: Block = "uniform") -> None:
        super().__init__(sampler, interval(level, "level", 0.0, GREY_LEVELS))

    @classmethod
    def change(cls, lq: Tensor, params: Params) -> Tensor:
        """See `LRStage.change`."""
        return gaussian_noise(lq, params["noise_level"], params[SEED])
