"""What every network has to do: samples apart, gradients, files, precisions, export, devices, bad arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bsr_plugins.archs import ContrastiveEncoder, RepresentationNet
from bsr_plugins.blocks import build_from_block
from bsr_plugins.errors import OptionError
from tests.archs.images import photograph


class Case(NamedTuple):
    """A small network.

    Attributes:
        options: Its arguments.
        side: Of the images that it is tried on.
        representation_dim: Size of its representation; 0 for a network without.
        smallest: The side from which it is exported; None where its own tests export it.
    """

    options: dict[str, Any]
    side: int
    representation_dim: int
    smallest: int | None


BODY = {"num_feat": 8, "num_group": 2, "num_block": 2}
ENCODER = {"type": "ReDSREncoder", "num_feat": 4, "representation_dim": 6}
NETS = {
    # Exported from 5 up: below, a map of the encoder is one pixel wide, which export takes for a case of its own.
    "AACLNet": Case({**BODY, "encoder_num_feat": 4}, 12, 16, 5),
    "DASR": Case({**BODY, "reduction": 4, "encoder_num_feat": 4}, 12, 16, 5),
    "ReDSR": Case({**BODY, "reduction": 4, "encoder": ENCODER}, 24, 6, 24),
    "MSRN": Case({"num_in_ch": 3, "num_out_ch": 3, "num_feat": 6, "num_block": 3}, 12, 0, 2),
    "ReDSRDegrader": Case({"num_feat": 8, "representation_dim": 6}, 16, 0, None),
}
every_net = pytest.mark.parametrize("name", NETS)
every_representation_net = pytest.mark.parametrize("name", [name for name in NETS if NETS[name].representation_dim])


def small_net(name: str, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: nn.Module = ARCH_REGISTRY.get(name)(**{**NETS[name].options, **options})
    return net


def representation_net(name: str) -> RepresentationNet:
    net = small_net(name).eval()
    assert isinstance(net, RepresentationNet)
    return net


def inputs_for(name: str, batch: int) -> list[Tensor]:
    """Images (batch, 3, side, side + 4), and representations for the degrader."""
    images = photograph(batch, NETS[name].side, NETS[name].side + 4)
    given = torch.randn(batch, 6, generator=torch.Generator().manual_seed(2))
    return [images, given] if name == "ReDSRDegrader" else [images]


def outputs(net: Any, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The image, and the representation of a network that has one."""
    if isinstance(net, RepresentationNet):
        return tuple(net(*inputs, return_representation=True))
    return (net(*inputs),)


def cancels(net: nn.Module, name: str) -> bool:
    """Tell whether a parameter is a bias that a batch normalisation takes out again."""
    module = net.get_submodule(name.rpartition(".")[0])
    inside = name.startswith("encoder.") and isinstance(net.encoder, ContrastiveEncoder)
    return inside and name.endswith(".bias") and isinstance(module, nn.Conv2d)


@every_net
def test_samples_of_a_batch_do_not_meet(name: str) -> None:
    net, inputs = small_net(name).eval(), inputs_for(name, 3)
    alone = torch.cat([net(*(tensor[[n]] for tensor in inputs)) for n in range(3)])
    assert torch.allclose(net(*inputs), alone, atol=1e-5)
    assert name == "ReDSRDegrader" or not torch.allclose(alone[0], alone[1], atol=1e-2)


@every_representation_net
def test_a_given_representation_acts_like_an_encoded_one(name: str) -> None:
    net, (lq,) = representation_net(name), inputs_for(name, 2)
    sr, representation = net(lq, return_representation=True)
    assert representation.shape == (2, NETS[name].representation_dim)
    assert torch.equal(representation, net.encode(lq))
    assert torch.equal(representation, net.encoder(lq))
    assert torch.equal(net(lq, representation=representation), sr)
    assert torch.equal(net.restore(lq, representation), sr)
    assert not torch.allclose(net(lq, representation=representation + 1), sr, atol=1e-4)


@every_representation_net
def test_one_representation_serves_a_batch(name: str) -> None:
    net, (lq,) = representation_net(name), inputs_for(name, 3)
    one = torch.linspace(-1, 1, NETS[name].representation_dim)[None]
    assert torch.allclose(net(lq, representation=one), net(lq, representation=one.expand(3, -1)), atol=1e-6)


@every_net
def test_gradients_reach_everything_but_the_shifts(name: str) -> None:
    # With a reduction of 1, some hidden number of each attention is below 0, for its slope.
    net = small_net(name, **({"reduction": 1} if "reduction" in NETS[name].options or name == "ReDSRDegrader" else {}))
    net(*inputs_for(name, 2)).square().sum().backward()
    for key, parameter in net.named_parameters():
        if "_mean." in key:
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, key
            assert cancels(net, key) or parameter.grad.abs().sum() > 0, key


@every_net
def test_strict_round_trip_through_a_file(name: str, tmp_path: Path) -> None:
    net, inputs = small_net(name), inputs_for(name, 2)
    net(*inputs)  # running statistics that are not those of a new network
    torch.save(net.state_dict(), tmp_path / "net.pth")
    other = ARCH_REGISTRY.get(name)(**NETS[name].options)
    other.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True), strict=True)
    assert torch.equal(other.eval()(*inputs), net.eval()(*inputs))
    assert "mean" not in net.state_dict()


@every_net
def test_float64_agrees_with_float32(name: str) -> None:
    net, inputs = small_net(name).eval(), inputs_for(name, 1)
    single = net(*inputs)
    double = net.double()(*(tensor.double() for tensor in inputs))
    assert double.dtype == torch.float64
    assert torch.allclose(double, single.double(), atol=1e-5)


