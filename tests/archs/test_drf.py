"""DRF, DRFB and DRFG against versions written from their description."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.archs.drf import DRF, DRFB, DRFG
from bsr_plugins.errors import BSRError

DIM, FEAT = 6, 4


def seeded(factory: type[nn.Module], *sizes: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return factory(*sizes).double()


@pytest.fixture
def features() -> Tensor:
    return torch.randn(2, FEAT, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def representation() -> Tensor:
    return torch.randn(2, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def leaky(x: Tensor) -> Tensor:
    return torch.where(x < 0, 0.1 * x, x)


def plain_drf(weight: Tensor, x: Tensor, representation: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for image in range(x.shape[0]):
        for channel in range(x.shape[1]):
            s = sum(float(weight[channel, d] * representation[image, d]) for d in range(weight.shape[1]))
            s = 0.1 * s if s < 0 else s
            out[image, channel] = x[image, channel] + x[image, channel] * s
    return out


def plain_drfb(state: dict[str, Tensor], x: Tensor, representation: Tensor) -> Tensor:
    out = x
    for half in ("1", "2"):
        out = leaky(plain_drf(state[f"fuse{half}.linear.weight"], out, representation))
        out = F.conv2d(out, state[f"conv{half}.weight"], state[f"conv{half}.bias"], padding=1)
        out = leaky(out) if half == "1" else out
    return x + out


def test_drf_is_x_plus_x_times_a_scale_for_each_channel(features: Tensor, representation: Tensor) -> None:
    drf = seeded(DRF, DIM, FEAT)
    weight = drf.get_parameter("linear.weight").detach()
    scale = leaky(representation @ weight.T)
    assert (scale < 0).any(), "the activation has to be seen"
    assert (scale > 0).any(), "the activation has to be seen"
    expected = plain_drf(weight, features, representation)
    assert torch.allclose(drf(features, representation), expected, rtol=1e-12, atol=1e-14)


def test_drf_has_no_bias_so_nothing_known_changes_nothing(features: Tensor) -> None:
    drf = seeded(DRF, DIM, FEAT)
    assert [name for name, _ in drf.named_parameters()] == ["linear.weight"]
    assert torch.equal(drf(features, torch.zeros(2, DIM, dtype=torch.float64)), features)


def test_drf_takes_one_representation_for_the_batch(features: Tensor, representation: Tensor) -> None:
    drf = seeded(DRF, DIM, FEAT)
    one = representation[:1]
    assert torch.equal(drf(features, one), drf(features, one.expand(2, -1)))


@pytest.mark.parametrize("given", [1, 2])
def test_drf_scales_tokens_as_it_scales_maps(features: Tensor, representation: Tensor, given: int) -> None:
    drf = seeded(DRF, DIM, FEAT)
    tokens = features.flatten(2).transpose(1, 2)
    found = drf(tokens, representation[:given]).transpose(1, 2).reshape(features.shape)
    assert torch.equal(found, drf(features, representation[:given]))


@pytest.mark.parametrize("shape", [(2, FEAT), (2, 5, 7, 1, FEAT)])
def test_drf_refuses_what_is_neither_maps_nor_tokens(shape: tuple[int, ...], representation: Tensor) -> None:
    with pytest.raises(BSRError, match=r"^DRF: features of shape \(2, .*, expected \(B, C, H, W\) or \(B, N, C\)$"):
        seeded(DRF, DIM, FEAT)(torch.ones(shape, dtype=torch.float64), representation)


def test_drf_keeps_small_scales_in_bfloat16() -> None:
    drf = DRF(1, 1)
    nn.init.constant_(drf.linear.weight, 1.0)
    x = torch.linspace(1, 2, 129)[None, None, None]
    scale = torch.full((1, 1), 2**-9)  # 1 + 2^-9 is 1 in bfloat16, but x + x·2^-9 rounds up for some x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(drf(x, scale), x * (1 + 2**-9), rtol=2**-12)


def test_drfb_agrees_with_its_description(features: Tensor, representation: Tensor) -> None:
    drfb = seeded(DRFB, DIM, FEAT)
    expected = plain_drfb(drfb.state_dict(), features, representation)
    assert torch.allclose(drfb(features, representation), expected, rtol=1e-12, atol=1e-14)


def test_drfg_agrees_with_its_description(features: Tensor, representation: Tensor) -> None:
    drfg = seeded(DRFG, DIM, FEAT, 3)
    state = drfg.state_dict()
    out = features
    for block in range(3):
        prefix = f"blocks.{block}."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        assert own
        out = plain_drfb(own, out, representation)
    expected = features + F.conv2d(out, state["conv.weight"], state["conv.bias"], padding=1)
    assert torch.allclose(drfg(features, representation), expected, rtol=1e-12, atol=1e-14)


def test_a_group_has_six_blocks_by_default() -> None:
    assert len(DRFG(DIM, FEAT).blocks) == 6


def test_gradients_are_the_derivatives(features: Tensor, representation: Tensor) -> None:
    drfb = seeded(DRFB, DIM, FEAT)
    inputs = (features[:, :, :2, :2].clone().requires_grad_(), representation.requires_grad_())
    assert torch.autograd.gradcheck(drfb, inputs)
