"""PositionedIndex: an integer in every way, with its place, through every kind of pickling."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from bsr_plugins.data.positioned_index import PositionedIndex

INDEX = PositionedIndex(7, epoch=2, position=31)


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
