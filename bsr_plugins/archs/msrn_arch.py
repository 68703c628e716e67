"""The network of MSRN, a baseline of Simple-Align."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from basicsr.archs.arch_util import Upsample
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.archs import arguments
from bsr_plugins.registration import register


class MultiScaleBlock(nn.Module):
    """Two branches, 3×3 and 5×5, that see each other's features after the first of two convolutions; a residual.

    Shape: features (B, num_feat, h, w) to such features.
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv3_1 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv5_1 = nn.Conv2d(num_feat, num_feat, 5, padding=2)
        self.conv3_2 = nn.Conv2d(2 * num_feat, 2 * num_feat, 3, padding=1)
        self.conv5_2 = nn.Conv2d(2 * num_feat, 2 * num_feat, 5, padding=2)
        self.fusion = nn.Conv2d(4 * num_feat, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = F.relu(torch.cat([self.conv3_1(x), self.conv5_1(x)], 1))
        both = F.relu(torch.cat([self.conv3_2(both), self.conv5_2(both)], 1))
        return x.add(self.fusion(both))


@register(ARCH_REGISTRY)
class MSRN(nn.Module):
    """Super-resolution with multi-scale residual blocks whose outputs are all fused at the end.

    MSRN (Li et al., ECCV 2018), as its released network is: a 3×3 head; blocks (`MultiScaleBlock`); the outputs of all
    blocks and of the head, concatenated in this order, through a 1×1 bottleneck and a 3×3; sub-pixel upsampling, ×4 as
    ×2 twice; a 3×3 tail. All convolutions have a bias, and there is no global residual. The released network sees
    images in [0, 255] less DIV2K's mean; images are in [0, 1] here, and shifted and multiplied inside.

    Shape: images (B, num_in_ch, h, w) in [0, 1] of any size to (B, num_out_ch, s·h, s·w). Parameters with the defaults
    and three channels: 5,930,307 for ×2, 6,114,947 for ×3, 6,078,019 for ×4. The released network has 24 more: its
    fixed shifts by the mean are convolutions. Here they are none, so that the tail is the last convolution that runs.

    Args:
        num_in_ch: Channels of LR images.
        num_out_ch: Channels of SR images.
        num_feat: Channels of the features, in [1, 4096].
        num_block: Blocks, in [1, 1000].
        upscale: 2, 3 or 4.
        img_range: Factor on the image.
        rgb_mean: Mean of the images in [0, 1], subtracted first and added last: a number for each of `num_in_ch`
            channels, of which `num_out_ch` must then be as many; None for no shift. Default: DIV2K's.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int,
        num_out_ch: int,
        num_feat: int = 64,
        num_block: int = 8,
        upscale: int = 4,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] | None = arguments.DIV2K_MEAN,
    ) -> None:
        super().__init__()
        arguments.check_channels(num_in_ch=num_in_ch, num_out_ch=num_out_ch, num_feat=num_feat)
        arguments.check_depths(num_block=num_block)
        arguments.check_upscale(upscale)
        self.img_range = arguments.check_img_range(img_range)
        # The mean comes from the options, so the state dict does not hold it.
        self.register_buffer("mean", arguments.channel_means(rgb_mean, num_in_ch, num_out_ch), persistent=False)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.ModuleList(MultiScaleBlock(num_feat) for _ in range(num_block))
        self.bottleneck = nn.Conv2d((num_block + 1) * num_feat, num_feat, 1)
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsample = Upsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        mean = self.mean.to(lq)
        shallow = self.conv_first((lq - mean) * self.img_range)
        outputs = [shallow]
        for block in self.body:
            outputs.append(block(outputs[-1]))
        fused = self.conv_after_body(self.bottleneck(torch.cat([*outputs[1:], shallow], 1)))
        sr: Tensor = self.conv_last(self.upsample(fused))
        return sr / self.img_range + mean