@every_net
def test_bfloat16_autocast_trains(name: str) -> None:
    net, inputs = small_net(name), inputs_for(name, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = outputs(net, inputs)
    sum((tensor.float().square().mean() for tensor in made), torch.zeros(())).backward()
    assert made[0].isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    reference = net.eval()(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(net(*inputs).float(), reference, atol=0.03)


@pytest.mark.parametrize("name", [name for name in NETS if NETS[name].smallest])
def test_export_for_any_size(name: str) -> None:
    net, smallest = small_net(name).eval(), NETS[name].smallest
    height, width = (torch.export.Dim(side, min=smallest, max=512) for side in ("height", "width"))
    images = [photograph(1, *size) for size in ((37, 53), (24, 24), (40, 31))]
    shapes = {"lq": {2: height, 3: width}}
    program = torch.export.export(net, (images[0],), dynamic_shapes=shapes, strict=False)
    for lq in images:
        assert torch.allclose(program.module()(lq), net(lq), atol=1e-6)


@every_net
def test_compiles_without_a_graph_break(name: str) -> None:
    net, inputs = small_net(name).eval(), inputs_for(name, 1)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    wanted = outputs(net, inputs)
    made = compiled(*inputs, **({"return_representation": True} if len(wanted) == 2 else {}))
    for mine, other in zip(made if len(wanted) == 2 else (made,), wanted, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_net
def test_cuda_agrees_with_cpu(name: str) -> None:
    net, inputs = small_net(name).eval().double(), [tensor.double() for tensor in inputs_for(name, 2)]
    on_cpu = net(*inputs)
    on_cuda = net.to("cuda")(*(tensor.to("cuda") for tensor in inputs))
    assert torch.allclose(on_cuda.cpu(), on_cpu, atol=1e-9)


@every_net
def test_shapes_are_found_without_memory(name: str) -> None:
    inputs = inputs_for(name, 1)
    with torch.device("meta"):
        net = ARCH_REGISTRY.get(name)(**NETS[name].options).eval()
    made = net(*(tensor.to("meta") for tensor in inputs))
    assert made.is_meta
    assert made.shape == small_net(name).eval()(*inputs).shape


@every_net
def test_stock_basicsr_builds_it(name: str) -> None:
    block = {"type": name, **NETS[name].options}
    before = repr(block)
    assert type(build_network(block)) is ARCH_REGISTRY.get(name)
    assert repr(block) == before


COUNTS = (0, -1, 2.5, "4", True, None)
SIZES = (*COUNTS, 100_000)
SCALES = (*COUNTS, 1, 8)
RANGES = (0, -1.0, "255", True, None, float("nan"), 1e9)
MEANS = ([0.5], 0.5, [0.5, 0.5, 114.0], [0.4, 0.4, "0.4"])
BAD: dict[str, dict[str, tuple[object, ...]]] = {
    "AACLNet": {
        **dict.fromkeys(("num_in_ch", "num_out_ch", "num_feat", "num_group", "num_block", "encoder_num_feat"), SIZES),
        **{"upscale": SCALES, "img_range": RANGES, "rgb_mean": MEANS},
    },
    "DASR": {
        **dict.fromkeys(("num_feat", "num_group", "num_block", "encoder_num_feat"), SIZES),
        **{"reduction": (*COUNTS, 9), "upscale": SCALES, "img_range": RANGES},
    },
    "ReDSR": {
        **dict.fromkeys(("num_feat", "num_group", "num_block"), SIZES),
        **{"reduction": (*COUNTS, 9), "upscale": SCALES},
    },
    "MSRN": {
        **dict.fromkeys(("num_in_ch", "num_out_ch", "num_feat", "num_block"), SIZES),
        **{"upscale": SCALES, "img_range": RANGES, "rgb_mean": MEANS},
    },
    "ReDSRDegrader": {
        **dict.fromkeys(("num_feat", "representation_dim"), SIZES),
        **{"reduction": (*COUNTS, 9), "scale": SCALES},
    },
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in BAD.items() for key in keys])
def test_bad_arguments_are_named_in_one_line(name: str, key: str) -> None:
    for value in BAD[name][key]:
        shown = value[-1] if isinstance(value, list) and len(value) == 3 else value  # the mean that is out of range
        with pytest.raises(OptionError) as error:
            small_net(name, **{key: value})
        (line,) = error.value.lines
        assert line.startswith(f"{key}: {shown!r}, expected ")
        with pytest.raises(OptionError) as error:
            build_from_block({"type": name, **NETS[name].options, key: value}, {name: ARCH_REGISTRY.get(name)}, "net")
        assert error.value.lines == (f"net.{line}",)


@pytest.mark.parametrize("name", ["AACLNet", "MSRN"])
def test_means_have_to_fit_the_channels(name: str) -> None:
    for channels in ({"num_in_ch": 1, "num_out_ch": 1}, {"num_out_ch": 1}):
        with pytest.raises(OptionError, match=r"^rgb_mean: .* expected a number for each of . channels in and 1 out, "):
            small_net(name, **channels)
    gray = small_net(name, num_in_ch=1, num_out_ch=1, rgb_mean=[0.4]).eval()
    assert gray(photograph(2, 6, 6)[:, :1]).shape == (2, 1, 24, 24)
    assert small_net(name, num_out_ch=1, rgb_mean=None).eval()(photograph(2, 6, 6)).shape == (2, 1, 24, 24)
