"""A group of blocks that a representation steers, as DASR, ReDSR and AACL have it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


class ResidualGroup(nn.Module):
    """Blocks in a row, a convolution, a residual.

    Args:
        blocks: Modules that map (features, representation) to features.
        conv: A convolution that keeps channels and size.
    """

    def __init__(self, blocks: Iterable[nn.Module], conv: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.conv = conv

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        """Map features (B, num_feat, H, W), steered by (B, representation_dim), to such features."""
        out = x
        for block in self.blocks:
            out = block(out, representation)
        residual: Tensor = self.conv(out)
        return x + residual
