"""RepresentationNet: what forward gives, and when the encoder runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bsr_plugins.archs.representation_net import RepresentationNet


class MeanNet(RepresentationNet):
    """The representation is the mean; restoring adds it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0

    def encode(self, lq: Tensor) -> Tensor:
        self.encoded += 1
        return lq.mean(dim=(2, 3))

    def restore(self, lq: Tensor, representation: Tensor) -> Tensor:
        return lq + representation[:, :, None, None]


@pytest.fixture
def lq() -> Tensor:
    return torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))


def test_forward_gives_the_image_alone_unless_asked(lq: Tensor) -> None:
    sr = MeanNet()(lq)
    assert isinstance(sr, Tensor)
    assert torch.equal(sr, lq + lq.mean(dim=(2, 3), keepdim=True))


def test_forward_gives_the_representation_that_it_used(lq: Tensor) -> None:
    sr, representation = MeanNet()(lq, return_representation=True)
    assert torch.equal(representation, lq.mean(dim=(2, 3)))
    assert torch.equal(sr, lq + representation[:, :, None, None])


def test_a_given_representation_is_used_and_the_encoder_does_not_run(lq: Tensor) -> None:
    net = MeanNet()
    given = torch.full((2, 3), 7.0)
    sr, representation = net(lq, return_representation=True, representation=given)
    assert net.encoded == 0
    assert representation is given
    assert torch.equal(sr, lq + 7)


def test_a_subclass_has_to_write_the_restoration() -> None:
    class Half(RepresentationNet):
        def encode(self, lq: Tensor) -> Tensor:
            return lq

    with pytest.raises(TypeError, match="restore"):
        Half()  # type: ignore[abstract]
