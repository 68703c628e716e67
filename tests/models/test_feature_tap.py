"""The feature tap, in archs of BasicSR, of this package and of strangers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.ridnet_arch import MeanShift
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.parametrizations import weight_norm

from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.models.feature_tap import FeatureTap, bare_network, find_tap
from tests.models.strangers import Listed, OutOfOrder, Overwriting, Recurrent, Untidy

SIDE = 24
ENCODER = {"type": "ReDSREncoder", "num_feat": 2, "representation_dim": 5}


STRANGERS: dict[str, tuple[Callable[[], nn.Module], FeatureTap]] = {
    "out of order": (OutOfOrder, FeatureTap("tail", 1, 4)),
    "listed": (Listed, FeatureTap("convs.0", 1, 3)),
    "recurrent": (Recurrent, FeatureTap("shared", 3, 3)),
}
ARCHS: dict[str, tuple[dict[str, Any], str, int]] = {
    "MSRResNet": ({"num_feat": 4, "num_block": 1, "upscale": 4}, "conv_last", 4),
    "RRDBNet": ({"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "num_grow_ch": 2}, "conv_last", 4),
    "EDSR": ({"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}, "conv_last", 4),
    "RCAN": (
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_group": 1, "num_block": 1, "squeeze_factor": 2},
        "conv_last",
        4,
    ),
    "SRVGGNetCompact": ({"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_conv": 2, "upscale": 2}, "body.6", 4),
    "SwinIR": (
        {
            "upscale": 2,
            "img_size": 16,
            "window_size": 4,
            "depths": [2],
            "embed_dim": 8,
            "num_heads": [2],
            "mlp_ratio": 2,
            "upsampler": "pixelshuffle",
        },
        "conv_last",
        64,
    ),
    "AACLNet": ({"num_feat": 4, "num_group": 1, "num_block": 1, "encoder_num_feat": 2}, "backbone.conv_last", 4),
    "DASR": (
        {"num_feat": 4, "num_group": 1, "num_block": 1, "reduction": 2, "encoder_num_feat": 2},
        "generator.conv_last",
        4,
    ),
    "ReDSR": (
        {"num_feat": 4, "num_group": 1, "num_block": 1, "reduction": 2, "encoder": ENCODER},
        "generator.conv_last",
        4,
    ),
    "MSRN": ({"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}, "conv_last", 4),
    # It has these convolutions in training alone.
    "ECBSR": (
        {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_block": 1,
            "num_channel": 4,
            "with_idt": False,
            "act_type": "prelu",
            "scale": 2,
        },
        "backbone.2.conv3x3",
        4,
    ),
    "RIDNet": ({"in_channels": 3, "mid_channels": 16, "out_channels": 3, "num_block": 1}, "tail", 16),
}


def image(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def seen_by_a_hook(network: nn.Module, layer: str, x: Tensor) -> list[Tensor]:
    """What enters a layer that is called, found in another way."""
    seen: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append(args[0] if args else kwargs["input"]), with_kwargs=True
    )
    network(x)
    handle.remove()
    return seen


def attributes(network: nn.Module) -> list[Any]:
    """All that hangs on the modules of a network, hooks included."""
    return [
        {name: dict(value) if isinstance(value, dict) else value for name, value in vars(module).items()}
        for module in network.modules()
    ]


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers(name: str) -> None:
    make, expected = STRANGERS[name]
    network = make()
    before = attributes(network)
    tap = find_tap(network, image())
    assert tap == expected
    with tap(network) as tapped:
        network(image())
    assert tapped.calls == tap.calls
    assert attributes(network) == before
    with tap(network, torch.zeros_like):
        replaced = network(image())
    assert not torch.equal(replaced, network(image()))


@pytest.mark.parametrize("name", ARCHS)
def test_archs(name: str) -> None:
    block, layer, channels = ARCHS[name]
    network = build_network({"type": name, **block})
    tap = find_tap(network, image())
    assert tap == FeatureTap(layer, 1, channels)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    order: list[nn.Conv2d] = []
    handles = [conv.register_forward_hook(lambda module, *_: order.append(module)) for conv in convolutions]
    torch.manual_seed(0)  # of stochastic depth
    with tap(network) as tapped:
        output = network(image())
    for handle in handles:
        handle.remove()
    learning = [conv for conv in order if conv.weight.requires_grad and not isinstance(conv, MeanShift)]
    assert learning[-1] is network.get_submodule(tap.layer)
    torch.manual_seed(0)
    assert torch.equal(tapped.features, seen_by_a_hook(network, tap.layer, image())[-1])
    tapped.features.square().sum().backward()
    assert learning[-1].weight.grad is None, "the features are those before"
    assert any(conv.weight.grad is not None and bool(conv.weight.grad.any()) for conv in convolutions)
    assert output.shape[-1] in (SIDE, 2 * SIDE, 4 * SIDE)


def test_features_that_are_overwritten_are_refused() -> None:
    with pytest.raises(OptionError, match=r"^train.tap_layer: what enters 'conv' is overwritten afterwards, in place"):
        find_tap(Overwriting(), image())
    stock = build_network({"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 4})
    with pytest.raises(OptionError, match="what enters 'lrelu' is overwritten"):
        find_tap(stock, image(), "lrelu")


def test_the_last_call_of_a_layer_counts() -> None:
    network = Recurrent()
    tap = find_tap(network, image())
    seen = seen_by_a_hook(network, "shared", image())
    with tap(network) as tapped:
        network(image())
    assert len(seen) == 3
    assert torch.equal(tapped.features, seen[-1])
    with tap(network, lambda features: 0 * features) as tapped:
        output = network(image())
    assert torch.equal(tapped.features, seen[-1]), "what would have entered"
    assert torch.equal(output, torch.tanh(network.shared(0 * seen[-1]) + 1)), "the calls before are as they were"


def test_a_named_layer_of_any_kind() -> None:
    network = build_network({"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 4})
    assert find_tap(network, image(), "conv_hr") == FeatureTap("conv_hr", 1, 4)
    assert find_tap(network, image(), "pixel_shuffle") == FeatureTap("pixel_shuffle", 2, 16)
    assert find_tap(Recurrent(), image(), "alias") == FeatureTap("alias", 3, 3)
    weighted = nn.Sequential(nn.Conv2d(3, 4, 3), weight_norm(nn.Conv2d(4, 3, 3)))
    tap = find_tap(weighted, image())
    assert tap == FeatureTap("1", 1, 4)
    with tap(weighted) as tapped:
        weighted(image())
    assert torch.equal(tapped.features, weighted[0](image()))


def test_the_trial_leaves_no_trace() -> None:
    network = Untidy()
    network(image())  # makes its attribute, with a gradient
    network.count = network.count.detach()
    before, state, random = attributes(network), copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert find_tap(network, image()).layer == "conv"
    assert [module.training for module in network.modules()] == [True, True, False]
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.count is before[0]["_buffers"]["count"]


def test_a_pass_that_fails_leaves_the_network_as_it_was() -> None:
    network = OutOfOrder()
    tap, before = find_tap(network, image()), attributes(network)
    with pytest.raises(RuntimeError), tap(network):
        network(torch.rand(1, 5, SIDE, SIDE))
    assert attributes(network) == before
    with pytest.raises(OptionError, match=r"^network_g: OutOfOrder does not run on \(2, 5, 8, 8\), expected .* \(Runt"):
        find_tap(network, torch.rand(2, 5, 8, 8))
    assert attributes(network) == before


def test_a_forward_of_the_users_own_is_kept() -> None:
    network = OutOfOrder()
    own = network.tail.forward
    network.tail.forward = lambda input: own(input) + 1  # type: ignore[method-assign]
    patched, expected = network.tail.forward, network(image())
    with find_tap(network, image())(network):
        assert torch.equal(network(image()), expected)
    assert network.tail.forward is patched


def test_autocast() -> None:
    network = OutOfOrder()
    tap = find_tap(network, image())
    with torch.autocast("cpu", torch.bfloat16), tap(network, lambda features: 0.5 * features) as tapped:
        output = network(image())
    assert tapped.features.dtype == output.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["out of order", "recurrent"])
def test_compiled_networks(name: str) -> None:
    torch._dynamo.reset()
    make, expected = STRANGERS[name]
    network = make()
    parameters = list(network.parameters())
    counter: Any = CompileCounterWithBackend("aot_eager")
    compiled: Any = torch.compile(network, backend=counter)
    tap = find_tap(compiled, image())
    assert tap == expected
    assert bare_network(compiled) is network
    for seed in range(3):
        x, mask = image(seed=seed), (torch.rand(2, tap.channels, 1, 1) > 0.5) / 0.5
        plain = network(x)
        torch.testing.assert_close(compiled(x), plain)  # compiled without a tap, and used again after it
        with tap(network) as eager:
            network(x)
        with tap(compiled) as tapped:
            torch.testing.assert_close(compiled(x), plain)
        assert tapped.calls == tap.calls
        torch.testing.assert_close(tapped.features, eager.features)
        gradients = [
            torch.autograd.grad(h.features.square().sum(), parameters, allow_unused=True, materialize_grads=True)
            for h in (tapped, eager)
        ]
        torch.testing.assert_close(gradients[0], gradients[1])
        assert any(bool(gradient.any()) for gradient in gradients[0])
        with tap(network, lambda features, mask=mask: features * mask):  # type: ignore[misc]
            dropped = network(x)
        with tap(compiled, lambda features, mask=mask: features * mask):  # type: ignore[misc]
            torch.testing.assert_close(compiled(x), dropped)
    assert counter.frame_count == 3, "one graph each: plain, tapped, replaced"


def test_layers_that_cannot_be_had() -> None:
    network = build_network({"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 4})
    with pytest.raises(OptionError) as caught:
        find_tap(network, image(), "conv_hrr")
    assert str(caught.value).startswith(
        "train.tap_layer: there is no layer 'conv_hrr' in MSRResNet, expected a module's"
    )
    assert "the nearest are 'conv_hr', " in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="there is no layer '' in MSRResNet"):
        find_tap(network, image(), "")
    with pytest.raises(OptionError, match=r"train.tap_layer: 'unused' does not run in OutOfOrder's forward pass"):
        find_tap(OutOfOrder(), image(), "unused")
    with pytest.raises(OptionError, match=r"train.tap_layer: 'convs' does not run in Listed's forward pass"):
        find_tap(Listed(), image(), "convs")


def test_networks_without_a_layer() -> None:
    upsample = nn.Sequential(nn.Upsample(scale_factor=2))
    with pytest.raises(OptionError, match="network_g: no Conv2d runs in Sequential's forward pass, expected one"):
        find_tap(upsample, image())
    with pytest.raises(OptionError, match=r"there is no layer 'x' in Upsample, .* none, as it has no modules"):
        find_tap(nn.Upsample(scale_factor=2), image(), "x")
    flat = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * (SIDE - 2) ** 2, 5))
    assert find_tap(flat, image()).layer == "0"
    with pytest.raises(
        OptionError, match=r"train.tap_layer: '2' gets \(2, 968\) for 2 images, expected \(B, C, H, W\)"
    ):
        find_tap(flat, image(), "2")


class Fickle(nn.Module):
    """Runs its convolution as often as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)
        self.times, self.quietly = 1, False

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.quietly):
            for _ in range(self.times):
                x = self.conv(x)
        return x


