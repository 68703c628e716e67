"""The network of DASR."""

from __future__ import annotations

from functools import partial

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bsr_plugins.archs.arguments import check_channels, check_depths, check_img_range, check_upscale
from bsr_plugins.archs.contrastive_encoder_arch import ContrastiveEncoder
from bsr_plugins.archs.da_conv import DAShape, DegradationAwareNet
from bsr_plugins.archs.representation_net import RepresentationNet
from bsr_plugins.blocks import integer
from bsr_plugins.registration import register


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
        num_feat: Channels of the features, and size of the compressed representation, in [1, 4096].
        num_group: Groups, in [1, 1000].
        num_block: Blocks in each group, in [1, 1000].
        reduction: Reduction of the channel attention, at most `num_feat`.
        upscale: 2, 3 or 4.
        encoder_num_feat: Width of the encoder; the representation has 4 times as many numbers.
        img_range: Factor on the image.
    """

    encoder: ContrastiveEncoder

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
        check_channels(num_feat=num_feat, encoder_num_feat=encoder_num_feat)
        check_depths(num_group=num_group, num_block=num_block)
        integer(reduction, "reduction", 1, num_feat)
        check_upscale(upscale)
        self.img_range = check_img_range(img_range)
        act = partial(nn.LeakyReLU, 0.1, inplace=True)
        self.num_group = num_group
        self.encoder = ContrastiveEncoder(3, encoder_num_feat, self.img_range)
        self.compress = nn.Sequential(nn.Linear(self.encoder.representation_dim, num_feat, bias=False), act())
        blocks = DAShape(num_feat, reduction, act)
        self.generator = DegradationAwareNet(blocks, num_group, num_block, upscale, self.img_range)

    def restore(self, lq: Tensor, representation: Tensor) -> Tensor:
        compressed = self.compress(representation).expand(lq.shape[0], -1)
        sr: Tensor = self.generator(lq * self.img_range, [compressed] * self.num_group)
        return sr / self.img_range
