"""An arch from outside the package: an encoder of degradations, and convolutions that its representation steers."""

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bsr_plugins.archs import ContrastiveEncoder, RepresentationNet
from bsr_plugins.archs.drf import DRFG
from bsr_plugins.blocks import integer
from bsr_plugins.registration import register


@register(ARCH_REGISTRY)
class TinyBlindSR(RepresentationNet):
    """LR images (B, 3, h, w), RGB in [0, 1], to (B, 3, s·h, s·w)."""

    def __init__(self, num_feat: int = 32, num_block: int = 4, upscale: int = 4) -> None:
        super().__init__()
        integer(num_feat, "num_feat", 1, 1024)
        integer(num_block, "num_block", 1, 100)
        integer(upscale, "upscale", 1, 8)
        self.encoder = ContrastiveEncoder(num_feat=16)
        self.conv_first = nn.Conv2d(3, num_feat, 3, padding=1)
        self.body = DRFG(self.encoder.representation_dim, num_feat, num_block)
        self.conv_last = nn.Conv2d(num_feat, 3 * upscale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(upscale)

    def restore(self, lq: Tensor, representation: Tensor) -> Tensor:
        sr: Tensor = self.shuffle(self.conv_last(self.body(self.conv_first(lq), representation)))
        return sr
