"""The contract of AACL's backbones, and their registry. Each family is a file `aacl_*_backbone.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from bsr_plugins.registration import Registry


@dataclass(frozen=True)
class BackboneShape:
    """The sizes that every backbone is built from: `AACLNet`'s arguments of these names, and the representation's."""

    num_in_ch: int
    num_out_ch: int
    num_feat: int
    num_group: int
    num_block: int
    upscale: int
    representation_dim: int


class AACLBackbone(nn.Module, ABC):
    """The image side of an AACL network: a head, groups in a row with a residual around them, a tail.

    A subclass writes `head` and `tail` and gives the groups. Its constructor takes a `BackboneShape` first; its other
    arguments are keys of the block `backbone` of the option file. `@BACKBONES.register("name")` registers it.

    The encoder and the mean shift are outside. "6x6 fair architecture" is all that AACL's abstract says of the body, so
    its content is our design. Features are maps (B, num_feat, h, w); a Transformer's group turns them into tokens and
    back, as it knows their size.

    Args:
        groups: The body: modules that map (features, representation) to features.
    """

    def __init__(self, groups: Iterable[nn.Module]) -> None:
        super().__init__()
        self.groups = nn.ModuleList(groups)

    @abstractmethod
    def head(self, image: Tensor) -> Tensor:
        """Map shifted images (B, num_in_ch, h, w) to features."""

    @abstractmethod
    def tail(self, features: Tensor) -> Tensor:
        """Map features to shifted SR images (B, num_out_ch, s·h, s·w)."""

    def body(self, features: Tensor, representation: Tensor) -> Tensor:
        """Map features through all groups; a subclass may put a layer behind them."""
        for group in self.groups:
            features = group(features, representation)
        return features

    def forward(self, image: Tensor, representation: Tensor) -> Tensor:
        """Super-resolve shifted images (B, num_in_ch, h, w) with representations (B or 1, representation_dim)."""
        shallow = self.head(image)
        return self.tail(self.body(shallow, representation) + shallow)


BACKBONES: Registry[Callable[..., AACLBackbone]] = Registry("backbone")
"""What `backbone.type` may name."""
