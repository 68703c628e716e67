"""Depthwise convolution with kernels of each sample's own, which the networks of DASR and ReDSR are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bsr_plugins.errors import BSRError


def dynamic_depthwise_conv(x: Tensor, kernels: Tensor, padding_mode: str = "constant") -> Tensor:
    """Convolve every channel of every sample with a kernel of its own; sizes are kept.

    The plain way is one `conv2d` with groups = batch × channels. In training on a CPU its backward pass is most of the
    cost of a network; there this one gets the gradients as a depthwise convolution with the turned kernels and as one
    weighted sum per tap, which is exact as well (`tools/bench_train_step.py` measures both). Elsewhere, and where
    nothing is differentiated or a compiler looks on, it is the plain way.

    Args:
        x: Features (B, C, H, W).
        kernels: Kernels (B, C, k, k), k odd.
        padding_mode: What is outside, as in `torch.nn.functional.pad`: `constant` (zeros) or `reflect`.

    Returns:
        Tensor: Features (B, C, H, W); differentiable, twice too, in `x` and `kernels`.

    Raises:
        BSRError: The shapes do not fit, or k is even.
    """
    taps = kernels.shape[-1]
    if kernels.shape != (*x.shape[:2], taps, taps) or taps % 2 == 0:
        expected = f"({x.shape[0]}, {x.shape[1]}, k, k), k odd"
        raise BSRError(f"dynamic_depthwise_conv: kernels of shape {tuple(kernels.shape)}, expected {expected}")
    padded = F.pad(x, (taps // 2,) * 4, mode=padding_mode)
    way = _DepthwiseConv.apply if _worth_an_own_backward(padded, kernels) else _depthwise
    # The view is made out here: autograd lets nobody write into one that a function of one's own has made.
    result: Tensor = way(padded, kernels).view(x.shape)
    return result


def _worth_an_own_backward(padded: Tensor, kernels: Tensor) -> bool:
    differentiated = torch.is_grad_enabled() and (padded.requires_grad or kernels.requires_grad)
    plain = padded.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    return differentiated and not plain


def _depthwise(padded: Tensor, kernels: Tensor) -> Tensor:
    """Convolve padded features (B, C, H, W) with kernels (B, C, k, k): (1, B·C, H − k + 1, W − k + 1)."""
    batch, channels, height, width = padded.shape
    groups, taps = batch * channels, kernels.shape[-1]
    return F.conv2d(padded.reshape(1, groups, height, width), kernels.reshape(groups, 1, taps, taps), groups=groups)


class _DepthwiseConv(torch.autograd.Function):
    """`_depthwise` with gradients that are cheap on a CPU."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(padded, kernels)
        return _depthwise(padded, kernels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        padded, kernels = ctx.saved_tensors
        grad = grads[0].reshape(*kernels.shape[:2], *grads[0].shape[-2:])
        for_padded = for_kernels = None
        taps = kernels.shape[-1]
        if ctx.needs_input_grad[0]:
            for_padded = _depthwise(F.pad(grad, (taps - 1,) * 4), kernels.flip(-2, -1)).view_as(padded)
        if ctx.needs_input_grad[1]:
            for_kernels = _kernel_gradient(padded, grad, taps)
        return for_padded, for_kernels


def _kernel_gradient(padded: Tensor, grad: Tensor, taps: int) -> Tensor:
    """Correlate features with the gradient of the result: (B, C, k, k)."""
    height, width = grad.shape[-2:]
    shifted = (padded[..., y : y + height, x : x + width] for y in range(taps) for x in range(taps))
    sums = torch.stack([(grad * part).sum((-2, -1)) for part in shifted], dim=-1)
    return sums.view(*sums.shape[:-1], taps, taps)
