"""The encoder of degradations that is trained by contrast."""

from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.archs.arguments import check_channels, check_img_range
from bsr_plugins.registration import register

_LAYERS = ((1, 1), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1))  # width in units of num_feat, stride


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
    normalisation and LeakyReLU(0.1), of widths 64-64-128-128-256-256, stride 2 at the third and fifth, and the average
    over all positions. DASR's sees images in [0, 255], which is `img_range: 255`: the first batch normalisation takes
    the factor out, so it matters only for weights that were trained with it.

    Shape: images (B, num_in_ch, h, w), RGB in [0, 1], to representations (B, representation_dim), 4·num_feat numbers.
    In training mode batch normalisation needs more than one value per channel: a single image must have a side above 4
    pixels. It also takes the biases of the convolutions out again, so their gradients are set to 0: Adam would make
    whole steps of their rounding errors.

    Args:
        num_in_ch: Channels of the image, in [1, 4096].
        num_feat: Width of the first two layers, in [1, 4096]; 64 as published gives a representation of 256.
        img_range: Factor on the image, in [0.001, 65535].
    """

    def __init__(self, num_in_ch: int = 3, num_feat: int = 64, img_range: float = 1.0) -> None:
        super().__init__()
        check_channels(num_in_ch=num_in_ch, num_feat=num_feat)
        self.img_range = check_img_range(img_range)
        before = num_in_ch
        layers: list[nn.Module] = []
        for factor, stride in _LAYERS:
            width = factor * num_feat
            conv, norm = _NormalisedConv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width)
            layers += [conv, norm, nn.LeakyReLU(0.1, inplace=True)]
            before = width
        self.features = nn.Sequential(*layers)
        self.representation_dim = before

    def forward(self, lq: Tensor) -> Tensor:
        features: Tensor = self.features(lq if self.img_range == 1 else lq * self.img_range)
        return features.mean(dim=(2, 3))
