"""The degraded distance, and sigma-alignment against a search through all subsets."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsr_plugins.degradations import degraded_distance, sigma_align
from bsr_plugins.errors import BSRError


def test_distance_is_the_rmse_of_each_image_in_grey_levels() -> None:
    clean = torch.rand(2, 3, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lq = torch.rand(2, 3, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    distances = degraded_distance(lq, clean)
    assert distances.shape == (2, 3)
    differences = ((lq[1, 2] - clean[1, 2]) * 255).flatten().tolist()
    assert float(distances[1, 2]) == pytest.approx(statistics.fmean(d * d for d in differences) ** 0.5)
    assert degraded_distance(clean, clean).abs().max() == 0
    assert float(degraded_distance(clean + 3 / 255, clean)[0, 0]) == pytest.approx(3)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_alignment_is_the_exact_minimum(data: st.DataObject) -> None:
    candidates = data.draw(st.integers(1, 9), label="K")
    keep = data.draw(st.integers(1, candidates), label="m")
    level = st.one_of(st.floats(0, 40), st.integers(0, 4).map(float))  # the second gives ties
    rows = data.draw(st.lists(st.lists(level, min_size=candidates, max_size=candidates), min_size=1, max_size=3))
    chosen = sigma_align(torch.tensor(rows, dtype=torch.float64), keep)
    assert chosen.indices.shape == (len(rows), keep)
    for row, indices, std in zip(rows, chosen.indices.tolist(), chosen.std.tolist(), strict=True):
        least = min(statistics.pstdev(subset) for subset in itertools.combinations(row, keep))
        kept = [row[index] for index in indices]
        assert len(set(indices)) == keep
        assert kept == sorted(kept)
        assert std == pytest.approx(least, abs=1e-9)
        assert std == pytest.approx(statistics.pstdev(kept), abs=1e-9)


def test_alignment_of_known_distances() -> None:
    chosen = sigma_align(torch.tensor([[9.0, 1.0, 5.0, 1.5, 20.0, 1.2], [7.0, 7.0, 7.0, 0.0, 1.0, 2.0]]), 3)
    assert chosen.indices[0].tolist() == [1, 5, 3]
    assert sorted(chosen.indices[1].tolist()) == [0, 1, 2]
    assert chosen.std.tolist() == pytest.approx([statistics.pstdev([1.0, 1.2, 1.5]), 0])
    assert chosen.accepted.tolist() == [True, True]


def test_sets_that_vary_more_than_max_std_are_not_accepted() -> None:
    distances = torch.tensor([[0.0, 2.0, 50.0], [0.0, 6.0, 50.0]])  # population SDs of 1 and 3
    assert sigma_align(distances, 2).std.tolist() == [1, 3]
    for max_std, accepted in ((0.9, [False, False]), (1.0, [True, False]), (3.0, [True, True])):
        chosen = sigma_align(distances, 2, max_std)
        assert chosen.accepted.tolist() == accepted
        assert chosen.accepted.dtype == torch.bool
        assert chosen.indices.tolist() == [[0, 1], [0, 1]], "the caller decides what a refused set means"


def test_one_candidate_varies_by_nothing_and_all_are_the_whole_set() -> None:
    distances = torch.tensor([[3.0, 1.0, 2.0]])
    assert sigma_align(distances, 1).std.tolist() == [0]
    assert sigma_align(distances, 3).indices.tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("keep", [0, -1, 4])
def test_keeping_none_or_more_than_there_are_is_an_error(keep: int) -> None:
    with pytest.raises(BSRError, match=rf"^sigma_align: keep {keep} of 3 candidates, expected a number in \[1, 3\]$"):
        sigma_align(torch.zeros(2, 3), keep)
