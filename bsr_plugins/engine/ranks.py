"""What the processes of a run agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import distributed

from bsr_plugins.errors import BSRError

T = TypeVar("T")


class _Outcome(Generic[T]):
    """What rank 0 has found, or why it could not be found."""

    def __init__(self, make: Callable[[], T]) -> None:
        self.value: T | None = None
        self.error: BSRError | None = None
        try:
            self.value = make()
        except BSRError as error:
            self.error = error


class Ranks:
    """Agrees over the processes of a run, on the CPU, so that no device has to be waited for.

    Args:
        dist: Whether there are several; the process group is there then.
    """

    def __init__(self, dist: bool) -> None:
        self._group: Any = distributed.new_group(backend="gloo") if dist else None

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set on any rank."""
        if self._group is None:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, op=distributed.ReduceOp.MAX, group=self._group)
        return bool(flags)

    def total(self, count: int) -> int:
        """Return the sum of a count over all ranks."""
        if self._group is None:
            return count
        counts = torch.tensor(count)
        distributed.all_reduce(counts, group=self._group)
        return int(counts)

    def of_first(self, make: Callable[[], T]) -> T:
        """Return what rank 0 finds, on every rank.

        Raises:
            BSRError: What rank 0 met, on every rank.
        """
        if self._group is None:
            return make()
        found = [_Outcome(make) if distributed.get_rank() == 0 else None]
        distributed.broadcast_object_list(found, src=0, group=self._group)
        outcome = found[0]
        assert outcome is not None
        if outcome.error is not None:
            raise outcome.error
        return outcome.value  # type: ignore[return-value]  # there is a value where there is no error

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._group is not None:
            distributed.barrier(group=self._group)
