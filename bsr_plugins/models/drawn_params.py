"""What a training step draws for the images of its batch: made for those of all ranks, and written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bsr_plugins.degradations import Params
from bsr_plugins.whole_batch import own_rows

Drawn = TypeVar("Drawn", Tensor, Params)
Draw = Callable[[int, torch.Generator], Drawn]
"""Draws for so many images from a CPU generator: a tensor, or several by name, whose first dimension is the images."""

_DIGITS = 4


@dataclass(frozen=True)
class OwnRows:
    """Which of the images of all ranks are a rank's.

    Attributes:
        rank: The rank.
        world_size: How many ranks there are.
        images: How many images a rank has.
        views: How many of them, one after another, are one sample's.
        passes: How many times the images come, one batch behind the other.
    """

    rank: int
    world_size: int
    images: int
    views: int = 1
    passes: int = 1

    def of(self, whole: Tensor) -> Tensor:
        """Take a rank's rows from those of all."""
        return own_rows(whole, self.rank, self.world_size, self.views, self.passes)


def draw_own(draw: Draw[Drawn], rows: OwnRows, generator: torch.Generator) -> Drawn:
    """Draw for the images of all ranks, as one process does, and take what is a rank's.

    Args:
        draw: Makes the draw.
        rows: What is the rank's.
        generator: CPU generator, in the same state on every rank.

    Returns:
        What the rank's images get, (passes · images, …).
    """
    drawn = draw(rows.passes * rows.images * rows.world_size, generator)
    return rows.of(drawn) if isinstance(drawn, Tensor) else {name: rows.of(values) for name, values in drawn.items()}


def describe_params(params: Params) -> str:
    """Write parameters down in one line, sample by sample: numbers to four digits, whole numbers as they are.

    Args:
        params: CPU tensors whose first dimension is the batch.

    Returns:
        For instance `#0 lambda1=1.25 noise_seed=7; #1 lambda1=0.4 noise_seed=8`; empty if there are none.
    """
    samples = min((len(values) for values in params.values()), default=0)
    return "; ".join(
        f"#{number} " + " ".join(f"{name}={_written(values[number])}" for name, values in params.items())
        for number in range(samples)
    )


def _written(value: Tensor) -> str:
    numbers = [f"{one:.{_DIGITS}g}" if isinstance(one, float) else str(one) for one in value.flatten().tolist()]
    return numbers[0] if value.dim() == 0 else f"({', '.join(numbers)})"
