"""A sampler from outside the package. An option file asks for it by `sampler: {type: middle, draws: 3}`."""

from __future__ import annotations

import torch
from torch import Tensor

from bsr_plugins.blocks import integer
from bsr_plugins.degradations import SAMPLERS, Sampler
from bsr_plugins.degradations.samplers import Ranges, spread


@SAMPLERS.register("middle")
class MiddleSampler(Sampler):
    """Draws every parameter as the mean of some uniform numbers: more often in the middle of its range."""

    def __init__(self, draws: int = 2) -> None:
        self.draws = integer(draws, "draws", 1, 100)

    def draw(self, ranges: Ranges, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` parameter vectors, float64, shape (count, len(ranges))."""
        units = torch.rand(self.draws, count, len(ranges), generator=generator, dtype=torch.float64)
        return spread(units.mean(0), ranges)
