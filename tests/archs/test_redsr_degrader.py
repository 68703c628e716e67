"""ReDSRDegrader: size, shapes, where its windows lie, how it is steered, where its attention starts, export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bsr_plugins.archs import ReDSRDegrader
from bsr_plugins.errors import BSRError
from tests.archs.images import photograph

SMALL: dict[str, Any] = {"num_feat": 8, "representation_dim": 6}


def small_net(**options: Any) -> ReDSRDegrader:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ReDSRDegrader(**{**SMALL, **options})


def representations(batch: int) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_parameter_count(scale: int) -> None:
    def conv(before: int, after: int) -> int:
        return 9 * before * after + after

    dynamic = 64 * 64 + 1 + 64 * 9 * 64
    attention = 64 * 16 + 1 + 16 * 64
    block = 2 * (dynamic + 1 + conv(64, 64) + attention) + 2 * conv(64, 64) + 3
    steering = (64 * 64 + 64) + 1 + (64 * 3 * 64 + 3 * 64) + 1
    head, downscale = conv(3, 64) + 1, conv(64, 256) + 1
    tail = conv(256, 128) + 1 + conv(128, 64) + 1 + conv(64, 3)
    assert steering + head + 3 * block + downscale + tail == 1_237_924
    assert sum(parameter.numel() for parameter in ReDSRDegrader(scale=scale).parameters()) == 1_237_924


@pytest.mark.parametrize(("scale", "batch", "height", "width"), [(2, 1, 74, 106), (3, 2, 39, 57), (4, 3, 20, 36)])
def test_any_multiple_of_the_scale(scale: int, batch: int, height: int, width: int) -> None:
    lq = small_net(scale=scale)(photograph(batch, height, width), representations(batch))
    assert lq.shape == (batch, 3, height // scale, width // scale)
    assert lq.isfinite().all()
    assert lq.std() > 0


@pytest.mark.parametrize(("height", "width"), [(21, 20), (20, 22), (2, 4)])
def test_other_sizes_are_refused(height: int, width: int) -> None:
    message = f"^ReDSRDegrader: HR images of {height}x{width} pixels, expected multiples of 4$"
    with pytest.raises(BSRError, match=message):
        small_net(scale=4)(photograph(1, height, width), representations(1))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_windows_begin_at_multiples_of_the_scale(scale: int) -> None:
    seen: dict[str, Tensor] = {}
    net = small_net(scale=scale).double()
    net.blocks[-1].register_forward_hook(lambda _module, _args, result: seen.update(features=result[0]))
    net.downscale[0].register_forward_hook(lambda _module, _args, result: seen.update(small=result[0]))
    height, width = 3 * scale, 4 * scale
    net(photograph(1, height, width).double(), representations(1).double())
    weight, bias = (net.get_parameter(f"downscale.0.{name}") for name in ("weight", "bias"))
    for row in range(3):
        for column in range(4):
            # The pixel after the last is a reflection: the one before the last.
            rows = [y if y < height else height - 2 for y in range(scale * row, scale * row + 3)]
            columns = [x if x < width else width - 2 for x in range(scale * column, scale * column + 3)]
            window = seen["features"][:, rows][:, :, columns]
            expected = (weight * window).sum((1, 2, 3)) + bias
            torch.testing.assert_close(seen["small"][:, row, column], expected, rtol=0, atol=1e-12)
    assert seen["small"].shape[1:] == (3, 4)


def test_each_block_is_steered_by_its_third() -> None:
    net, seen = small_net(), []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda _module, args: seen.append(args[1]))
    given = representations(2)
    net(photograph(2, 8, 12), given)
    assert len(seen) == 3
    assert torch.equal(torch.cat(seen, dim=1), net.expand(given))


def test_samples_of_a_batch_do_not_meet_and_representations_matter() -> None:
    net, gt, given = small_net(), photograph(3, 16, 20), representations(3)
    alone = torch.cat([net(image[None], one[None]) for image, one in zip(gt, given, strict=True)])
    together = net(gt, given)
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(net(gt, given.flip(0)), together, rtol=0, atol=1e-5)


def test_a_flat_image_gives_a_flat_one_as_borders_are_reflected() -> None:
    for scale in (2, 3, 4):
        lq = small_net(scale=scale).double()(torch.full((1, 3, 12, 24), 0.4).double(), representations(1).double())
        assert torch.allclose(lq, lq[..., :1, :1].expand_as(lq), atol=1e-12)


def test_gradients_reach_every_parameter_and_the_representation() -> None:
    net = small_net(reduction=1)  # so that some hidden number of each attention is below 0, for its slope
    given = representations(2).requires_grad_()
    net(photograph(2, 16, 16), given).square().sum().backward()
    assert given.grad is not None
    assert (given.grad.abs().sum(dim=1) > 0).all()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_attention_starts_near_one_half() -> None:
    net = small_net(num_feat=64)
    weights = [p.detach() for name, p in net.named_parameters() if ".attention." in name and p.dim() == 4]
    assert len(weights) == 12
    assert all(float(weight.std()) == pytest.approx(0.02, rel=0.15) for weight in weights)
    slopes = [p for name, p in net.named_parameters() if ".attention." in name and p.dim() != 4]
    assert all(torch.equal(slope, torch.full((1,), 0.25)) for slope in slopes)
    attentions = [module for name, module in net.named_modules() if name.endswith("attention")]
    steer = torch.randn(5, 64, 1, 1, generator=torch.Generator().manual_seed(0))
    for attention in attentions:
        assert torch.allclose(attention(steer), torch.full((5, 64, 1, 1), 0.5), atol=0.1)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_export(scale: int) -> None:
    net, gt, given = small_net(scale=scale), photograph(2, 5 * scale, 9 * scale), representations(2)
    program = torch.export.export(net, (gt, given), strict=False)
    assert torch.allclose(program.module()(gt, given), net(gt, given), atol=1e-6)


def test_export_for_any_size() -> None:
    net = small_net(scale=4)
    height, width = torch.export.Dim("height", min=3, max=99), torch.export.Dim("width", min=3, max=99)
    shapes: dict[str, Any] = {"gt": {2: 4 * height, 3: 4 * width}, "representation": None}
    program = torch.export.export(net, (photograph(1, 40, 24), representations(1)), dynamic_shapes=shapes, strict=False)
    for size in ((40, 24), (12, 16), (52, 36)):
        gt = photograph(1, *size)
        assert torch.allclose(program.module()(gt, representations(1)), net(gt, representations(1)), atol=1e-6)
