"""Depthwise convolution with other kernels for each sample, the core of the networks of DASR and ReDSR."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from bsr_plugins.errors import BSRError

_PIXELS = 2**19  # in the planes of one pass: planes, padded, and result fit in a core's share of the cache
_PLANES = 16  # a pass has a multiple of these planes, as a vector register holds 16 float32


def dynamic_depthwise_conv(x: Tensor, kernels: Tensor, padding_mode: str = "constant") -> Tensor:
    """Convolve every channel of every sample with another kernel; sizes are kept.

    The plain way is one `conv2d` with groups = batch × channels, over a padded copy. On a CPU the copies that it makes
    of whole batches cost more than the sums, in the backward pass above all. There this function works in passes over
    few enough planes for the cache, backwards too, and keeps no padded copy; every sum is the same. On other devices,
    and under a compiler, it is the plain way. It is differentiable, twice too, in `x` and `kernels`.

    Args:
        x: Features (B, C, H, W).
        kernels: Kernels (B, C, k, k), k odd.
        padding_mode: What is outside, as in `torch.nn.functional.pad`: `constant` (zeros) or `reflect`.

    Raises:
        BSRError: The shapes do not fit, k is even, or the padding mode is another.
    """
    taps = kernels.shape[-1]
    if kernels.shape != (*x.shape[:2], taps, taps) or taps % 2 == 0:
        expected = f"({x.shape[0]}, {x.shape[1]}, k, k), k odd"
        raise BSRError(f"dynamic_depthwise_conv: kernels of shape {tuple(kernels.shape)}, expected {expected}")
    if padding_mode not in ("constant", "reflect"):
        raise BSRError(f"dynamic_depthwise_conv: padding_mode {padding_mode!r}, expected 'constant' or 'reflect'")
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    in_passes = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not traced
    way = _DepthwiseConv.apply if in_passes else _convolve
    # The view is made here, as autograd allows no writing into a view that a custom function has made.
    result: Tensor = way(x.flatten(0, 1), kernels.flatten(0, 1), padding_mode).view(x.shape)
    return result


class _DepthwiseConv(torch.autograd.Function):
    """`_convolve` in passes, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, planes: Tensor, kernels: Tensor, padding_mode: str) -> Tensor:
        ctx.save_for_backward(planes, kernels)
        ctx.padding_mode = padding_mode
        result = torch.empty_like(planes)
        for some in _passes(planes):
            result[some] = _convolve(planes[some], kernels[some], padding_mode)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        planes, kernels = ctx.saved_tensors
        (grad,), taps = grads, kernels.shape[-1]
        for_planes, for_kernels = (
            torch.empty_like(tensor) if needed else None
            for tensor, needed in zip((planes, kernels), ctx.needs_input_grad, strict=False)
        )
        for some in _passes(planes):
            if for_planes is not None:
                for_planes[some] = _spread(grad[some], kernels[some], ctx.padding_mode)
            if for_kernels is not None:
                outside, padding = _pad(planes[some], taps, ctx.padding_mode)
                shape, result = (len(outside), 1, taps, taps), grad[some][None]
                found = conv2d_weight(outside[None], shape, result, padding=padding, groups=len(outside))
                for_kernels[some] = found[:, 0]
        return for_planes, for_kernels, None


def _passes(planes: Tensor) -> Iterator[slice]:
    """Divide planes (N, H, W) into passes."""
    count = max(_PIXELS // max(_PLANES * planes.shape[1] * planes.shape[2], 1), 1) * _PLANES
    return (slice(start, start + count) for start in range(0, len(planes), count))


def _convolve(planes: Tensor, kernels: Tensor, padding_mode: str) -> Tensor:
    """Convolve planes (N, H, W) with kernels (N, k, k)."""
    outside, padding = _pad(planes, kernels.shape[-1], padding_mode)
    return F.conv2d(outside[None], kernels[:, None], padding=padding, groups=len(planes))[0]


def _spread(grad: Tensor, kernels: Tensor, padding_mode: str) -> Tensor:
    """Return the gradient of the planes from that of the result: a convolution with the kernels rotated by 180°."""
    radius, turned = kernels.shape[-1] // 2, kernels.flip(-2, -1)
    if padding_mode == "constant" or radius == 0:
        return _convolve(grad, turned, "constant")
    padded = F.conv2d(grad[None], turned[:, None], padding=2 * radius, groups=len(grad))[0]
    for side in (padded, padded.transpose(-2, -1)):  # what lies outside belongs to the pixel that it mirrors
        side[:, radius + 1 : 2 * radius + 1] += side[:, :radius].flip(1)
        side[:, -2 * radius - 1 : -radius - 1] += side[:, -radius:].flip(1)
    return padded[:, radius:-radius, radius:-radius]


def _pad(planes: Tensor, taps: int, padding_mode: str) -> tuple[Tensor, int]:
    """Return planes with their borders, and the width of border that is still missing: zeros need no copy."""
    if padding_mode == "constant":
        return planes, taps // 2
    return F.pad(planes, (taps // 2,) * 4, mode=padding_mode), 0
