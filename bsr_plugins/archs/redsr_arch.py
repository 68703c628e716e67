"""The networks of ReDSR: encoder, the oracle that replaces it in an ablation, the whole network, degrader."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.archs.arguments import check_channels, check_depths, check_upscale
from bsr_plugins.archs.da_conv import DAB, DAShape, DegradationAwareNet
from bsr_plugins.archs.representation_net import RepresentationNet
from bsr_plugins.blocks import build_from_block, integer
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.registration import register

_REDUCING = (4, 2, 1)  # taps, stride, padding of the encoder's layers
_KEEPING = (5, 1, 2)
_WIDTHS = (1, 1, 2, 2, 4)  # of all its layers but the last, in units of num_feat
_DEGRADER_BLOCKS = 3
_TAPS = 3


@register(ARCH_REGISTRY)
class ReDSREncoder(nn.Module):
    """Estimate a representation of the degradation of an image (ReDSR, Eq. 2).

    The paper's text says five 5×5 convolutions without batch normalisation; its parameter count and the released
    network have six, 4×4 with stride 2 and 5×5 with stride 1 in turn, with reflected borders and PReLU, of widths
    64-64-128-128-256-64, and the average over all positions. This is the latter, with 1,580,742 parameters.

    Shape: images (B, 3, h, w), RGB in [0, 1], h, w ≥ 24, to representations (B, representation_dim). `forward` raises
    `BSRError` for smaller ones.

    Args:
        num_feat: Width of the first two layers, in [1, 4096].
        representation_dim: Size of the representation, C in the paper, in [1, 4096].
    """

    smallest_side = 24  # of an LR image: below, reflection at its last layer would need more pixels than there are

    def __init__(self, num_feat: int = 64, representation_dim: int = 64) -> None:
        super().__init__()
        check_channels(num_feat=num_feat, representation_dim=representation_dim)
        layers: list[nn.Module] = []
        width = 3
        for index, out in enumerate([*(factor * num_feat for factor in _WIDTHS), representation_dim]):
            taps, stride, padding = _KEEPING if index % 2 else _REDUCING
            layers += [nn.Conv2d(width, out, taps, stride, padding, padding_mode="reflect"), nn.PReLU()]
            width = out
        self.features = nn.Sequential(*layers)
        self.representation_dim = representation_dim

    def forward(self, lq: Tensor) -> Tensor:
        height, width = lq.shape[-2:]
        if min(height, width) < self.smallest_side:
            expected = f"sides of at least {self.smallest_side}"
            raise BSRError(f"ReDSREncoder: LR images of {height}x{width} pixels, expected {expected}")
        features: Tensor = self.features(lq)
        return features.mean(dim=(2, 3))


@register(ARCH_REGISTRY)
class OracleEncoder(nn.Module):
    """Encode the true blur kernel instead of an image: model 9 of ReDSR's Table 2, an upper bound.

    The paper says five fully-connected layers; their widths and activations are ours: hidden layers of `num_feat`
    with PReLU.

    Shape: kernels (B, k, k) to representations (B, representation_dim). `forward` raises `BSRError` for other sizes.

    Args:
        kernel_size: Taps k of the kernels, odd, at most 255.
        num_feat: Width of the hidden layers, in [1, 4096].
        representation_dim: Size of the representation, in [1, 4096].
    """

    def __init__(self, kernel_size: int = 21, num_feat: int = 64, representation_dim: int = 64) -> None:
        super().__init__()
        if integer(kernel_size, "kernel_size", 1, 255) % 2 == 0:
            raise OptionError(f"kernel_size: {kernel_size}, expected an odd number")
        check_channels(num_feat=num_feat, representation_dim=representation_dim)
        widths = [kernel_size**2, *[num_feat] * 4, representation_dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.PReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.kernel_size = kernel_size
        self.representation_dim = representation_dim

    def forward(self, kernel: Tensor) -> Tensor:
        size, (height, width) = self.kernel_size, kernel.shape[-2:]
        if (height, width) != (size, size):
            raise BSRError(f"OracleEncoder: kernels of {height}x{width} taps, expected {size}x{size}")
        # In units of the uniform kernel, so that the numbers are about 1 whatever the size.
        representation: Tensor = self.layers(kernel.flatten(1) * size**2)
        return representation


@register(ARCH_REGISTRY)
class ReDSR(RepresentationNet):
    """Blind super-resolution with a representation that was learned by re-degradation.

    ReDSR (Liu et al., ECCV 2024, Eq. 2 and 6): `ReDSREncoder`, and DASR's network as the generator, with PReLU and with
    the representation turned by an MLP into one vector per group. Trained with `network_degrader` beside it.

    Shape: images (B, 3, h, w), h, w ≥ 24, to (B, 3, s·h, s·w). Parameters with the defaults: 6,280,003 for ×4, of which
    1,580,742 are the encoder's and 24 the fixed shifts by the mean; ReDSR-L, `num_block: 10`, has 10,433,828.

    Args:
        num_feat: Channels of the features, and size of what steers a block, in [1, 4096].
        num_group: Groups, in [1, 1000].
        num_block: Blocks in each group, in [1, 1000]: 5, or 10 for ReDSR-L.
        reduction: Reduction of the channel attention, at most `num_feat`.
        upscale: 2, 3 or 4.
        encoder: Block of the encoder: `ReDSREncoder` (default), or `OracleEncoder`, which sees the true blur kernel
            instead of the image (model 9 of Table 2); `forward` needs `kernel` then.
    """

    encoder: ReDSREncoder | OracleEncoder

    def __init__(
        self,
        num_feat: int = 64,
        num_group: int = 5,
        num_block: int = 5,
        reduction: int = 8,
        upscale: int = 4,
        encoder: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_channels(num_feat=num_feat)
        check_depths(num_group=num_group, num_block=num_block)
        integer(reduction, "reduction", 1, num_feat)
        check_upscale(upscale)
        encoders = {"ReDSREncoder": ReDSREncoder, "OracleEncoder": OracleEncoder}
        self.encoder = build_from_block({"type": "ReDSREncoder"} if encoder is None else encoder, encoders, "encoder")
        self.num_feat = num_feat
        first = nn.Linear(self.encoder.representation_dim, num_feat, bias=False)
        self.compress = nn.Sequential(first, nn.PReLU(), nn.Linear(num_feat, num_group * num_feat))
        blocks = DAShape(num_feat, reduction, nn.PReLU)
        self.generator = DegradationAwareNet(blocks, num_group, num_block, upscale, rgb_range=1.0)

    @property
    def needs_kernel(self) -> bool:
        """Whether the representation comes from the true blur kernel."""
        return isinstance(self.encoder, OracleEncoder)

    def encode(self, lq: Tensor) -> Tensor:
        if self.needs_kernel:
            raise BSRError("ReDSR: the oracle encoder needs the blur kernel, expected forward(lq, kernel=...)")
        return super().encode(lq)

    def restore(self, lq: Tensor, representation: Tensor) -> Tensor:
        vectors = self.compress(representation).expand(lq.shape[0], -1).split(self.num_feat, dim=1)
        sr: Tensor = self.generator(lq, vectors)
        return sr

    def forward(
        self,
        lq: Tensor,
        return_representation: bool = False,
        representation: Tensor | None = None,
        kernel: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Super-resolve images as `RepresentationNet` does, for the oracle encoder with true blur kernels (B, k, k).

        `BSRError`: that encoder gets neither kernels nor a representation, or both; or the other encoder gets kernels.
        """
        if kernel is not None:
            if not self.needs_kernel or representation is not None:
                why = "a representation is given too" if self.needs_kernel else "the encoder sees the image"
                raise BSRError(f"ReDSR: kernels were given, expected none, as {why}")
            representation = self.encoder(kernel)
        return super().forward(lq, return_representation, representation)


