"""What differs between AACL's backbones: how an image becomes features, what a group is, and the way back.

The body is equal for all: groups in a row and a residual around them (AACL's "6x6 fair architecture"; the
abstract says no more, so its content is our design). A further backbone is one subclass of `AACLBackbone` and
its line in `BACKBONES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from basicsr.archs.arch_util import Upsample
from torch import Tensor, nn

from bsr_plugins.archs.drf import DRFG


@dataclass(frozen=True)
class BackboneShape:
    """The sizes that every backbone is built from.

    Attributes:
        num_in_ch: Channels of the LR image.
        num_out_ch: Channels of the SR image.
        num_feat: Channels of the features.
        num_group: Groups in the body.
        num_block: Blocks in a group.
        upscale: Factor from LR to SR.
        representation_dim: Size of the representation.
    """

    num_in_ch: int
    num_out_ch: int
    num_feat: int
    num_group: int
    num_block: int
    upscale: int
    representation_dim: int


class AACLBackbone(nn.Module, ABC):
    """The image side of an AACL network; the encoder and the mean shift are outside.

    What `head` gives goes through the groups unseen by this class, so it may be feature maps or tokens.

    Args:
        shape: The sizes.
    """

    def __init__(self, shape: BackboneShape) -> None:
        super().__init__()
        self.groups = nn.ModuleList(self.make_group(shape) for _ in range(shape.num_group))

    def make_group(self, shape: BackboneShape) -> nn.Module:
        """Make one group of the body: a module that maps (features, representation) to features."""
        return DRFG(shape.representation_dim, shape.num_feat, shape.num_block)

    @abstractmethod
    def head(self, image: Tensor) -> Tensor:
        """Map shifted images (B, num_in_ch, h, w) to features."""

    @abstractmethod
    def tail(self, features: Tensor) -> Tensor:
        """Map features to shifted SR images (B, num_out_ch, s·h, s·w)."""

    def forward(self, image: Tensor, representation: Tensor) -> Tensor:
        """Super-resolve shifted images (B, num_in_ch, h, w) with representations (B, representation_dim)."""
        shallow = self.head(image)
        deep = shallow
        for group in self.groups:
            deep = group(deep, representation)
        return self.tail(deep + shallow)


class EDSRBackbone(AACLBackbone):
    """EDSR's head and tail (Lim et al., CVPRW 2017): a convolution; sub-pixel upsampling and a convolution.

    Args:
        shape: The sizes.
    """

    def __init__(self, shape: BackboneShape) -> None:
        super().__init__(shape)
        self.conv_first = nn.Conv2d(shape.num_in_ch, shape.num_feat, 3, 1, 1)
        self.upsample = Upsample(shape.upscale, shape.num_feat)
        self.conv_last = nn.Conv2d(shape.num_feat, shape.num_out_ch, 3, 1, 1)

    def head(self, image: Tensor) -> Tensor:
        """Map shifted images (B, num_in_ch, h, w) to feature maps (B, num_feat, h, w)."""
        features: Tensor = self.conv_first(image)
        return features

    def tail(self, features: Tensor) -> Tensor:
        """Map feature maps (B, num_feat, h, w) to shifted SR images (B, num_out_ch, s·h, s·w)."""
        image: Tensor = self.conv_last(self.upsample(features))
        return image


BACKBONES: dict[str, type[AACLBackbone]] = {"edsr": EDSRBackbone}
