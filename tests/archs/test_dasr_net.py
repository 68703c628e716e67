"""DASR: size, shapes, the way of the representation, ranges, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from basicsr.archs import build_network
from torch import Tensor

from bsr_plugins.archs import DASR, ContrastiveEncoder, dynamic_conv
from tests.archs.images import photograph

SMALL: dict[str, Any] = {"num_feat": 8, "num_group": 2, "num_block": 2, "reduction": 4, "encoder_num_feat": 4}


def small_net(**options: Any) -> DASR:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DASR(**{**SMALL, **options})


@pytest.mark.parametrize(("upscale", "golden"), [(2, 5_690_011), (3, 5_874_651), (4, 5_837_723)])
def test_parameter_count(upscale: int, golden: int) -> None:
    conv = 9 * 64 * 64 + 64
    dynamic = 64 * 64 + 64 * 9 * 64  # the kernels' two bias-free layers
    attention = 64 * 8 + 8 * 64
    block = 2 * (dynamic + (64 * 64 + 64) + attention) + 2 * conv
    body = 5 * (5 * block + conv) + conv
    upsample = {2: 4 * conv, 3: 9 * conv, 4: 2 * 4 * conv}[upscale]  # s² times as many channels; ×4 is ×2 twice
    ends = (9 * 3 * 64 + 64) + upsample + (9 * 64 * 3 + 3)
    shifts = 2 * (3 * 3 + 3)
    compress, encoder = 256 * 64, 1_147_200
    assert encoder + compress + body + ends + shifts == golden

    net = DASR(upscale=upscale)
    assert sum(parameter.numel() for parameter in net.parameters()) == golden
    assert sum(parameter.numel() for parameter in net.encoder.parameters()) == encoder
    assert sum(p.numel() for p in net.parameters() if not p.requires_grad) == shifts


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 37, 53), (3, 8, 5), (1, 1, 1)])
def test_any_size(upscale: int, batch: int, height: int, width: int) -> None:
    net = small_net(upscale=upscale).eval()
    sr, representation = net(photograph(batch, height, width), return_representation=True)
    assert sr.shape == (batch, 3, upscale * height, upscale * width)
    assert representation.shape == (batch, 16)
    assert sr.isfinite().all()


def test_one_vector_steers_every_group() -> None:
    net, seen = small_net(num_group=3), []
    for group in net.generator.groups:
        group.register_forward_pre_hook(lambda _module, args: seen.append(args[1]))
    representation = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    net(photograph(2, 8, 8), representation=representation)
    assert len(seen) == 3
    assert all(torch.equal(vector, net.compress(representation)) for vector in seen)


def test_encoder_and_generator_see_the_image_in_its_range() -> None:
    seen: dict[str, Tensor] = {}
    net = small_net(img_range=200.0).eval()
    net.encoder.features[0].register_forward_pre_hook(lambda _module, args: seen.update(encoder=args[0]))
    net.generator.conv_first.register_forward_pre_hook(lambda _module, args: seen.update(generator=args[0]))
    net.generator.add_mean.register_forward_hook(lambda _module, _args, result: seen.update(result=result))
    lq = photograph(1, 6, 7)
    sr = net(lq)
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    assert torch.allclose(seen["encoder"], 200 * lq)
    assert torch.allclose(seen["generator"], 200 * (lq - mean), atol=1e-4)
    assert torch.allclose(seen["result"], 200 * sr)
    assert small_net().img_range == 255
    assert small_net().encoder.img_range == 255


def test_training_on_a_cpu_gives_the_gradients_of_plain_autograd() -> None:
    """The activations of this network work in place, on what the convolution with its own backward gave, too."""
    net, lq = small_net(), photograph(2, 12, 12)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(net(lq).square().mean(), parameters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_conv._DepthwiseConv, "apply", dynamic_conv._convolve)
        plain = torch.autograd.grad(net(lq).square().mean(), parameters)
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-7)


def test_stock_basicsr_builds_it() -> None:
    net = build_network({"type": "DASR", "img_range": 1.0, **SMALL})
    assert isinstance(net, DASR)
    assert isinstance(net.encoder, ContrastiveEncoder)
    assert net.encoder.img_range == 1
