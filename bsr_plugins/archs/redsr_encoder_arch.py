"""The encoder of ReDSR, and the oracle that stands in for it in an ablation."""

from __future__ import annotations

from itertools import pairwise

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bsr_plugins.blocks import integer
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.registration import register

_REDUCING = (4, 2, 1)  # taps, stride, padding
_KEEPING = (5, 1, 2)
_WIDTHS = (1, 1, 2, 2, 4)  # of all layers but the last, in units of num_feat
_SMALLEST_SIDE = 24  # below, reflection at the last layer would need more pixels than there are
_ORACLE_HIDDEN_LAYERS = 4


@register(ARCH_REGISTRY)
class ReDSREncoder(nn.Module):
    """Estimate a representation of the degradation of an image (ReDSR, Eq. 2).

    The paper's text says five 5×5 convolutions without batch normalisation; its parameter count and the released
    network have six, 4×4 with stride 2 and 5×5 with stride 1 in turn, with reflected borders and PReLU, of widths
    64-64-128-128-256-64, and the average over all positions. This is the latter, with 1,580,742 parameters.

    Shape: images (B, 3, h, w), h, w ≥ 24, to representations (B, representation_dim).

    Args:
        num_feat: Width of the first two layers.
        representation_dim: Size of the representation, C in the paper.

    Attributes:
        representation_dim: Size of the representation.
        smallest_side: The shortest side that an LR image may have.

    Raises:
        OptionError: A width is no whole number above 0.
    """

    smallest_side = _SMALLEST_SIDE

    def __init__(self, num_feat: int = 64, representation_dim: int = 64) -> None:
        super().__init__()
        integer(num_feat, "ReDSREncoder.num_feat", 1)
        integer(representation_dim, "ReDSREncoder.representation_dim", 1)
        layers: list[nn.Module] = []
        width = 3
        for index, out in enumerate([*(factor * num_feat for factor in _WIDTHS), representation_dim]):
            taps, stride, padding = _KEEPING if index % 2 else _REDUCING
            layers += [nn.Conv2d(width, out, taps, stride, padding, padding_mode="reflect"), nn.PReLU()]
            width = out
        self.features = nn.Sequential(*layers)
        self.representation_dim = representation_dim

    def forward(self, lq: Tensor) -> Tensor:
        """Map LR images (B, 3, h, w), RGB in [0, 1], to representations (B, representation_dim).

        Raises:
            BSRError: The images are smaller than 24 pixels.
        """
        if min(lq.shape[-2:]) < _SMALLEST_SIDE:
            raise BSRError(
                f"ReDSREncoder: LR images of {lq.shape[-2]}x{lq.shape[-1]} pixels, expected sides of at least "
                f"{_SMALLEST_SIDE}"
            )
        features: Tensor = self.features(lq)
        return features.mean(dim=(2, 3))


@register(ARCH_REGISTRY)
class OracleEncoder(nn.Module):
    """Encode the true blur kernel instead of an image: model 9 of ReDSR's Table 2, an upper bound.

    The paper says five fully-connected layers; their widths and activations are ours: hidden layers of `num_feat`
    with PReLU.

    Shape: kernels (B, k, k) to representations (B, representation_dim).

    Args:
        kernel_size: Taps k of the kernels, odd.
        num_feat: Width of the hidden layers.
        representation_dim: Size of the representation.

    Raises:
        OptionError: A size is no whole number above 0, or k is even.
    """

    def __init__(self, kernel_size: int = 21, num_feat: int = 64, representation_dim: int = 64) -> None:
        super().__init__()
        if integer(kernel_size, "OracleEncoder.kernel_size", 1) % 2 == 0:
            raise OptionError(f"OracleEncoder.kernel_size: {kernel_size}, expected an odd number")
        integer(num_feat, "OracleEncoder.num_feat", 1)
        integer(representation_dim, "OracleEncoder.representation_dim", 1)
        widths = [kernel_size**2, *[num_feat] * _ORACLE_HIDDEN_LAYERS, representation_dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.PReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.kernel_size = kernel_size
        self.representation_dim = representation_dim

    def forward(self, kernel: Tensor) -> Tensor:
        """Map blur kernels (B, k, k) to representations (B, representation_dim).

        Raises:
            BSRError: They are of another size.
        """
        if kernel.shape[-2:] != (self.kernel_size, self.kernel_size):
            raise BSRError(
                f"OracleEncoder: kernels of {kernel.shape[-2]}x{kernel.shape[-1]} taps, expected {self.kernel_size}x"
                f"{self.kernel_size}"
            )
        # In units of the uniform kernel, so that the numbers are about 1 whatever the size.
        representation: Tensor = self.layers(kernel.flatten(1) * self.kernel_size**2)
        return representation
