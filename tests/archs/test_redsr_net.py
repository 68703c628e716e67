"""ReDSR, its encoder and the oracle: sizes, shapes, kernels, steering, blocks of encoders."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from bsr_plugins.archs import OracleEncoder, ReDSR, ReDSREncoder
from bsr_plugins.errors import BSRError, OptionError
from tests.archs.images import photograph

ENCODER: dict[str, Any] = {"type": "ReDSREncoder", "num_feat": 4, "representation_dim": 6}
ORACLE: dict[str, Any] = {"type": "OracleEncoder", "kernel_size": 7, "num_feat": 16, "representation_dim": 6}
SMALL: dict[str, Any] = {"num_feat": 8, "num_group": 2, "num_block": 2, "reduction": 4, "encoder": ENCODER}


def small_net(**options: Any) -> ReDSR:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ReDSR(**{**SMALL, **options})


def kernels(batch: int, size: int = 7) -> Tensor:
    drawn = torch.rand(batch, size, size, generator=torch.Generator().manual_seed(4))
    return drawn / drawn.sum((1, 2), keepdim=True)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


CONV = 9 * 64 * 64 + 64
UPSAMPLE = {2: 4 * CONV, 3: 9 * CONV, 4: 2 * 4 * CONV}  # s² times as many channels; ×4 is ×2 twice


@pytest.mark.parametrize(
    ("num_block", "upscale", "golden"), [(5, 4, 6_280_003), (10, 4, 10_433_828), (5, 2, 6_132_291), (5, 3, 6_316_931)]
)
def test_parameter_count(num_block: int, upscale: int, golden: int) -> None:
    dynamic = 64 * 64 + 1 + 64 * 9 * 64  # the kernels' two bias-free layers with a PReLU
    attention = 64 * 8 + 1 + 8 * 64
    da_conv = dynamic + 1 + (64 * 64 + 64) + attention
    block = 2 * da_conv + 2 * CONV + 3
    body = 5 * (num_block * block + CONV) + CONV
    ends = (9 * 3 * 64 + 64) + UPSAMPLE[upscale] + (9 * 64 * 3 + 3)
    shifts = 2 * (3 * 3 + 3)
    compress = 64 * 64 + 1 + (64 * 5 * 64 + 5 * 64)
    encoder, before = 0, 3
    for taps, width in zip((4, 5, 4, 5, 4, 5), (64, 64, 128, 128, 256, 64), strict=True):
        encoder += taps**2 * before * width + width + 1  # convolution and PReLU
        before = width
    assert encoder == 1_580_742
    assert encoder + compress + body + ends + shifts == golden

    net = ReDSR(num_block=num_block, upscale=upscale)
    assert count(net) == golden
    assert count(net.encoder) == encoder
    assert sum(p.numel() for p in net.parameters() if not p.requires_grad) == shifts


def test_parameter_count_of_the_oracle() -> None:
    encoder = OracleEncoder()
    linear = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 5, "five fully connected layers, as the paper says"
    assert count(encoder) == (441 * 64 + 64) + 4 * (64 * 64 + 64) + 4
    assert count(ReDSR(encoder={"type": "OracleEncoder"})) == 6_280_003 - 1_580_742 + count(encoder)


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 37, 53), (3, 24, 31), (1, 24, 24)])
def test_any_size(upscale: int, batch: int, height: int, width: int) -> None:
    net = small_net(upscale=upscale).eval()
    sr, representation = net(photograph(batch, height, width), return_representation=True)
    assert sr.shape == (batch, 3, upscale * height, upscale * width)
    assert representation.shape == (batch, 6)
    assert sr.isfinite().all()
    assert sr.std() > 0


@pytest.mark.parametrize(("height", "width"), [(23, 40), (40, 23), (3, 3)])
def test_images_that_are_too_small_are_refused(height: int, width: int) -> None:
    expected = rf"^ReDSREncoder: LR images of {height}x{width} pixels, expected sides of at least 24$"
    with pytest.raises(BSRError, match=expected):
        small_net()(photograph(1, height, width))
    assert small_net().eval()(photograph(1, height, width), representation=torch.zeros(1, 6)).shape[-1] == 4 * width


def test_every_group_gets_a_vector_of_its_own() -> None:
    net, seen = small_net(num_group=3), []
    for group in net.generator.groups:
        group.register_forward_pre_hook(lambda _module, args: seen.append(args[1]))
    representation = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    net(photograph(2, 24, 24), representation=representation)
    assert torch.equal(torch.cat(seen, dim=1), net.compress(representation))
    assert [vector.shape for vector in seen] == [(2, 8)] * 3


def test_the_shifts_are_by_div2ks_mean_and_take_each_other_back() -> None:
    generator, image = small_net().generator, photograph(1, 5, 6)
    shifted = generator.sub_mean(image)
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    assert torch.allclose(shifted, image - mean, atol=1e-6)
    assert torch.allclose(generator.add_mean(shifted), image, atol=1e-6)


def test_the_oracle_looks_at_the_kernel_alone() -> None:
    net, lq, blur = small_net(encoder=ORACLE).eval(), photograph(2, 9, 11), kernels(2)
    assert net.needs_kernel
    assert not small_net().needs_kernel
    sr, representation = net(lq, return_representation=True, kernel=blur)
    assert sr.shape == (2, 3, 36, 44), "images may be smaller than the other encoder takes"
    assert torch.equal(representation, net.encoder(blur))
    assert torch.equal(net(lq, representation=representation), sr)
    assert not torch.allclose(net(lq, kernel=blur.flip(0)), sr, rtol=0, atol=1e-6)
    assert torch.allclose(net(lq, kernel=blur[:1]), net(lq, kernel=blur[:1].expand(2, -1, -1)), atol=1e-6)
    net(lq, kernel=blur).square().sum().backward()
    for name, parameter in net.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_oracle_sees_numbers_of_about_1_whatever_the_kernels_size() -> None:
    for size in (3, 21):
        seen: list[Tensor] = []
        encoder = OracleEncoder(size)
        encoder.layers[0].register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(args[0]))
        encoder(torch.full((1, size, size), 1 / size**2))
        assert torch.allclose(seen[0], torch.ones(1, size**2))


def test_kernels_where_they_are_not_wanted_and_missing_where_they_are() -> None:
    lq = photograph(2, 24, 24)
    oracle = small_net(encoder=ORACLE)
    with pytest.raises(BSRError, match=r"^ReDSR: the oracle encoder needs the blur kernel, expected forward\(lq, kern"):
        oracle(lq)
    with pytest.raises(BSRError, match="the oracle encoder needs the blur kernel"):
        oracle.encode(lq)
    with pytest.raises(BSRError, match=r"^ReDSR: kernels were given, expected none, as the encoder sees the image"):
        small_net()(lq, kernel=kernels(2))
    with pytest.raises(BSRError, match=r"^ReDSR: kernels were given, expected none, as a representation is given too"):
        oracle(lq, kernel=kernels(2, 7), representation=torch.zeros(2, oracle.encoder.representation_dim))
    with pytest.raises(BSRError, match=r"^OracleEncoder: kernels of 5x5 taps, expected 7x7"):
        oracle(lq, kernel=kernels(2, 5))


@pytest.mark.parametrize("encoder", [ENCODER, ORACLE])
def test_strict_round_trip_through_a_file(tmp_path: Path, encoder: dict[str, Any]) -> None:
    net, lq = small_net(encoder=encoder), photograph(2, 24, 25)
    condition = {"kernel": kernels(2)} if net.needs_kernel else {}
    torch.save(net.state_dict(), tmp_path / "net.pth")
    other = ReDSR(**{**SMALL, "encoder": encoder})
    other.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True), strict=True)
    assert torch.equal(other(lq, **condition), net(lq, **condition))


def test_stock_basicsr_builds_them() -> None:
    block = {"type": "ReDSR", **copy.deepcopy(SMALL)}
    before = copy.deepcopy(block)
    net = build_network(block)
    assert isinstance(net, ReDSR)
    assert isinstance(net.encoder, ReDSREncoder)
    assert block == before
    assert isinstance(build_network(ENCODER), ReDSREncoder)
    assert isinstance(build_network(ORACLE), OracleEncoder)


def test_export_of_the_oracle() -> None:
    net, lq, blur = small_net(encoder=ORACLE).eval(), photograph(1, 37, 53), kernels(1)
    program = torch.export.export(net, (lq,), {"kernel": blur}, strict=False)
    assert torch.allclose(program.module()(lq, kernel=blur), net(lq, kernel=blur), atol=1e-6)


BAD_ENCODERS: list[tuple[dict[str, Any], str]] = [
    ({"encoder": {"type": "ReDSREncodr"}}, r"^encoder\.type: unknown name .*did you mean 'ReDSREncoder'"),
    ({"encoder": {"type": "ContrastiveEncoder"}}, r"^encoder\.type: unknown name 'ContrastiveEncoder'"),
    ({"encoder": {"num_feat": 4}}, r"^encoder: the key 'type' is missing, expected one of OracleEncoder, "),
    ({"encoder": "ReDSREncoder"}, r"^encoder: expected a block with the key 'type', got 'ReDSREncoder'"),
    ({"encoder": {**ENCODER, "kernel_size": 7}}, r"^encoder\.kernel_size: unknown key, expected one of"),
    ({"encoder": {**ENCODER, "num_feat": 0}}, r"^encoder\.num_feat: 0, expected"),
    ({"encoder": {**ENCODER, "representation_dim": "64"}}, r"^encoder\.representation_dim: '64', expected"),
    ({"encoder": {**ORACLE, "kernel_size": 8}}, r"^encoder\.kernel_size: 8, expected an odd number"),
    ({"encoder": {**ORACLE, "kernel_size": 0}}, r"^encoder\.kernel_size: 0, expected"),
    ({"encoder": {**ORACLE, "num_feat": -1}}, r"^encoder\.num_feat: -1, expected"),
    ({"encoder": {**ORACLE, "representation_dim": 0}}, r"^encoder\.representation_dim: 0, expected"),
]


@pytest.mark.parametrize(("options", "message"), BAD_ENCODERS)
def test_bad_options_are_named_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        small_net(**options)
    assert "\n" not in str(error.value)
