"""The network of DASR."""

from __future__ import annotations

from functools import partial

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bsr_plugins.archs.contrastive_encoder_arch import ContrastiveEncoder
from bsr_plugins.archs.da_conv import DAShape
from bsr_plugins.archs.degradation_aware_net import DegradationAwareNet, NetShape
from bsr_plugins.archs.representation_net import RepresentationNet
from bsr_plugins.blocks import integer, number
from bsr_plugins.registration import register

_NEGATIVE_SLOPE = 0.1
_LOWEST_IMG_RANGE = 1e-3


@register(ARCH_REGISTRY)
class DASR(RepresentationNet):
    """Blind super-resolution with a contrastive representation and degradation-aware convolutions.

    DASR (Wang et al., CVPR 2021), as its released network is: the encoder gives 256 numbers, one bias-free layer
    compresses them to `num_feat`, and this one vector steers every block. Trained with `network_moco` beside it, whose
    encoder must be a `ContrastiveEncoder` with the same `num_feat` and `img_range`. The released network sees images
    in [0, 255]; images are in [0, 1] here and multiplied by `img_range` inside, so its weights fit as they are.

    Shape: images (B, 3, h, w) of any size to (B, 3, s·h, s·w). Parameters with the defaults: 5,837,723 for ×4, of which
    1,147,200 are the encoder's and 24 the fixed shifts by the mean.

    Args:
        num_feat: Channels of the features, and size of the compressed representation.
        num_group: Groups.
        num_block: Blocks in each group.
        reduction: Reduction of the channel attention, at most `num_feat`.
        upscale: 2, 3 or 4.
        encoder_num_feat: Width of the encoder; the representation has 4 times as many numbers.
        img_range: Factor on the image.

    Attributes:
        encoder: The `ContrastiveEncoder`.

    Raises:
        OptionError: An argument is out of its range.
    """

    def __init__(
        self,
        num_feat: int = 64,
        num_group: int = 5,
        num_block: int = 5,
        reduction: int = 8,
        upscale: int = 4,
        encoder_num_feat: int = 64,
        img_range: float = 255.0,
    ) -> None:
        super().__init__()
        shape = NetShape(num_feat, num_group, num_block, reduction, upscale)
        self.img_range = number(img_range, "network_g.img_range", _LOWEST_IMG_RANGE)
        width = integer(encoder_num_feat, "network_g.encoder_num_feat", 1)
        act = partial(nn.LeakyReLU, _NEGATIVE_SLOPE, inplace=True)
        self.num_group = num_group
        self.encoder = ContrastiveEncoder(3, width, self.img_range)
        self.compress = nn.Sequential(nn.Linear(self.encoder.representation_dim, num_feat, bias=False), act())
        self.generator = DegradationAwareNet(shape, DAShape(num_feat, num_feat, reduction, act), self.img_range)

    def encode(self, lq: Tensor) -> Tensor:
        """Map LR images (B, 3, h, w), RGB in [0, 1], to representations (B, 4·encoder_num_feat)."""
        representation: Tensor = self.encoder(lq)
        return representation

    def restore(self, lq: Tensor, representation: Tensor) -> Tensor:
        """Super-resolve LR images (B, 3, h, w) with representations (B or 1, 4·encoder_num_feat)."""
        compressed = self.compress(representation).expand(lq.shape[0], -1)
        sr: Tensor = self.generator(lq * self.img_range, [compressed] * self.num_group)
        return sr / self.img_range
