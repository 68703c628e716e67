"""The depthwise convolution with kernels of each sample's own, against one grouped `conv2d` and a plain sum of taps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bsr_plugins.archs.dynamic_conv import dynamic_depthwise_conv
from bsr_plugins.errors import BSRError

MODES = ["constant", "reflect"]
OWN_BACKWARD = "_DepthwiseConvBackward"


def has_own_backward(made: Tensor) -> bool:
    assert made.grad_fn is not None
    return type(made.grad_fn.next_functions[0][0]).__name__ == OWN_BACKWARD


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def operands(
    batch: int, channels: int, height: int, width: int, taps: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Features and kernels that want gradients."""
    x = drawn(batch, channels, height, width, dtype=dtype)
    return x.requires_grad_(), drawn(batch, channels, taps, taps, seed=1, dtype=dtype).requires_grad_()


def grouped_conv(x: Tensor, kernels: Tensor, mode: str) -> Tensor:
    """The way that everybody goes: one `conv2d` with batch × channels groups."""
    batch, channels, height, width = x.shape
    taps, groups = kernels.shape[-1], batch * channels
    padded = F.pad(x, (taps // 2,) * 4, mode=mode)
    result = F.conv2d(
        padded.reshape(1, groups, *padded.shape[-2:]), kernels.reshape(groups, 1, taps, taps), groups=groups
    )
    return result.reshape(batch, channels, height, width)


def plain_conv(x: Tensor, kernels: Tensor, mode: str) -> Tensor:
    """A sum over the taps, one sample and channel at a time."""
    result, radius = torch.zeros_like(x), kernels.shape[-1] // 2
    for sample in range(x.shape[0]):
        for channel in range(x.shape[1]):
            padded = F.pad(x[sample, channel][None, None], (radius,) * 4, mode=mode)[0, 0]
            for dy in range(2 * radius + 1):
                for dx in range(2 * radius + 1):
                    part = padded[dy : dy + x.shape[2], dx : dx + x.shape[3]]
                    result[sample, channel] += kernels[sample, channel, dy, dx] * part
    return result


def gradients(way: Callable[[Tensor, Tensor, str], Tensor], x: Tensor, kernels: Tensor, mode: str) -> list[Tensor]:
    """The gradients of features and kernels, each result weighted differently."""
    result = way(x, kernels, mode)
    return list(torch.autograd.grad((result * drawn(*result.shape, seed=2, dtype=x.dtype)).sum(), (x, kernels)))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(3, 11), st.integers(3, 11), st.sampled_from([1, 3, 5]))
def test_values_and_gradients_in_float64(
    mode: str, batch: int, channels: int, height: int, width: int, taps: int
) -> None:
    x, kernels = operands(batch, channels, height, width, taps)
    made = dynamic_depthwise_conv(x, kernels, mode)
    assert has_own_backward(made), "else the gradients below would prove nothing"
    torch.testing.assert_close(made, plain_conv(x, kernels, mode), rtol=0, atol=1e-12)
    for ours, plain in zip(
        gradients(dynamic_depthwise_conv, x, kernels, mode), gradients(plain_conv, x, kernels, mode), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(37, 53), (16, 16)])
def test_it_is_the_grouped_convolution_in_float32(mode: str, taps: int, height: int, width: int) -> None:
    x, kernels = operands(3, 8, height, width, taps, torch.float32)
    assert torch.equal(dynamic_depthwise_conv(x, kernels, mode), grouped_conv(x, kernels, mode))
    ours, theirs = (gradients(way, x, kernels, mode) for way in (dynamic_depthwise_conv, grouped_conv))
    exact = gradients(
        grouped_conv, x.detach().double().requires_grad_(), kernels.detach().double().requires_grad_(), mode
    )
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        scale = float(truth.abs().max())
        assert float((mine - truth).abs().max()) < 4e-6 * scale, "float32 on sums of 2000 products"
        torch.testing.assert_close(mine, other, rtol=0, atol=6e-6 * scale)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_first_and_second_derivatives(mode: str, taps: int) -> None:
    x, kernels = operands(2, 2, 3, 4, taps)
    assert torch.autograd.gradcheck(lambda a, b: dynamic_depthwise_conv(a, b, mode), (x, kernels))
    assert torch.autograd.gradgradcheck(lambda a, b: dynamic_depthwise_conv(a, b, mode), (x, kernels))


