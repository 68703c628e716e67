"""MSRN: size, wiring, shapes, precision, export, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.archs import build_network
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.archs import MSRN
from bsr_plugins.errors import OptionError
from tests.archs.representation_checks import agrees_on, photograph

SMALL: dict[str, Any] = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 6, "num_block": 3}
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


def small_net(**options: Any) -> MSRN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MSRN(**{**SMALL, **options})


def conv(channels_in: int, channels_out: int, size: int) -> int:
    return channels_in * channels_out * size**2 + channels_out


@pytest.mark.parametrize(("upscale", "golden"), [(2, 5_930_307), (3, 6_114_947), (4, 6_078_019)])
def test_parameter_count(upscale: int, golden: int) -> None:
    """Counted by hand from the layers of MIVRC/MSRN-PyTorch, MSRN/Train/model/msrn.py, without its shifts (24)."""
    block = conv(64, 64, 3) + conv(128, 128, 3) + conv(64, 64, 5) + conv(128, 128, 5) + conv(256, 64, 1)
    upsample = {2: conv(64, 256, 3), 3: conv(64, 576, 3), 4: 2 * conv(64, 256, 3)}[upscale]
    fusion = conv(9 * 64, 64, 1) + conv(64, 64, 3)
    assert conv(3, 64, 3) + 8 * block + fusion + upsample + conv(64, 3, 3) == golden

    net = MSRN(3, 3, upscale=upscale)
    assert sum(parameter.numel() for parameter in net.parameters()) == golden
    assert all(parameter.requires_grad for parameter in net.parameters())


def plain_msrn(weights: dict[str, Tensor], lq: Tensor, num_block: int, img_range: float) -> Tensor:
    """Compute a ×4 network, written out in a row."""

    def apply(name: str, x: Tensor) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    mean = lq.new_tensor(DIV2K_MEAN).view(1, 3, 1, 1)
    x = head = apply("conv_first", img_range * (lq - mean))
    collected = []
    for number in range(num_block):
        block = f"body.{number}"
        three, five = apply(f"{block}.conv3_1", x).relu(), apply(f"{block}.conv5_1", x).relu()
        crossed = torch.cat([three, five], 1)
        three, five = apply(f"{block}.conv3_2", crossed).relu(), apply(f"{block}.conv5_2", crossed).relu()
        x = x + apply(f"{block}.fusion", torch.cat([three, five], 1))
        collected.append(x)
    x = apply("conv_after_body", apply("bottleneck", torch.cat([*collected, head], 1)))
    for step in (0, 2):
        x = F.pixel_shuffle(apply(f"upsample.{step}", x), 2)
    return apply("conv_last", x) / img_range + mean


@pytest.mark.parametrize("img_range", [255.0, 1.0])
def test_agrees_with_the_plain_network(img_range: float) -> None:
    net = small_net(img_range=img_range).double()
    with torch.no_grad():
        for parameter in net.parameters():  # so that every layer counts
            parameter.mul_(2)
    lq = photograph(2, 11, 9).double()
    expected = plain_msrn(net.state_dict(), lq, SMALL["num_block"], img_range)
    assert torch.allclose(net(lq), expected, atol=1e-6)  # the network keeps the mean in float32
    assert float(expected.std()) > 1e-3


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 37, 53), (3, 8, 5), (1, 1, 1)])
def test_any_size(upscale: int, batch: int, height: int, width: int) -> None:
    sr = small_net(upscale=upscale)(photograph(batch, height, width))
    assert sr.shape == (batch, 3, upscale * height, upscale * width)
    assert sr.isfinite().all()


def test_other_channels() -> None:
    luma = photograph(2, 7, 8)[:, :1]
    assert small_net(num_in_ch=1, num_out_ch=1, rgb_mean=[0.5])(luma).shape == (2, 1, 28, 32)
    assert small_net(num_in_ch=1, num_out_ch=3, rgb_mean=None)(luma).shape == (2, 3, 28, 32)
    assert small_net(num_in_ch=4, num_out_ch=2, rgb_mean=None)(torch.rand(1, 4, 7, 8)).shape == (1, 2, 28, 32)


def test_samples_of_a_batch_do_not_meet() -> None:
    net, lq = small_net(), photograph(3, 13, 11)
    alone = torch.cat([net(image[None]) for image in lq])
    assert torch.allclose(net(lq), alone, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_the_tail_is_the_last_convolution_that_runs() -> None:
    net, ran = small_net(), []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    net(photograph(1, 8, 8))
    assert ran[-1] == "conv_last"


def test_gradients_reach_everything() -> None:
    net = small_net()
    net(photograph(2, 12, 12)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_strict_round_trip_through_a_file(tmp_path: Path) -> None:
    net, other, lq = small_net(), MSRN(**SMALL), photograph(2, 10, 10)
    assert not any("mean" in name for name in net.state_dict())
    torch.save(net.state_dict(), tmp_path / "net.pth")
    other.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True), strict=True)
    assert torch.equal(other(lq), net(lq))


def test_stock_basicsr_builds_it() -> None:
    net = build_network({"type": "MSRN", "upscale": 3, **SMALL})
    assert isinstance(net, MSRN)
    assert net.img_range == 255


def test_precisions() -> None:
    net, lq = small_net(), photograph(1, 12, 9)
    single = net(lq)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(net(lq).float(), single, atol=0.03)
    double = net.double()(lq.double())
    assert double.dtype == torch.float64
    assert torch.allclose(double, single.double(), atol=1e-5)


def test_export_for_any_size() -> None:
    net, images = small_net().eval(), [photograph(1, *size) for size in ((37, 53), (20, 31))]
    height, width = (torch.export.Dim(name, min=2, max=512) for name in ("height", "width"))
    program = torch.export.export(net, (images[0],), dynamic_shapes={"lq": {2: height, 3: width}}, strict=False)
    for lq in images:
        assert torch.allclose(program.module()(lq), net(lq), atol=1e-6)


def test_compiles_without_a_graph_break() -> None:
    net, lq = small_net(), photograph(1, 15, 11)
    assert torch.allclose(torch.compile(net, backend="eager", fullgraph=True)(lq), net(lq), atol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    agrees_on(torch.device("cuda"), small_net(), photograph(2, 13, 11))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("upscale", 1),
        ("upscale", 8),
        ("upscale", "4"),
        ("num_in_ch", 0),
        ("num_out_ch", "3"),
        ("num_feat", 0),
        ("num_block", -1),
        ("img_range", 0),
        ("img_range", "255"),
        ("rgb_mean", [0.5]),
        ("rgb_mean", 0.5),
        ("rgb_mean", [0.4, 0.4, 114]),
        ("rgb_mean", [0.4, 0.4, "0.4"]),
    ],
)
def test_bad_options_are_named_in_one_line(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=rf"^{option}: ") as error:
        small_net(**{option: value})
    assert "\n" not in str(error.value)
    assert "expected" in str(error.value)


def test_means_have_to_fit_the_channels() -> None:
    for channels in ({"num_in_ch": 1, "num_out_ch": 1}, {"num_out_ch": 1}):
        with pytest.raises(OptionError, match=r"^rgb_mean: .* 1 out, or null$"):
            small_net(**channels)
