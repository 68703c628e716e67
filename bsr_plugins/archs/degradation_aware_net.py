"""The degradation-aware SR network of DASR, which ReDSR takes over as its generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from basicsr.archs.arch_util import Upsample
from basicsr.archs.ridnet_arch import MeanShift
from torch import Tensor, nn

from bsr_plugins.archs.da_conv import DAG, DAShape
from bsr_plugins.blocks import integer
from bsr_plugins.errors import OptionError

UPSCALES = (2, 3, 4)
_CHANNELS = 3
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_NO_SCALING = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class NetShape:
    """The sizes of the network.

    Attributes:
        num_feat: Channels of the features.
        num_group: Groups.
        num_block: Blocks in each group.
        reduction: Reduction of the channel attention.
        upscale: Factor from LR to SR: 2, 3 or 4.

    Raises:
        OptionError: A size is out of range.
    """

    num_feat: int
    num_group: int
    num_block: int
    reduction: int
    upscale: int

    def __post_init__(self) -> None:
        for key in ("num_feat", "num_group", "num_block"):
            integer(getattr(self, key), f"network_g.{key}", 1)
        integer(self.reduction, "network_g.reduction", 1, self.num_feat)
        check_upscale(self.upscale, "network_g.upscale")


def check_upscale(upscale: object, where: str) -> None:
    """Check that a factor is 2, 3 or 4.

    Raises:
        OptionError: It is not.
    """
    if isinstance(upscale, bool) or not isinstance(upscale, int) or upscale not in UPSCALES:
        raise OptionError(f"{where}: {upscale!r}, expected one of {', '.join(map(str, UPSCALES))}")


class DegradationAwareNet(nn.Module):
    """Super-resolve images by compressed representations: a head, groups, sub-pixel upsampling, a residual.

    Args:
        shape: See `NetShape`.
        blocks: What the blocks have in common.
        rgb_range: White's value in the images that come in; DIV2K's mean is taken out on this scale.
    """

    def __init__(self, shape: NetShape, blocks: DAShape, rgb_range: float) -> None:
        super().__init__()
        # The shifts are convolutions, not buffers, because the parameters of the published networks count them.
        self.sub_mean = MeanShift(rgb_range, _DIV2K_MEAN, _NO_SCALING, sign=-1).requires_grad_(False)
        self.add_mean = MeanShift(rgb_range, _DIV2K_MEAN, _NO_SCALING, sign=1).requires_grad_(False)
        self.conv_first = nn.Conv2d(_CHANNELS, shape.num_feat, 3, padding=1)
        self.groups = nn.ModuleList(DAG(blocks, shape.num_block) for _ in range(shape.num_group))
        self.conv_after_body = nn.Conv2d(shape.num_feat, shape.num_feat, 3, padding=1)
        self.upsample = Upsample(shape.upscale, shape.num_feat)
        self.conv_last = nn.Conv2d(shape.num_feat, _CHANNELS, 3, padding=1)

    def forward(self, image: Tensor, representations: Sequence[Tensor]) -> Tensor:
        """Super-resolve images (B, 3, h, w), given a representation (B, representation_dim) for each group."""
        shallow = self.conv_first(self.sub_mean(image))
        deep = shallow
        for group, representation in zip(self.groups, representations, strict=True):
            deep = group(deep, representation)
        sr: Tensor = self.add_mean(self.conv_last(self.upsample(self.conv_after_body(deep) + shallow)))
        return sr
