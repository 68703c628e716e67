"""The network of AACL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from bsr_plugins.archs import arguments
from bsr_plugins.archs.aacl_backbone import BACKBONES, BackboneShape
from bsr_plugins.archs.contrastive_encoder_arch import ContrastiveEncoder
from bsr_plugins.archs.representation_net import RepresentationNet
from bsr_plugins.blocks import build_from_block
from bsr_plugins.errors import unknown_name
from bsr_plugins.registration import register


@register(ARCH_REGISTRY)
class AACLNet(RepresentationNet):
    """Blind super-resolution with a contrastive representation fused into a body of 6 groups of 6 blocks.

    The encoder is DASR's (`ContrastiveEncoder`) and sees the image as it is, in [0, 1]. The backbone gets the image
    shifted by `rgb_mean` and scaled by `img_range`, as BasicSR's EDSR does. AACL's abstract gives "6x6" and the names
    of block and group; the rest of the body is our design (see `drf.py` and `aacl_backbone.py`).

    Shape: images (B, num_in_ch, h, w) of any size to (B, num_out_ch, s·h, s·w). Parameters with the defaults:
    5,358,467 for ×2, 5,543,107 for ×3, 5,506,179 for ×4, of which 1,147,200 are the encoder's.

    Args:
        num_in_ch: Channels of the LR image.
        num_out_ch: Channels of the SR image.
        num_feat: Channels of the features, in [1, 4096].
        num_group: DRFGs in the body, in [1, 1000].
        num_block: DRFBs in each DRFG, in [1, 1000].
        upscale: 2, 3 or 4.
        backbone: What the body is made of: a block whose `type` is a name in `BACKBONES`, with the arguments of that
            backbone, or the name alone.
        encoder_num_feat: Width of the encoder; the representation has 4 times as many numbers.
        img_range: Factor on the shifted image.
        rgb_mean: Mean of the images in [0, 1]: a number for each of `num_in_ch` channels, of which `num_out_ch` must
            then be as many; None for no shift. Default: DIV2K's.
    """

    encoder: ContrastiveEncoder
    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_group: int = 6,
        num_block: int = 6,
        upscale: int = 4,
        backbone: Mapping[str, Any] | str = "edsr",
        encoder_num_feat: int = 64,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] | None = arguments.DIV2K_MEAN,
    ) -> None:
        super().__init__()
        arguments.check_channels(
            num_in_ch=num_in_ch, num_out_ch=num_out_ch, num_feat=num_feat, encoder_num_feat=encoder_num_feat
        )
        arguments.check_depths(num_group=num_group, num_block=num_block)
        arguments.check_upscale(upscale)
        self.img_range = arguments.check_img_range(img_range)
        # The mean comes from the options, so the state dict does not hold it.
        self.register_buffer("mean", arguments.channel_means(rgb_mean, num_in_ch, num_out_ch), persistent=False)
        self.encoder = ContrastiveEncoder(num_in_ch, encoder_num_feat)
        dim = self.encoder.representation_dim
        shape = BackboneShape(num_in_ch, num_out_ch, num_feat, num_group, num_block, upscale, dim)
        if isinstance(backbone, str):
            if backbone not in BACKBONES:
                raise unknown_name("backbone", backbone, BACKBONES)
            backbone = {"type": backbone}
        known = {name: partial(kind, shape) for name, kind in BACKBONES.items()}
        self.backbone = build_from_block(backbone, known, "backbone")

    def restore(self, lq: Tensor, representation: Tensor) -> Tensor:
        sr: Tensor = self.backbone((lq - self.mean) * self.img_range, representation)
        return sr / self.img_range + self.mean
