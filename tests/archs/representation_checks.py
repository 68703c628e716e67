"""What every network with a representation has to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from skimage import data
from torch import Tensor, nn

from bsr_plugins.archs import ContrastiveEncoder, RepresentationNet


def photograph(batch: int, height: int, width: int) -> Tensor:
    """Cut parts (batch, 3, height, width) out of scikit-image's coffee, RGB in [0, 1]."""
    pixels = torch.from_numpy(data.coffee()).permute(2, 0, 1).float() / 255
    return torch.stack([pixels[:, 50 * n : 50 * n + height, 60 * n : 60 * n + width] for n in range(1, batch + 1)])


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
            assert cancels(net, name) or parameter.grad.abs().sum() > 0, name


def cancels(net: RepresentationNet, name: str) -> bool:
    """Tell whether a parameter is a bias that a batch normalisation takes out again."""
    module = net.get_submodule(name.rpartition(".")[0])
    inside = name.startswith("encoder.") and isinstance(net.encoder, ContrastiveEncoder)
    return inside and name.endswith(".bias") and isinstance(module, nn.Conv2d)


def strict_round_trip(net: RepresentationNet, other: RepresentationNet, lq: Tensor, folder: Path) -> None:
    """Check that a file carries a network over into another of the same build."""
    net(lq)  # running statistics that are not those of a new network
    torch.save(net.state_dict(), folder / "net.pth")
    other.load_state_dict(torch.load(folder / "net.pth", weights_only=True), strict=True)
    assert torch.equal(other.eval()(lq), net.eval()(lq))


def float64_agrees_with_float32(net: RepresentationNet, lq: Tensor) -> None:
    """Check that precision is kept, and makes no more of a difference than it should."""
    single = net(lq)
    double = net.double()(lq.double())
    assert double.dtype == torch.float64
    assert torch.allclose(double, single.double(), atol=1e-5)


def bfloat16_autocast_trains(net: RepresentationNet, lq: Tensor) -> None:
    """Check gradients under autocast, and that its images are near those without."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sr, representation = net(lq, return_representation=True)
        loss = sr.float().abs().mean() + representation.float().square().mean()
    loss.backward()
    assert sr.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    reference = net.eval()(lq)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(net(lq).float(), reference, atol=0.03)


def exports_for_any_size(net: RepresentationNet, images: list[Tensor], smallest: int) -> None:
    """Check an export with free sizes from `smallest` up, made with the first of some images, on all of them."""
    height, width = (torch.export.Dim(name, min=smallest, max=512) for name in ("height", "width"))
    shapes: dict[str, Any] = {"lq": {2: height, 3: width}}
    program = torch.export.export(net, (images[0],), dynamic_shapes=shapes, strict=False)
    for lq in images:
        assert torch.allclose(program.module()(lq), net(lq), atol=1e-6)


def compiles_without_a_graph_break(net: RepresentationNet, lq: Tensor) -> None:
    """Check the compiled network against the eager one."""
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    sr, representation = compiled(lq, return_representation=True)
    assert torch.allclose(sr, net(lq), atol=1e-6)
    assert torch.allclose(representation, net.encode(lq), atol=1e-6)


def agrees_on(device: torch.device, net: nn.Module, *inputs: Tensor) -> None:
    """Check a network in double precision on a device against the CPU."""
    net, inputs = net.double(), tuple(tensor.double() for tensor in inputs)
    on_cpu = net(*inputs)
    moved = net.to(device)(*(tensor.to(device) for tensor in inputs))
    assert torch.allclose(moved.cpu(), on_cpu, atol=1e-9)
