"""The encoder of degradations that is trained by contrast."""

from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.blocks import integer, number
from bsr_plugins.registration import register

_LAYERS = ((1, 1), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1))  # width in units of num_feat, stride
_NEGATIVE_SLOPE = 0.1
_LOWEST_IMG_RANGE = 1e-3


class _NormalisedConv2d(nn.Conv2d):
    """A convolution in front of a batch normalisation: in training mode its bias has the gradient 0, as it should."""

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias
        if self.training and bias is not None:
            bias = bias.detach() + 0 * bias
        return F.conv2d(x, self.weight, bias, self.stride, self.padding)


@register(ARCH_REGISTRY)
class ContrastiveEncoder(nn.Module):
    """Estimate a representation of the degradation of an image.

    The encoder of DASR (Wang et al., CVPR 2021), which AACL takes over: six 3×3 convolutions, each with batch
    normalisation and LeakyReLU(0.1), of widths 64-64-128-128-256-256, stride 2 at the third and fifth, and
    the average over all positions. DASR's sees images in [0, 255], which is `img_range: 255`: the first batch
    normalisation takes the factor out, so it matters only for weights that were trained with it.

    Shape: images (B, num_in_ch, h, w) of any size to representations (B, 4·num_feat). In training mode batch
    normalisation wants more than one value per channel: a single image must have a side above 4 pixels.

    In training mode batch normalisation takes the biases of the convolutions out again, and their gradients are 0. They
    would be rounding errors otherwise, of which Adam makes whole steps.

    Args:
        num_in_ch: Channels of the image.
        num_feat: Width of the first two layers; 64 as published gives a representation of 256.
        img_range: Factor on the image.

    Attributes:
        representation_dim: Size of the representation, 4·num_feat.

    Raises:
        OptionError: A width is no whole number above 0, or the range not above 0.
    """

    def __init__(self, num_in_ch: int = 3, num_feat: int = 64, img_range: float = 1.0) -> None:
        super().__init__()
        width = integer(num_in_ch, "ContrastiveEncoder.num_in_ch", 1)
        integer(num_feat, "ContrastiveEncoder.num_feat", 1)
        self.img_range = number(img_range, "ContrastiveEncoder.img_range", _LOWEST_IMG_RANGE)
        layers: list[nn.Module] = []
        for factor, stride in _LAYERS:
            layers += [
                _NormalisedConv2d(width, factor * num_feat, 3, stride, 1),
                nn.BatchNorm2d(factor * num_feat),
                nn.LeakyReLU(_NEGATIVE_SLOPE, inplace=True),
            ]
            width = factor * num_feat
        self.features = nn.Sequential(*layers)
        self.representation_dim = width

    def forward(self, lq: Tensor) -> Tensor:
        """Map LR images (B, num_in_ch, h, w), RGB in [0, 1], to representations (B, representation_dim)."""
        features: Tensor = self.features(lq if self.img_range == 1 else lq * self.img_range)
        return features.mean(dim=(2, 3))
