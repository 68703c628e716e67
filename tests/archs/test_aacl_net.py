"""AACLNet: size, shapes, EDSR's ends, backbones from outside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from runpy import run_path
from typing import Any

import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bsr_plugins.archs import BACKBONES, AACLNet, ContrastiveEncoder
from bsr_plugins.blocks import build_from_block
from bsr_plugins.errors import OptionError
from tests.helpers.examples import example_file

SMALL: dict[str, Any] = {"num_feat": 8, "num_group": 2, "num_block": 2, "encoder_num_feat": 4}


def small_net(**options: Any) -> AACLNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AACLNet(**{**SMALL, **options})


def noise_image(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("upscale", "golden"), [(2, 5_358_467), (3, 5_543_107), (4, 5_506_179)])
def test_parameter_count(upscale: int, golden: int) -> None:
    conv = 9 * 64 * 64 + 64
    drfb = 2 * 256 * 64 + 2 * conv  # two bias-free linear layers, two convolutions
    drfg = 6 * drfb + conv
    head, last = 9 * 3 * 64 + 64, 9 * 64 * 3 + 3
    upsample = {2: 4 * conv, 3: 9 * conv, 4: 2 * 4 * conv}[upscale]  # s² times as many channels; ×4 is ×2 twice
    encoder = 1_147_200
    assert encoder + head + 6 * drfg + upsample + last == golden
    net = AACLNet(upscale=upscale)
    assert sum(parameter.numel() for parameter in net.parameters()) == golden
    assert sum(parameter.numel() for parameter in net.encoder.parameters()) == encoder


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 37, 53), (3, 8, 5), (1, 1, 1)])
def test_any_size(upscale: int, batch: int, height: int, width: int) -> None:
    net = small_net(upscale=upscale).eval()
    sr, representation = net(noise_image(batch, 3, height, width), return_representation=True)
    assert sr.shape == (batch, 3, upscale * height, upscale * width)
    assert representation.shape == (batch, 16)
    assert sr.isfinite().all()


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_with_a_silent_body_it_is_edsrs_head_and_tail(upscale: int) -> None:
    net = small_net(upscale=upscale).eval()
    edsr = EDSR(num_in_ch=3, num_out_ch=3, num_feat=8, num_block=0, upscale=upscale).eval()
    for group in net.backbone.groups:
        nn.init.zeros_(group.conv.weight)  # type: ignore[union-attr,arg-type]
        nn.init.zeros_(group.conv.bias)  # type: ignore[union-attr,arg-type]
    nn.init.dirac_(edsr.conv_after_body.weight)
    nn.init.zeros_(edsr.conv_after_body.bias)
    for part in ("conv_first", "upsample", "conv_last"):
        getattr(edsr, part).load_state_dict(getattr(net.backbone, part).state_dict())
    lq = noise_image(2, 3, 9, 7)
    assert torch.allclose(net(lq), edsr(lq), atol=1e-6)


def test_the_residual_of_the_body_goes_around_the_groups() -> None:
    net = small_net().eval()
    image, representation = noise_image(1, 3, 6, 6), noise_image(1, 16)
    shallow = net.backbone.head(image)
    deep = net.backbone.groups[1](net.backbone.groups[0](shallow, representation), representation)
    assert torch.equal(net.backbone(image, representation), net.backbone.tail(deep + shallow))


def test_names_in_checkpoints_stay() -> None:
    names = {re.sub(r"\.\d+\.", ".N.", name) for name in small_net().state_dict() if name.startswith("backbone.")}
    block = "backbone.groups.N.blocks.N"
    layers = [f"{block}.conv1", f"{block}.conv2", "backbone.groups.N.conv"]
    layers += ["backbone.conv_first", "backbone.upsample.N", "backbone.conv_last"]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert names == expected | {f"{block}.fuse1.linear.weight", f"{block}.fuse2.linear.weight"}


def test_stock_basicsr_builds_it() -> None:
    block = {"type": "AACLNet", "backbone": "edsr", "rgb_mean": [0.5, 0.5, 0.5], **SMALL}
    net = build_network(block)
    assert isinstance(net, AACLNet)
    assert isinstance(net.encoder, ContrastiveEncoder)
    assert net.mean.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.fixture
def backbone_from_outside() -> Iterator[None]:
    run_path(str(example_file("my_backbone")))
    yield
    del BACKBONES["mine"]


@pytest.mark.usefixtures("backbone_from_outside")
def test_a_further_backbone_is_one_file_with_arguments_of_its_own() -> None:
    block = {"type": "mine", "width": 3}
    net = small_net(backbone=block, upscale=3)
    lq = noise_image(2, 3, 5, 7)
    sr = net(lq)
    assert sr.shape == (2, 3, 15, 21)
    assert [layer.weight.shape for layer in net.backbone.modules() if isinstance(layer, nn.Linear)][1] == (24, 8)
    assert len(net.backbone.groups) == 4
    assert not torch.allclose(net(lq, representation=torch.ones(1, 16)), sr, atol=1e-5)
    sr.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert block == {"type": "mine", "width": 3}


def test_an_arch_from_outside_is_one_file() -> None:
    run_path(str(example_file("my_arch")))
    try:
        net = build_from_block({"type": "TinyBlindSR", "upscale": 3}, dict(iter(ARCH_REGISTRY)), "network_g").eval()
        sr, representation = net(noise_image(2, 3, 6, 7), return_representation=True)
        assert sr.shape == (2, 3, 18, 21)
        assert representation.shape == (2, 64)
        with pytest.raises(OptionError, match=r"^network_g\.num_block: 0, expected a whole number in \[1, 100\]$"):
            build_from_block({"type": "TinyBlindSR", "num_block": 0}, dict(iter(ARCH_REGISTRY)), "network_g")
    finally:
        ARCH_REGISTRY._obj_map.pop("TinyBlindSR")


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("edrs", r"backbone: unknown name 'edrs', expected one of edsr, mine; did you mean 'edsr'"),
        ({"type": "edrs"}, r"backbone\.type: unknown name 'edrs', expected one of edsr, mine; did you mean 'edsr'"),
        ({"type": "edsr", "width": 8}, r"backbone\.width: unknown key"),
        ({"type": "mine", "widht": 8}, r"backbone\.widht: unknown key, .*did you mean 'width'"),
        ({"type": "mine", "width": 8, "shape": 1}, r"backbone\.shape: unknown key"),
        ({"type": "mine", "width": 0}, r"backbone\.width: 0, expected a whole number in \[1, 16\]"),
        ("mine", r"backbone\.width: the key is missing"),
        ({"width": 8}, r"backbone: the key 'type' is missing, expected one of edsr, mine"),
        (["edsr"], r"backbone: expected a block with the key 'type', got \['edsr'\]"),
        (None, r"backbone: expected a block"),
    ],
)
@pytest.mark.usefixtures("backbone_from_outside")
def test_bad_backbones_are_named_with_their_place(backbone: object, message: str) -> None:
    block = {"type": "AACLNet", **SMALL, "backbone": backbone}
    with pytest.raises(OptionError, match=rf"^network_g\.{message}") as error:
        build_from_block(block, {"AACLNet": AACLNet}, "network_g")
    assert len(error.value.lines) == 1


def test_a_name_stands_for_a_block() -> None:
    by_name, by_block = small_net(backbone="edsr"), small_net(backbone={"type": "edsr"})
    lq = noise_image(1, 3, 6, 6)
    assert torch.equal(by_name.eval()(lq), by_block.eval()(lq))
