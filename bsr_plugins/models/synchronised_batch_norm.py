"""Batch normalisation with the statistics of the batch of all ranks."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bsr_plugins.precision import at_least_float32
from bsr_plugins.whole_batch import gather_batch, several_ranks


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """Let all batch normalisation in a network take the statistics of the batch of all ranks.

    On a GPU that is `nn.SyncBatchNorm`, which does not run on the CPU; there the layers get another `forward`. Ranks
    need inputs of equal size, and run the layers as often and in the same order. The state dict stays as it is.
    What is returned is the network, or what stands for it if it is nothing but such a layer.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.forward = MethodType(_normalise, layer)  # type: ignore[method-assign]
    return network


def _normalise(layer: Any, x: Tensor) -> Tensor:
    """Stand in for a layer's `forward`: (B, C, …), in float32 at least; the ranks exchange sums."""
    if not (layer.training and several_ranks()):
        plain: Tensor = type(layer).forward(layer, x)
        return plain
    values, axes, per_channel = at_least_float32(x), [0, *range(2, x.dim())], (-1, *[1] * (x.dim() - 2))
    everyones = gather_batch(values.mean(axes)[None])
    mean, count = everyones.mean(dim=0), len(everyones) * values.numel() // values.shape[1]
    centred = values - mean.view(per_channel)
    variance = gather_batch(centred.square().mean(axes)[None]).mean(dim=0)
    if layer.track_running_stats:
        layer.num_batches_tracked.add_(1)
        share = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        layer.running_mean.lerp_(mean.detach().to(layer.running_mean.dtype), share)
        layer.running_var.lerp_((variance.detach() * count / (count - 1)).to(layer.running_var.dtype), share)
    normal: Tensor = centred * (variance + layer.eps).rsqrt().view(per_channel)
    if layer.affine:
        normal = torch.addcmul(layer.bias.view(per_channel), normal, layer.weight.view(per_channel))
    return normal.to(x.dtype)
