"""Dropout of whole channels before the last convolution, which Simple-Align is compared with."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bsr_plugins.options.declared import OptionBlock


class ChannelDropout(OptionBlock):
    """Dropout of whole channels of the features before the last convolution.

    Source: Kong et al., CVPR 2022, "Reflash Dropout in Image Super-Resolution".
    """

    p: float = Field(
        ge=0,
        lt=1,
        description="Probability that a channel of an image is zero; the others are divided by 1 - p. Simple-Align's "
        "is 0.7 for SRResNet and 0.5 for RRDB, MSRN and SwinIR.",
    )

    def mask(self, channels: int, batch: int, generator: torch.Generator) -> Tensor:
        """Draw the factors of all channels, (B, C, 1, 1), on the CPU."""
        kept = torch.rand(batch, channels, 1, 1, generator=generator, dtype=torch.float32) >= self.p
        return kept / (1 - self.p)
