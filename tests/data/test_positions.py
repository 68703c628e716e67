"""The order of a run's items, and their indices, which keep their places through every kind of pickling."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsr_plugins.data.positions import PositionedIndex, RunSampler

INDEX = PositionedIndex(7, epoch=2, position=31)
BATCHES = 5  # in threes, of eight images twice


@settings(deadline=None, max_examples=60)
@given(
    images=st.integers(1, 40),
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 5),
    ratio=st.sampled_from([1, 3, 0.5, 2.5]),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_the_order(images: int, world_size: int, batch_size: int, ratio: float, seed: int, epoch: int) -> None:
    alone = RunSampler(images, 1, 0, seed, ratio, batch_size * world_size)
    alone.set_position(epoch)
    whole = list(alone)
    assert [index.position for index in whole] == list(range(alone.batches_per_epoch * batch_size * world_size))
    assert {index.epoch for index in whole} <= {epoch}
    counts = Counter(map(int, whole))
    assert set(counts) <= set(range(images))
    assert max(counts.values(), default=0) <= -(-images * ratio // images)
    for rank in range(world_size):
        sampler = RunSampler(images, world_size, rank, seed, ratio, batch_size)
        assert sampler.batches_per_epoch == alone.batches_per_epoch
        for first in (0, sampler.batches_per_epoch // 2, sampler.batches_per_epoch):
            sampler.set_position(epoch, first)
            mine = whole[first * batch_size * world_size :][rank::world_size]
            assert [(index, index.position) for index in sampler] == [(index, index.position) for index in mine]
            assert len(sampler) == len(mine)


def test_the_order_is_drawn_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = RunSampler(20, 1, 0, seed, 3, 1)
        sampler.set_position(epoch)
        return list(map(int, sampler))

    orders = [tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(Counter(one) == Counter(dict.fromkeys(range(20), 3)) for one in orders)
    assert order(1, 2) == order(1, 2)


@pytest.mark.parametrize(("epoch", "first_batch"), [(0, BATCHES + 1), (0, -1), (-1, 0)])
def test_a_position_that_there_is_not(epoch: int, first_batch: int) -> None:
    with pytest.raises(ValueError, match=f"epoch {epoch}, batch {first_batch}: expected"):
        RunSampler(8, 1, 0, 0, 2, 3).set_position(epoch, first_batch)


def test_is_the_integer() -> None:
    assert INDEX == 7
    assert hash(INDEX) == hash(7)
    assert (repr(INDEX), f"{INDEX:03d}") == ("7", "007")
    assert list(range(10))[INDEX] == 7
    assert torch.arange(10)[INDEX] == 7
    assert torch.tensor([INDEX, INDEX]).tolist() == [7, 7]
    assert type(INDEX + 1) is int


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_the_place(protocol: int) -> None:
    back = pickle.loads(pickle.dumps(INDEX, protocol))
    assert type(back) is PositionedIndex
    assert (back, back.epoch, back.position) == (7, 2, 31)


def test_copies_keep_the_place() -> None:
    for back in (copy.copy(INDEX), copy.deepcopy(INDEX)):
        assert (type(back), back, back.epoch, back.position) == (PositionedIndex, 7, 2, 31)