def test_layers_that_do_not_run_as_they_did() -> None:
    network = Fickle()
    tap = find_tap(network, image())
    network.times = 0
    with pytest.raises(BSRError, match="layer 'conv': ran 0 times in a forward pass, expected 1 times"), tap(network):
        network(image())
    network.times = 2
    with tap(network) as tapped:
        network(image())
    assert torch.equal(tapped.features, network.conv(image()))
    with pytest.raises(BSRError, match="layer 'conv': ran 2 times"), tap(network, lambda features: features):
        network(image())
    network.times, network.quietly = 1, True
    with pytest.raises(BSRError, match="layer 'conv': runs without gradient, expected one outside"), tap(network):
        network(image())
    with torch.no_grad(), tap(network) as tapped:
        network(image())
    assert torch.equal(tapped.features, image())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_compiled_under_autocast() -> None:
    torch._dynamo.reset()
    network = OutOfOrder().to("cuda")
    tap, x = find_tap(network, image().to("cuda")), image().to("cuda")
    random = torch.cuda.get_rng_state()
    compiled: Any = torch.compile(network)
    with torch.autocast("cuda", torch.float16):
        compiled(x)
        with tap(compiled, lambda features: 2 * features) as tapped:
            output = compiled(x)
        with tap(network, lambda features: 2 * features) as eager:
            expected = network(x)
    torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(tapped.features, eager.features, rtol=1e-2, atol=1e-2)
    assert torch.equal(torch.cuda.get_rng_state(), random)
