"""Batch normalisation with the statistics of the batch of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bsr_plugins.whole_batch import gather_batch, rows_of_rank, several_ranks


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """Let all batch normalisation in a network take the statistics of the batch of all ranks.

    On a GPU that is `nn.SyncBatchNorm`, which does not run on the CPU. There each layer gets, in training under several
    processes, the batch of all ranks, and gives the rank's rows: more is sent, and all is what one process has, running
    statistics too. Ranks need inputs of equal size, and run the layers as often and in the same order.

    Args:
        network: The network, without a wrapper; its parameters and its state dict stay as they are.
        device: Where it is going to run.

    Returns:
        The network, or what stands for it if it is nothing but such a layer.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and _gather not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_gather)
            layer.register_forward_hook(_take_rows)
    return network


def _gather(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
    return gather_batch(inputs[0]) if layer.training and several_ranks() else None


def _take_rows(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    if not (layer.training and several_ranks()):
        return None
    return rows_of_rank(output, distributed.get_rank(), distributed.get_world_size()).contiguous()
