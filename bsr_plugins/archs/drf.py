"""Degradation representation fusion: layer, block and group that bring a representation into features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.archs.representation_net import ResidualGroup
from bsr_plugins.errors import BSRError

_NEGATIVE_SLOPE = 0.1


class DRF(nn.Module):
    """Fuse a representation into feature maps or tokens: one scale per channel, `x + x·s`.

    `s` is a bias-free linear map of the representation followed by LeakyReLU(0.1), as in AACL's released fusion module;
    the paper's abstract names the block and gives no formula. What follows the fusion, an activation for feature maps
    and none for tokens, is the block's business.

    Shape: feature maps (B, num_feat, H, W) or tokens (B, N, num_feat), with representations (B or 1,
    representation_dim), to such features. `forward` raises `BSRError` for other shapes.
    """

    def __init__(self, representation_dim: int, num_feat: int) -> None:
        super().__init__()
        self.linear = nn.Linear(representation_dim, num_feat, bias=False)

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        scale = F.leaky_relu(self.linear(representation), _NEGATIVE_SLOPE)
        if x.dim() == 4:
            scale = scale[:, :, None, None]
        elif x.dim() == 3:
            scale = scale[:, None]
        else:
            raise BSRError(f"DRF: features of shape {tuple(x.shape)}, expected (B, C, H, W) or (B, N, C)")
        # One pass over x; x * (1 + scale) would round small scales away in bfloat16.
        return torch.addcmul(x, x, scale)


class DRFB(nn.Module):
    """Degradation representation fusion block: two fusions, two convolutions, a residual.

    The order is that of AACL's released module: DRF, LeakyReLU, 3×3 convolution, LeakyReLU, and the same again without
    the last activation, plus the input. The slope 0.1 of these activations is ours, taken from the fusion layer.

    Shape: feature maps (B, num_feat, H, W) with representations (B or 1, representation_dim), to such maps.
    """

    def __init__(self, representation_dim: int, num_feat: int) -> None:
        super().__init__()
        self.fuse1 = DRF(representation_dim, num_feat)
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.fuse2 = DRF(representation_dim, num_feat)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.act = nn.LeakyReLU(_NEGATIVE_SLOPE, inplace=True)

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        out = self.act(self.conv1(self.act(self.fuse1(x, representation))))
        return x.add(self.conv2(self.act(self.fuse2(out, representation))))


class DRFG(ResidualGroup):
    """Degradation representation fusion group: DRFBs in a row, a 3×3 convolution, a residual.

    AACL's abstract gives its name, its use (reconstruction) and "6x6"; the content is our design. Shapes as in `DRFB`.
    """

    def __init__(self, representation_dim: int, num_feat: int, num_block: int = 6) -> None:
        blocks = [DRFB(representation_dim, num_feat) for _ in range(num_block)]
        super().__init__(blocks, nn.Conv2d(num_feat, num_feat, 3, 1, 1))
