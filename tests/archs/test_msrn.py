"""MSRN: size, wiring, shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.archs import MSRN
from tests.archs.images import photograph

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
    assert net.img_range == 255


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


def test_the_tail_is_the_last_convolution_that_runs() -> None:
    net, ran = small_net(), []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    net(photograph(1, 8, 8))
    assert ran[-1] == "conv_last"
