"""What the processes of a run agree on: over the CPU, so that no device is waited for. With one process, all is local.

Every function here is collective: all processes call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import distributed

from bsr_plugins.errors import BSRError

T = TypeVar("T")


@lru_cache(1)
def _group_beside(_world: object) -> Any:
    return distributed.new_group(backend="gloo")


def _group() -> Any:
    """Return the process group on the CPU, or None if there is one process."""
    if distributed.is_available() and distributed.is_initialized():
        return _group_beside(distributed.group.WORLD)
    return None


def total(count: int) -> int:
    """Return the sum of a count over all ranks."""
    if (group := _group()) is None:
        return count
    counts = torch.tensor(count)
    distributed.all_reduce(counts, group=group)
    return int(counts)


def any_rank(flag: bool) -> bool:
    """Tell whether a flag is set on any rank."""
    return total(int(flag)) > 0


def gather(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks; they are pickled."""
    if (group := _group()) is None:
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value, group=group)
    return values


def of_first(make: Callable[[], T]) -> T:
    """Call a function on rank 0 while the others wait; its result, or its BSRError, is that of every rank."""
    if (group := _group()) is None:
        return make()
    outcome: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            outcome = [make()]
        except BSRError as error:
            outcome = [error]
    distributed.broadcast_object_list(outcome, src=0, group=group)
    if isinstance(outcome[0], BSRError):
        raise outcome[0]
    result: T = outcome[0]
    return result
