"""The batch of all ranks: which of its rows are whose, and how it is put together.

Sample j of rank r is sample r + W·j of the W ranks' batch, as samplers deal samples out. So all ranks together have
what one process with their batches has, in its order.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class _GatherWithGradient(torch.autograd.Function):
    """`all_gather` of the rows in turn, whose backward pass sums the gradients of all ranks.

    `torch.distributed.nn.functional.all_gather` does the like, but torch deprecates it.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor) -> Tensor:  # noqa: ARG004
        gathered = [torch.empty_like(local) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, local)
        return torch.stack(gathered, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(summed)
        return rows_of_rank(summed, distributed.get_rank(), distributed.get_world_size())


def several_ranks() -> bool:
    """Whether there are several processes, with a process group."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gather_batch(local: Tensor) -> Tensor:
    """Put the batches (B, …) of all ranks together, as (ranks × B, …) in the order in which one process has them.

    B is the same on every rank. In the backward pass each rank gets the sum over ranks of the gradients of its part.
    With one process the batch comes back as it is. Forward and backward are collective: every rank has to run them.
    """
    if not several_ranks():
        return local
    gathered: Tensor = _GatherWithGradient.apply(local.contiguous())
    return gathered


def rows_of_rank(whole: Tensor, rank: int, world_size: int, views: int = 1, passes: int = 1) -> Tensor:
    """Take a rank's rows from those of all ranks.

    Args:
        whole: (passes · W·B · views, …), as one process has them.
        rank: The rank.
        world_size: W.
        views: How many rows a sample has, one after another.
        passes: How many times the samples come, one batch behind the other.

    Returns:
        (passes · B · views, …).
    """
    mine: Tensor = whole.unflatten(0, (passes, -1, views))[:, rank::world_size].flatten(0, 2)
    return mine
