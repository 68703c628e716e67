"""The base of all networks that restore an image by a learned representation of its degradation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class RepresentationNet(nn.Module, ABC):
    """An inference network in two parts: LR image to representation, and both to the SR image.

    A subclass writes `encode` and `restore`. Nothing is kept on the module between calls: whoever wants the
    representation asks `forward` for it, so the network can be wrapped for DDP, compiled and exported as it
    is.
    """

    @abstractmethod
    def encode(self, lq: Tensor) -> Tensor:
        """Estimate the degradation of each image.

        Args:
            lq: LR images (B, C, h, w), RGB in [0, 1].

        Returns:
            Representations (B, D).
        """

    @abstractmethod
    def restore(self, lq: Tensor, representation: Tensor) -> Tensor:
        """Super-resolve images whose degradation is known.

        Args:
            lq: LR images (B, C, h, w), RGB in [0, 1].
            representation: Representations (B, D), or (1, D) for one degradation shared by the batch.

        Returns:
            SR images (B, C, s·h, s·w); not clipped.
        """

    def forward(
        self, lq: Tensor, return_representation: bool = False, representation: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Super-resolve images.

        Args:
            lq: LR images (B, C, h, w), RGB in [0, 1].
            return_representation: Give the representation as well.
            representation: Representations (B, D) or (1, D) to use; the encoder does not run then.

        Returns:
            SR images (B, C, s·h, s·w), or these and the representation that was used.
        """
        if representation is None:
            representation = self.encode(lq)
        sr = self.restore(lq, representation)
        return (sr, representation) if return_representation else sr
