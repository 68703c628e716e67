"""What lets several processes, each with its part of the batch, do what one does with the whole."""

from __future__ import annotations

from typing import Any, cast

import torch
from basicsr.models.sr_model import SRModel
from torch import nn

from bsr_plugins.degradations import Params
from bsr_plugins.models.drawn_params import Draw, Drawn, OwnRows, describe_params, draw_own
from bsr_plugins.models.synchronised_batch_norm import synchronised
from bsr_plugins.seeding import generator_at


class WholeBatchModel(SRModel):  # type: ignore[misc]  # BasicSR carries no annotations
    """BasicSR's `SRModel` with draws, and batch normalisation, for the batch of all ranks.

    Attributes:
        current_iter: The iteration of the step.
        batch_size: How many samples were degraded in the step, None before the first and where none are.
        params: The degradations that were drawn for this rank's samples in the step, if any.
        pair_params: The second ones, if any.
    """

    current_iter: int

    def __init__(self, opt: dict[str, Any]) -> None:
        self.batch_size: int | None = None
        self.params: Params = {}
        self.pair_params: Params = {}
        super().__init__(opt)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Put a network on the device and wrap it; in training by several processes its batch normalisation is theirs.

        With statistics of its own, each rank would train another network; see `synchronised`.
        """
        if self.is_train and self.opt["dist"]:
            net = synchronised(net, self.device)
        wrapped: nn.Module = super().model_to_device(net)
        return wrapped

    def draw(self, purpose: str, images: int, sample: Draw[Drawn], passes: int = 1) -> Drawn:
        """Draw for every image of this rank what it gets in the batch of all ranks; see `draw_own`.

        Args:
            purpose: What the draw is for; with `manual_seed` and the iteration it is its address.
            images: How many images of this rank are drawn for: its samples, or all views of each one after another.
            sample: Makes the draw.
            passes: How many times the images come, one batch behind the other.
        """
        rows = OwnRows(self.opt["rank"], self.opt["world_size"], images, self.views_of(images), passes)
        return draw_own(sample, rows, self.shared_generator(purpose))

    def views_of(self, images: int) -> int:
        """Return how many of so many images of this rank's batch, one after another, are one sample's."""
        whole = self.batch_size is not None and images % self.batch_size == 0
        return images // cast(int, self.batch_size) if whole else 1

    def shared_generator(self, purpose: str) -> torch.Generator:
        """Make the generator of a purpose at this iteration, in the same state on every rank."""
        return generator_at(self.opt["manual_seed"], purpose, self.current_iter)

    def describe_degradation(self) -> str:
        """Write down what was drawn for this rank's samples in the last step, and again with `align_opt`."""
        return " / again: ".join(describe_params(params) for params in (self.params, self.pair_params) if params)
