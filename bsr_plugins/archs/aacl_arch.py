"""The network of AACL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from bsr_plugins.archs.aacl_backbones import BACKBONES, BackboneShape
from bsr_plugins.archs.contrastive_encoder_arch import ContrastiveEncoder
from bsr_plugins.archs.representation_net import RepresentationNet
from bsr_plugins.blocks import integer, number
from bsr_plugins.errors import OptionError, unknown_name
from bsr_plugins.registration import register

_UPSCALES = (2, 3, 4)
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_LOWEST_IMG_RANGE = 1e-3


@register(ARCH_REGISTRY)
class AACLNet(RepresentationNet):
    """Blind super-resolution with a contrastive representation fused into a body of 6 groups of 6 blocks.

    The encoder is DASR's (`ContrastiveEncoder`) and looks at the image as it is, in [0, 1]; the backbone gets
    the image shifted by `rgb_mean` and scaled by `img_range`, as BasicSR's EDSR does. AACL's abstract gives
    "6x6" and the names of block and group; the rest of the body is our design (see `drf.py` and
    `aacl_backbones.py`).

    Shape: images (B, num_in_ch, h, w) of any size to (B, num_out_ch, s·h, s·w). Parameters with the defaults:
    5,358,467 for ×2, 5,543,107 for ×3, 5,506,179 for ×4, of which 1,147,200 are the encoder's.

    Args:
        num_in_ch: Channels of the LR image.
        num_out_ch: Channels of the SR image; equal to `num_in_ch`, since both are shifted by one mean.
        num_feat: Channels of the features.
        num_group: DRFGs in the body.
        num_block: DRFBs in each DRFG.
        upscale: 2, 3 or 4.
        backbone: What surrounds the body, a name in `aacl_backbones.BACKBONES`.
        encoder_num_feat: Width of the encoder; the representation has 4 times as many numbers.
        img_range: Factor on the shifted image.
        rgb_mean: Mean of each channel, in [0, 1]; DIV2K's by default.

    Attributes:
        encoder: The `ContrastiveEncoder`.

    Raises:
        OptionError: An argument is out of its range or names an unknown backbone.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_group: int = 6,
        num_block: int = 6,
        upscale: int = 4,
        backbone: str = "edsr",
        encoder_num_feat: int = 64,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = _DIV2K_MEAN,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, str) or backbone not in BACKBONES:
            raise unknown_name("network_g.backbone", backbone, BACKBONES)
        if integer(upscale, "network_g.upscale", 1) not in _UPSCALES:
            raise OptionError(f"network_g.upscale: {upscale!r}, expected one of {', '.join(map(str, _UPSCALES))}")
        if integer(num_out_ch, "network_g.num_out_ch", 1) != integer(num_in_ch, "network_g.num_in_ch", 1):
            raise OptionError(f"network_g.num_out_ch: {num_out_ch!r}, expected num_in_ch, which is {num_in_ch}")
        self.encoder = ContrastiveEncoder(num_in_ch, integer(encoder_num_feat, "network_g.encoder_num_feat", 1))
        shape = BackboneShape(
            num_in_ch=num_in_ch,
            num_out_ch=num_out_ch,
            num_feat=integer(num_feat, "network_g.num_feat", 1),
            num_group=integer(num_group, "network_g.num_group", 1),
            num_block=integer(num_block, "network_g.num_block", 1),
            upscale=upscale,
            representation_dim=self.encoder.representation_dim,
        )
        self.backbone = BACKBONES[backbone](shape)
        self.img_range = number(img_range, "network_g.img_range", _LOWEST_IMG_RANGE)
        mean = torch.tensor(_channel_means(rgb_mean, num_in_ch)).view(1, num_in_ch, 1, 1)
        self.register_buffer("mean", mean, persistent=False)

    def encode(self, lq: Tensor) -> Tensor:
        """Map LR images (B, num_in_ch, h, w), RGB in [0, 1], to representations (B, 4·encoder_num_feat)."""
        representation: Tensor = self.encoder(lq)
        return representation

    def restore(self, lq: Tensor, representation: Tensor) -> Tensor:
        """Super-resolve LR images (B, num_in_ch, h, w) with representations (B or 1, 4·encoder_num_feat)."""
        shifted = (lq - self.mean) * self.img_range
        sr: Tensor = self.backbone(shifted, representation)
        return sr / self.img_range + self.mean


def _channel_means(rgb_mean: Sequence[float], num_ch: int) -> list[float]:
    """Check that there is one mean in [0, 1] per channel."""
    if not isinstance(rgb_mean, list | tuple) or len(rgb_mean) != num_ch:
        raise OptionError(f"network_g.rgb_mean: {rgb_mean!r}, expected a list of num_in_ch = {num_ch} numbers")
    return [number(mean, "network_g.rgb_mean", 0.0, 1.0) for mean in rgb_mean]
