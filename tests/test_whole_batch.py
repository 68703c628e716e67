"""The batch of all ranks: whose rows are whose."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsr_plugins.whole_batch import gather_batch, rows_of_rank, several_ranks


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_ranks_share_the_rows_out(world_size: int, batch: int, views: int, passes: int) -> None:
    whole = torch.arange(passes * world_size * batch * views * 2).view(-1, 2)
    parts = [rows_of_rank(whole, rank, world_size, views, passes) for rank in range(world_size)]
    for rank, part in enumerate(parts):
        rows = [
            (number * world_size * batch + rank + world_size * sample) * views + view
            for number in range(passes)
            for sample in range(batch)
            for view in range(views)
        ]
        assert torch.equal(part, whole[rows])
    assert torch.equal(torch.cat(parts).sort(dim=0).values, whole)


def test_one_process_has_all() -> None:
    batch = torch.rand(3, 2)
    assert not several_ranks()
    assert gather_batch(batch) is batch
    assert torch.equal(rows_of_rank(batch, 0, 1), batch)
