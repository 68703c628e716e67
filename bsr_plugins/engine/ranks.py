"""What the processes of a run agree on: over the CPU, so that no device is waited for. With one process, all is local.

Every function here is collective: all processes call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import torch
from mmengine.dist import all_gather_object, all_reduce, broadcast_object_list, is_distributed
from torch import distributed

from bsr_plugins.errors import BSRError

T = TypeVar("T")


@lru_cache(1)
def _group_beside(_world: object) -> Any:
    return distributed.new_group(backend="gloo")


def _group() -> Any:
    return _group_beside(distributed.group.WORLD) if is_distributed() else None


def total(count: int) -> int:
    """Return the sum of a count over all ranks."""
    counts = torch.tensor(count)
    all_reduce(counts, group=_group())
    return int(counts)


def any_rank(flag: bool) -> bool:
    """Tell whether a flag is set on any rank."""
    return total(int(flag)) > 0


def gather(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks; they are pickled."""
    values: list[T] = all_gather_object(value, group=_group())
    return values


def of_first(make: Callable[[], T]) -> T:
    """Call a function on rank 0 while the others wait; its result, or its BSRError, is that of every rank."""
    outcome: list[Any] = [None]
    if not is_distributed() or distributed.get_rank() == 0:
        try:
            outcome = [make()]
        except BSRError as error:
            outcome = [error]
    broadcast_object_list(outcome, src=0, group=_group())
    if isinstance(outcome[0], BSRError):
        raise outcome[0]
    result: T = outcome[0]
    return result
