"""The network of ReDSR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bsr_plugins.archs.da_conv import DAShape
from bsr_plugins.archs.degradation_aware_net import DegradationAwareNet, NetShape
from bsr_plugins.archs.redsr_encoder_arch import OracleEncoder, ReDSREncoder
from bsr_plugins.archs.representation_net import RepresentationNet
from bsr_plugins.blocks import build_from_block
from bsr_plugins.errors import BSRError
from bsr_plugins.registration import register

_RGB_RANGE = 1.0


@register(ARCH_REGISTRY)
class ReDSR(RepresentationNet):
    """Blind super-resolution with a representation that was learned by re-degradation.

    ReDSR (Liu et al., ECCV 2024, Eq. 2 and 6): `ReDSREncoder`, and DASR's network as the generator, with PReLU and with
    the representation turned by an MLP into one vector per group. Trained with `network_degrader` beside it.

    Shape: images (B, 3, h, w), h, w ≥ 24, to (B, 3, s·h, s·w). Parameters with the defaults: 6,280,003 for ×4, of which
    1,580,742 are the encoder's and 24 the fixed shifts by the mean; ReDSR-L, `num_block: 10`, has 10,433,828.

    Args:
        num_feat: Channels of the features, and size of what steers a block.
        num_group: Groups.
        num_block: Blocks in each group: 5, or 10 for ReDSR-L.
        reduction: Reduction of the channel attention, at most `num_feat`.
        upscale: 2, 3 or 4.
        encoder: Block of the encoder: `ReDSREncoder` (default), or `OracleEncoder`, which looks at the true blur kernel
            instead of the image (model 9 of Table 2) and makes `forward` want `kernel`.

    Attributes:
        encoder: The encoder.

    Raises:
        OptionError: An argument is out of its range, or the encoder's block cannot be used.
    """

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
        shape = NetShape(num_feat, num_group, num_block, reduction, upscale)
        encoders = {"ReDSREncoder": ReDSREncoder, "OracleEncoder": OracleEncoder}
        block = {"type": "ReDSREncoder"} if encoder is None else encoder
        self.encoder: ReDSREncoder | OracleEncoder = build_from_block(block, encoders, "network_g.encoder")
        dim = self.encoder.representation_dim
        self.num_feat = num_feat
        self.compress = nn.Sequential(
            nn.Linear(dim, num_feat, bias=False), nn.PReLU(), nn.Linear(num_feat, num_group * num_feat)
        )
        self.generator = DegradationAwareNet(shape, DAShape(num_feat, num_feat, reduction, nn.PReLU), _RGB_RANGE)

    @property
    def needs_kernel(self) -> bool:
        """Whether the representation comes from the true blur kernel."""
        return isinstance(self.encoder, OracleEncoder)

    def encode(self, lq: Tensor) -> Tensor:
        """Map LR images (B, 3, h, w), RGB in [0, 1], to representations (B, representation_dim).

        Raises:
            BSRError: The encoder wants blur kernels.
        """
        if self.needs_kernel:
            raise BSRError("ReDSR: the oracle encoder wants the blur kernel, expected forward(lq, kernel=...)")
        representation: Tensor = self.encoder(lq)
        return representation

    def restore(self, lq: Tensor, representation: Tensor) -> Tensor:
        """Super-resolve LR images (B, 3, h, w) with representations (B or 1, representation_dim)."""
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
        """Super-resolve images.

        Args:
            lq: LR images (B, 3, h, w), RGB in [0, 1].
            return_representation: Give the representation as well.
            representation: Representations (B, D) or (1, D) to use; the encoder does not run then.
            kernel: True blur kernels (B, k, k), for the oracle encoder alone.

        Returns:
            SR images (B, 3, s·h, s·w), or these and the representation that was used.

        Raises:
            BSRError: The oracle encoder is given neither kernels nor a representation, or both; or the other kernels.
        """
        if kernel is not None:
            if not self.needs_kernel or representation is not None:
                why = "a representation is given too" if self.needs_kernel else "the encoder looks at the image"
                raise BSRError(f"ReDSR: kernels were given, expected none, as {why}")
            representation = self.encoder(kernel)
        return super().forward(lq, return_representation, representation)
