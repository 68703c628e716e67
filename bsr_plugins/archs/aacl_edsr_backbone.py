"""EDSR as AACL's backbone."""

from __future__ import annotations

from basicsr.archs.arch_util import Upsample
from torch import Tensor, nn

from bsr_plugins.archs.aacl_backbone import BACKBONES, AACLBackbone, BackboneShape
from bsr_plugins.archs.drf import DRFG


@BACKBONES.register("edsr")
class EDSRBackbone(AACLBackbone):
    """EDSR's head and tail (Lim et al., CVPRW 2017): a convolution; sub-pixel upsampling and a convolution."""

    def __init__(self, shape: BackboneShape) -> None:
        sizes = shape.representation_dim, shape.num_feat, shape.num_block
        super().__init__(DRFG(*sizes) for _ in range(shape.num_group))
        self.conv_first = nn.Conv2d(shape.num_in_ch, shape.num_feat, 3, 1, 1)
        self.upsample = Upsample(shape.upscale, shape.num_feat)
        self.conv_last = nn.Conv2d(shape.num_feat, shape.num_out_ch, 3, 1, 1)

    def head(self, image: Tensor) -> Tensor:
        features: Tensor = self.conv_first(image)
        return features

    def tail(self, features: Tensor) -> Tensor:
        image: Tensor = self.conv_last(self.upsample(features))
        return image
