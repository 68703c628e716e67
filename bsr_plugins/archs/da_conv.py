"""Degradation-aware convolution, block, group and network: how a representation steers features in DASR and ReDSR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from basicsr.archs.arch_util import Upsample
from torch import Tensor, nn

from bsr_plugins.archs.arguments import DIV2K_MEAN
from bsr_plugins.archs.dynamic_conv import dynamic_depthwise_conv
from bsr_plugins.archs.representation_net import ResidualGroup

_TAPS = 3
_CHANNELS = 3


@dataclass(frozen=True)
class DAShape:
    """What the blocks of a network have in common."""

    num_feat: int  # channels of the features, and size of the vector that steers a block
    reduction: int  # the hidden layer of the channel attention has num_feat // reduction channels
    act: Callable[[], nn.Module]  # each place gets a new activation, as it may have parameters
    mix_taps: int = 1  # of the convolution that mixes the channels after the dynamic one: 1 or 3
    padding_mode: Literal["zeros", "reflect"] = "zeros"  # of all 3×3 convolutions, the dynamic one too

    def conv(self, taps: int = _TAPS) -> nn.Conv2d:
        """Make a convolution that keeps channels and size."""
        return nn.Conv2d(self.num_feat, self.num_feat, taps, padding=taps // 2, padding_mode=self.padding_mode)


class DAConv(nn.Module):
    """Degradation-aware convolution (DASR, Wang et al., CVPR 2021, Sec. 3.3).

    Two branches are added: a depthwise 3×3 convolution with kernels that the representation gives for each sample,
    an activation and a convolution across the channels; and the features scaled per channel by an attention that
    depends on the representation alone.

    Shape: features (B, num_feat, H, W) with vectors (B, num_feat), to such features.
    """

    def __init__(self, shape: DAShape) -> None:
        super().__init__()
        num_feat, hidden = shape.num_feat, shape.num_feat // shape.reduction
        self.pad_mode = "reflect" if shape.padding_mode == "reflect" else "constant"
        self.kernel = nn.Sequential(
            nn.Linear(num_feat, num_feat, bias=False), shape.act(), nn.Linear(num_feat, num_feat * _TAPS**2, bias=False)
        )
        self.act = shape.act()
        self.conv = shape.conv(shape.mix_taps)
        squeeze, excite = nn.Conv2d(num_feat, hidden, 1, bias=False), nn.Conv2d(hidden, num_feat, 1, bias=False)
        self.attention = nn.Sequential(squeeze, shape.act(), excite, nn.Sigmoid())

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        kernels = self.kernel(representation).view(*x.shape[:2], _TAPS, _TAPS)
        mixed: Tensor = self.conv(self.act(dynamic_depthwise_conv(x, kernels, self.pad_mode)))
        return mixed.add(x * self.attention(representation[:, :, None, None]))


class DAB(nn.Module):
    """Degradation-aware block: two `DAConv` and two 3×3 convolutions in turn, a residual; shapes as in `DAConv`."""

    def __init__(self, shape: DAShape) -> None:
        super().__init__()
        self.da_conv1, self.act1 = DAConv(shape), shape.act()
        self.conv1, self.act2 = shape.conv(), shape.act()
        self.da_conv2, self.act3 = DAConv(shape), shape.act()
        self.conv2 = shape.conv()

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        out = self.act1(self.da_conv1(x, representation))
        out = self.act3(self.da_conv2(self.act2(self.conv1(out)), representation))
        return x.add(self.conv2(out))


class DegradationAwareNet(nn.Module):
    """DASR's SR network, which ReDSR takes over as its generator: a head, groups, sub-pixel upsampling, a residual.

    Shape: images (B, 3, h, w) in [0, rgb_range] with a vector (B, num_feat) for each group, to (B, 3, s·h, s·w).
    DIV2K's mean is taken out at the beginning and put back at the end.
    """

    def __init__(self, shape: DAShape, num_group: int, num_block: int, upscale: int, rgb_range: float) -> None:
        super().__init__()
        # The shifts are convolutions, not buffers, because the parameters of the published networks count them.
        self.sub_mean, self.add_mean = _shift(-rgb_range), _shift(rgb_range)
        self.conv_first = nn.Conv2d(_CHANNELS, shape.num_feat, _TAPS, padding=1)
        self.groups = nn.ModuleList(
            ResidualGroup([DAB(shape) for _ in range(num_block)], shape.conv()) for _ in range(num_group)
        )
        self.conv_after_body = shape.conv()
        self.upsample = Upsample(upscale, shape.num_feat)
        self.conv_last = nn.Conv2d(shape.num_feat, _CHANNELS, _TAPS, padding=1)

    def forward(self, image: Tensor, representations: Sequence[Tensor]) -> Tensor:
        shallow = self.conv_first(self.sub_mean(image))
        deep = shallow
        for group, representation in zip(self.groups, representations, strict=True):
            deep = group(deep, representation)
        sr: Tensor = self.add_mean(self.conv_last(self.upsample(self.conv_after_body(deep) + shallow)))
        return sr


def _shift(scale: float) -> nn.Conv2d:
    """Make a fixed convolution that adds DIV2K's mean times a scale; BasicSR's `MeanShift` does not build on `meta`."""
    conv = nn.Conv2d(_CHANNELS, _CHANNELS, 1).requires_grad_(False)
    conv.weight.copy_(torch.eye(_CHANNELS)[:, :, None, None])
    conv.bias.copy_(scale * torch.tensor(DIV2K_MEAN))  # type: ignore[union-attr]
    return conv