@register(ARCH_REGISTRY)
class ReDSRDegrader(nn.Module):
    """Reproduce the LR image of an HR image, given the representation of its degradation (ReDSR, Eq. 3).

    The paper takes DASR's SR network with a downscaler in the place of the upscaler; this is the released network:
    three degradation-aware blocks at the size of the HR image, with reflected borders and a 3×3 convolution after the
    dynamic one, each steered by its third of what an MLP makes of the representation; then a 3×3 convolution with
    stride s that widens the features four times, and three that narrow them. There is no shift by the mean. Released
    for ×4 alone: every window of the downscaler begins at HR pixel s·i, at the other scales too, for which ×2 needs a
    pixel of reflected border at the bottom and right.

    Shape: HR images (B, 3, H, W) in [0, 1] with representations (B, representation_dim), to (B, 3, H/s, W/s). `forward`
    raises `BSRError` unless H and W are multiples of s. For training only: 1,237,924 parameters.

    Args:
        num_feat: Channels of the features, and size of what steers a block, in [1, 4096].
        representation_dim: Size of the representation, in [1, 4096].
        reduction: Reduction of the channel attention, at most `num_feat`.
        scale: Factor from HR to LR: 2, 3 or 4; the generator's.
    """

    def __init__(self, num_feat: int = 64, representation_dim: int = 64, reduction: int = 4, scale: int = 4) -> None:
        super().__init__()
        check_channels(num_feat=num_feat, representation_dim=representation_dim)
        integer(reduction, "reduction", 1, num_feat)
        check_upscale(scale, "scale")
        self.scale, self.num_feat, self.representation_dim = scale, num_feat, representation_dim
        self.expand = nn.Sequential(
            *(nn.Linear(representation_dim, num_feat), nn.PReLU()),
            *(nn.Linear(num_feat, _DEGRADER_BLOCKS * num_feat), nn.PReLU()),
        )
        conv = partial(nn.Conv2d, kernel_size=_TAPS, padding=1, padding_mode="reflect")
        self.head = nn.Sequential(conv(3, num_feat), nn.PReLU())
        shape = DAShape(num_feat, reduction, nn.PReLU, mix_taps=_TAPS, padding_mode="reflect")
        self.blocks = nn.ModuleList(DAB(shape) for _ in range(_DEGRADER_BLOCKS))
        self.downscale = nn.Sequential(nn.Conv2d(num_feat, 4 * num_feat, _TAPS, stride=scale), nn.PReLU())
        self.tail = nn.Sequential(
            conv(4 * num_feat, 2 * num_feat), nn.PReLU(), conv(2 * num_feat, num_feat), nn.PReLU(), conv(num_feat, 3)
        )
        for name, parameter in self.blocks.named_parameters():
            if ".attention." in name and parameter.dim() == 4:  # a convolution, not an activation
                # So the attention starts near one half everywhere, as in the released code.
                nn.init.normal_(parameter, 0.0, 0.02)

    def forward(self, gt: Tensor, representation: Tensor) -> Tensor:
        height, width = gt.shape[-2:]
        if height % self.scale or width % self.scale:
            raise BSRError(f"ReDSRDegrader: HR images of {height}x{width} pixels, expected multiples of {self.scale}")
        features = self.head(gt)
        for block, steer in zip(self.blocks, self.expand(representation).split(self.num_feat, dim=1), strict=True):
            features = block(features, steer)
        if self.scale < _TAPS:
            features = F.pad(features, (0, _TAPS - self.scale, 0, _TAPS - self.scale), mode="reflect")
        lq: Tensor = self.tail(self.downscale(features))
        return lq
