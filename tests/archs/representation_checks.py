"""What every network with a representation has to do."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bsr_plugins.archs import RepresentationNet


def samples_do_not_meet(net: RepresentationNet, lq: Tensor) -> None:
    """Check that an image of a batch, shape (B, 3, h, w), comes out as it does alone."""
    alone = torch.cat([net(image[None]) for image in lq])
    assert torch.allclose(net(lq), alone, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def given_representation_acts_like_an_encoded_one(net: RepresentationNet, lq: Tensor, difference: float) -> None:
    """Check the ways to a representation; another one makes a difference."""
    sr, representation = net(lq, return_representation=True)
    assert torch.equal(representation, net.encode(lq))
    assert isinstance(net.encoder, nn.Module)
    assert torch.equal(representation, net.encoder(lq))
    assert torch.equal(net(lq, representation=representation), sr)
    assert torch.equal(net.restore(lq, representation), sr)
    assert not torch.allclose(net(lq, representation=representation + 1), sr, atol=difference)


def one_representation_serves_a_batch(net: RepresentationNet, lq: Tensor, dim: int) -> None:
    """Check that (1, D) is as good as (B, D)."""
    one = torch.linspace(-1, 1, dim)[None]
    every = one.expand(len(lq), -1)
    assert torch.allclose(net(lq, representation=one), net(lq, representation=every), atol=1e-6)


def gradients_reach_everything_but_the_shifts(net: RepresentationNet, lq: Tensor) -> None:
    """Check the gradients of all parameters; the shifts by the mean have none."""
    net(lq).square().sum().backward()
    for name, parameter in net.named_parameters():
        if "_mean." in name:
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def strict_round_trip(net: RepresentationNet, other: RepresentationNet, lq: Tensor, folder: Path) -> None:
    """Check that a file carries a network over into another of the same build."""
    net(lq)  # running statistics that are not those of a new network
    torch.save(net.state_dict(), folder / "net.pth")
    other.load_state_dict(torch.load(folder / "net.pth", weights_only=True), strict=True)
    assert torch.equal(other.eval()(lq), net.eval()(lq))