@pytest.mark.parametrize("mode", MODES)
def test_large_images_in_many_planes(mode: str) -> None:
    """More than fits into a cache at a time, and no multiple of anything."""
    x, kernels = operands(3, 7, 190, 181, 3)
    assert torch.allclose(dynamic_depthwise_conv(x, kernels, mode), grouped_conv(x, kernels, mode), rtol=0, atol=1e-12)
    for ours, plain in zip(
        gradients(dynamic_depthwise_conv, x, kernels, mode), gradients(grouped_conv, x, kernels, mode), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


def test_only_one_of_both_wants_a_gradient() -> None:
    x, kernels = operands(2, 3, 5, 6, 3)
    both = gradients(dynamic_depthwise_conv, x, kernels, "constant")
    for index, pair in enumerate([(x, kernels.detach()), (x.detach(), kernels)]):
        made = dynamic_depthwise_conv(*pair)
        (made * drawn(*made.shape, seed=2)).sum().backward()
        grad = pair[index].grad
        assert grad is not None
        assert torch.equal(grad, both[index])
        assert pair[1 - index].grad is None


def test_strides_do_not_matter() -> None:
    x, kernels = operands(1, 3, 6, 5, 3)
    x = x.detach().expand(4, 3, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    shared = kernels.expand(4, 3, 3, 3)
    plain_x, plain_kernels = (
        tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in (x, shared)
    )
    made, wanted = dynamic_depthwise_conv(x, shared), grouped_conv(plain_x, plain_kernels, "constant")
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-14)
    # The gradient of a sum has no strides at all.
    for_x, for_kernels = torch.autograd.grad(made.sum(), (x, kernels))
    wanted_for_x, wanted_for_kernels = torch.autograd.grad(wanted.sum(), (plain_x, plain_kernels))
    torch.testing.assert_close(for_x, wanted_for_x, rtol=0, atol=1e-12)
    torch.testing.assert_close(for_kernels, wanted_for_kernels.sum(0, keepdim=True), rtol=0, atol=1e-12)


def test_an_activation_may_work_in_place_on_the_result() -> None:
    x, kernels = operands(2, 3, 7, 5, 3)
    made = dynamic_depthwise_conv(x, kernels)
    assert has_own_backward(made)
    F.leaky_relu_(made, 0.1).square().sum().backward()
    expected = torch.autograd.grad(F.leaky_relu(grouped_conv(x, kernels, "constant"), 0.1).square().sum(), (x, kernels))
    for grad, wanted in zip((x.grad, kernels.grad), expected, strict=True):
        assert grad is not None
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-11)


def test_without_gradients() -> None:
    x, kernels = operands(2, 3, 9, 7, 3, torch.float32)
    with_gradient = dynamic_depthwise_conv(x, kernels, "reflect").detach()
    with torch.no_grad():
        assert torch.equal(dynamic_depthwise_conv(x, kernels, "reflect"), with_gradient)
    with torch.inference_mode():
        assert torch.equal(dynamic_depthwise_conv(x, kernels, "reflect"), with_gradient)
    assert dynamic_depthwise_conv(x.detach(), kernels.detach()).grad_fn is None


def test_under_autocast() -> None:
    x, kernels = operands(2, 3, 9, 7, 3, torch.float32)
    reference = gradients(grouped_conv, x, kernels, "constant")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = dynamic_depthwise_conv(x, kernels)
        made_gradients = gradients(dynamic_depthwise_conv, x, kernels, "constant")
    assert made.dtype == torch.bfloat16
    assert torch.allclose(made.float(), grouped_conv(x, kernels, "constant"), atol=0.1)
    for grad, wanted in zip(made_gradients, reference, strict=True):
        assert grad.dtype == torch.float32
        assert torch.allclose(grad, wanted, atol=0.03 * float(wanted.abs().max()))


def test_it_compiles_without_a_graph_break() -> None:
    x, kernels = operands(2, 3, 9, 7, 3, torch.float32)
    compiled = torch.compile(dynamic_depthwise_conv, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, kernels, "reflect"), dynamic_depthwise_conv(x, kernels, "reflect"))
    for made, wanted in zip(
        gradients(compiled, x, kernels, "reflect"), gradients(grouped_conv, x, kernels, "reflect"), strict=True
    ):
        torch.testing.assert_close(made, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(2, 3, 2, 2), (2, 3, 4, 4), (2, 3, 3, 5), (2, 3, 5, 3), (1, 3, 3, 3), (2, 1, 3, 3), (3, 2, 3, 3), (3, 3)]
)
def test_kernels_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BSRError, match=r"kernels of shape \(.*\), expected \(2, 3, k, k\), k odd") as error:
        dynamic_depthwise_conv(torch.zeros(2, 3, 8, 8), torch.zeros(shape))
    assert str(shape) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["zeros", "circular", "replicate"])
def test_another_padding_is_refused(mode: str) -> None:
    with pytest.raises(BSRError, match=rf"padding_mode '{mode}', expected 'constant' or 'reflect'"):
        dynamic_depthwise_conv(torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 3, 3), mode)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_cuda_agrees_with_cpu(mode: str) -> None:
    on_cpu = operands(2, 3, 9, 7, 3)
    on_gpu = [tensor.detach().to("cuda").requires_grad_() for tensor in on_cpu]

    def weighted(x: Tensor, kernels: Tensor) -> list[Tensor]:
        made = dynamic_depthwise_conv(x, kernels, mode)
        weights = drawn(*made.shape, seed=2).to(made)
        return [made.detach(), *torch.autograd.grad((made * weights).sum(), (x, kernels))]

    for made, wanted in zip(weighted(*on_gpu), weighted(*on_cpu), strict=True):
        torch.testing.assert_close(made.cpu(), wanted, rtol=0, atol=1e-11)
