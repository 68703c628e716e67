"""What networks share that restore an image by a learned representation of its degradation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn


class RepresentationNet(nn.Module, ABC):
    """An inference network in two parts: LR image to representation, and both to the SR image.

    A subclass sets `encoder` and writes `restore`. Nothing is kept on the module between calls: `forward` gives the
    representation to whoever asks for it. So the network can be wrapped for DDP, compiled and exported as it is.
    """

    encoder: nn.Module  # LR images (B, C, h, w) to representations (B, D)

    def encode(self, lq: Tensor) -> Tensor:
        """Map LR images (B, C, h, w), RGB in [0, 1], to representations (B, D) of their degradations."""
        representation: Tensor = self.encoder(lq)
        return representation

    @abstractmethod
    def restore(self, lq: Tensor, representation: Tensor) -> Tensor:
        """Super-resolve LR images (B, C, h, w), RGB in [0, 1], to (B, C, s·h, s·w), not clipped.

        Representations are (B, D), or (1, D) for one degradation shared by the batch.
        """

    def forward(
        self, lq: Tensor, return_representation: bool = False, representation: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Super-resolve images; shapes as in `restore`. The encoder does not run if a representation is given.

        With `return_representation` the result is (SR images, the representation that was used).
        """
        if representation is None:
            representation = self.encode(lq)
        sr = self.restore(lq, representation)
        return (sr, representation) if return_representation else sr


class ResidualGroup(nn.Module):
    """A group of blocks that a representation steers: blocks in a row, a convolution, a residual.

    Blocks map features (B, num_feat, H, W) and a representation to such features; the convolution keeps their size.
    """

    def __init__(self, blocks: Iterable[nn.Module], conv: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.conv = conv

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        out = x
        for block in self.blocks:
            out = block(out, representation)
        return x.add(self.conv(out))
