"""The degrader of ReDSR."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.archs.da_conv import DAB, DAShape
from bsr_plugins.archs.degradation_aware_net import check_upscale
from bsr_plugins.blocks import integer
from bsr_plugins.errors import BSRError
from bsr_plugins.registration import register

_BLOCKS = 3
_TAPS = 3
_ATTENTION_STD = 0.02


@register(ARCH_REGISTRY)
class ReDSRDegrader(nn.Module):
    """Reproduce the LR image of an HR image, given the representation of its degradation (ReDSR, Eq. 3).

    The paper takes DASR's SR network with a downscaler in the place of the upscaler; this is the released network:
    three degradation-aware blocks at the size of the HR image, with reflected borders and a 3×3 convolution after the
    dynamic one, each steered by its third of what an MLP makes of the representation; then a 3×3 convolution with
    stride s that widens the features four times, and three that narrow them. It works on images in [0, 1] without a
    shift by the mean. Released for ×4 alone: every window of the downscaler begins at HR pixel s·i, at the other
    scales too, for which ×2 needs a pixel of reflected border at the bottom and right.

    For training only: 1,237,924 parameters.

    Args:
        num_feat: Channels of the features, and size of what steers a block.
        representation_dim: Size of the representation.
        reduction: Reduction of the channel attention, at most `num_feat`.
        scale: Factor from HR to LR: 2, 3 or 4; the generator's.

    Raises:
        OptionError: An argument is out of its range.
    """

    def __init__(self, num_feat: int = 64, representation_dim: int = 64, reduction: int = 4, scale: int = 4) -> None:
        super().__init__()
        integer(num_feat, "network_degrader.num_feat", 1)
        integer(representation_dim, "network_degrader.representation_dim", 1)
        integer(reduction, "network_degrader.reduction", 1, num_feat)
        check_upscale(scale, "network_degrader.scale")
        self.scale, self.num_feat, self.representation_dim = scale, num_feat, representation_dim
        self.expand = nn.Sequential(
            nn.Linear(representation_dim, num_feat), nn.PReLU(), nn.Linear(num_feat, _BLOCKS * num_feat), nn.PReLU()
        )
        self.head = nn.Sequential(_conv(3, num_feat), nn.PReLU())
        shape = DAShape(num_feat, num_feat, reduction, nn.PReLU, mix_taps=_TAPS, padding_mode="reflect")
        self.blocks = nn.ModuleList(DAB(shape) for _ in range(_BLOCKS))
        self.downscale = nn.Sequential(nn.Conv2d(num_feat, 4 * num_feat, _TAPS, stride=scale), nn.PReLU())
        self.tail = nn.Sequential(
            _conv(4 * num_feat, 2 * num_feat), nn.PReLU(), _conv(2 * num_feat, num_feat), nn.PReLU(), _conv(num_feat, 3)
        )
        self._start_attention()

    def forward(self, gt: Tensor, representation: Tensor) -> Tensor:
        """Map HR images (B, 3, H, W) in [0, 1] and representations (B, representation_dim) to (B, 3, H/s, W/s).

        Raises:
            BSRError: H or W is no multiple of the scale.
        """
        if gt.shape[-2] % self.scale or gt.shape[-1] % self.scale:
            raise BSRError(
                f"ReDSRDegrader: HR images of {gt.shape[-2]}x{gt.shape[-1]} pixels, expected multiples of {self.scale}"
            )
        features = self.head(gt)
        for block, steer in zip(self.blocks, self.expand(representation).split(self.num_feat, dim=1), strict=True):
            features = block(features, steer)
        missing = max(_TAPS - self.scale, 0)
        if missing:
            features = F.pad(features, (0, missing, 0, missing), mode="reflect")
        lq: Tensor = self.tail(self.downscale(features))
        return lq

    @torch.no_grad()
    def _start_attention(self) -> None:
        """Let the channel attention start near one half everywhere, as the released code does."""
        for name, parameter in self.blocks.named_parameters():
            if ".attention." in name and parameter.dim() == 4:  # a convolution, not an activation
                nn.init.normal_(parameter, 0.0, _ATTENTION_STD)


def _conv(num_in_ch: int, num_out_ch: int) -> nn.Conv2d:
    return nn.Conv2d(num_in_ch, num_out_ch, _TAPS, padding=_TAPS // 2, padding_mode="reflect")
