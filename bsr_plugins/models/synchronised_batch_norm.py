"""Batch normalisation with the statistics of the batch of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bsr_plugins.errors import BSRError
from bsr_plugins.precision import at_least_float32
from bsr_plugins.whole_batch import gather_batch, several_ranks


class SynchronisedBatchNorm(_BatchNorm):
    """`nn.SyncBatchNorm` for the CPU, on which torch's does not run; its state dict is that of `nn.BatchNorm2d`.

    In training under several processes, mean and variance are over the batches of all ranks, with gradient, and so are
    the running statistics, which come out equal on every rank. In evaluation, and with one process, it is torch's
    batch normalisation. Ranks need inputs of equal size, and run it as often and in the same order.

    Shape: (B, C, …) to the same.
    """

    @classmethod
    def like(cls, norm: _BatchNorm) -> SynchronisedBatchNorm:
        """Make one with the parameters and buffers of another layer, which both then have."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        made.training = norm.training
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, …), in float32 at least; the result has the type of x."""
        if not (self.training and several_ranks()):
            return super().forward(x)
        self._check_input_dim(x)
        values = at_least_float32(x)
        axes, per_channel = [0, *range(2, x.dim())], (-1, *(1,) * (x.dim() - 2))
        count = values.numel() // values.shape[1] * distributed.get_world_size()
        mean = _sum_over_ranks(values.sum(axes)) / count
        centred = values - mean.view(per_channel)
        variance = _sum_over_ranks(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        normal = centred * (variance + self.eps).rsqrt().view(per_channel)
        if self.affine:
            normal = torch.addcmul(self.bias.view(per_channel), normal, self.weight.view(per_channel))
        return normal.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(now.to(running.dtype), share)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise BSRError(f"SynchronisedBatchNorm: {tuple(x.shape)}, expected (B, {self.num_features}, …)")


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """Let all batch normalisation in a network take the statistics of the batch of all ranks.

    Args:
        network: The network, without a wrapper; its layers are replaced in place, its parameters are not.
        device: Where it is going to run; `nn.SyncBatchNorm` is what it gets for CUDA.

    Returns:
        The network, or what stands for it if it is nothing but such a layer.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    return _converted(network, {})


def _converted(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in made:
        made[module] = SynchronisedBatchNorm.like(module) if isinstance(module, _BatchNorm) else module
        for name, child in list(module._modules.items()):  # a layer may have several names
            if child is not None:
                module._modules[name] = _converted(child, made)
    return made[module]


def _sum_over_ranks(values: Tensor) -> Tensor:
    """Sum over ranks, in their order, so that all get the same digits."""
    return gather_batch(values[None]).sum(dim=0)
