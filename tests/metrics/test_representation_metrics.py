"""embedding_spread: its ends, bounds, invariances, and a plain version."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bsr_plugins.metrics import embedding_spread


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_spread(embeddings: Tensor) -> float:
    unit = [[float(v) / math.sqrt(sum(float(w) ** 2 for w in row)) for v in row] for row in embeddings]
    batch, dim = len(unit), len(unit[0])
    total = 0.0
    for d in range(dim):
        mean = sum(row[d] for row in unit) / batch
        total += math.sqrt(sum((row[d] - mean) ** 2 for row in unit) / batch)
    return math.sqrt(dim) * total / dim


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 999))
def test_agrees_with_the_plain_version_and_stays_in_bounds(batch: int, dim: int, seed: int) -> None:
    embeddings = gaussian(batch, dim, seed=seed)
    spread = embedding_spread(embeddings)
    assert spread.shape == ()
    assert float(spread) == pytest.approx(plain_spread(embeddings), rel=1e-9, abs=1e-12)
    assert -1e-12 <= float(spread) <= 1 + 1e-12


def test_collapsed_embeddings_have_no_spread() -> None:
    one = gaussian(1, 16)
    assert float(embedding_spread(one.expand(8, -1))) == pytest.approx(0, abs=1e-12)
    lengths = torch.arange(1, 9, dtype=torch.float64)[:, None]
    assert float(embedding_spread(lengths * one)) == pytest.approx(0, abs=1e-12)
    assert float(embedding_spread(one)) == pytest.approx(0, abs=1e-12)


def test_a_perfectly_even_set_has_spread_one() -> None:
    axes = torch.eye(16, dtype=torch.float64)
    assert float(embedding_spread(torch.cat([axes, -axes]))) == pytest.approx(1)


@pytest.mark.parametrize("dim", [8, 64, 256])
def test_random_directions_have_a_spread_near_one(dim: int) -> None:
    assert float(embedding_spread(gaussian(4096, dim))) == pytest.approx(1, abs=0.02)


def test_a_small_even_batch_has_the_stated_spread() -> None:
    spreads = [float(embedding_spread(gaussian(4, 512, seed=seed))) for seed in range(20)]
    # The mean of a standard deviation lies a little under the root of the mean variance.
    assert sum(spreads) / len(spreads) == pytest.approx(math.sqrt(1 - 1 / 4), rel=0.1)


def test_collapse_by_degrees() -> None:
    centre, noise = gaussian(1, 64), gaussian(256, 64, seed=1)
    spreads = [float(embedding_spread(centre + amount * noise)) for amount in (0.01, 0.1, 1.0, 10.0)]
    assert spreads == sorted(spreads)
    assert spreads[0] < 0.02
    assert spreads[-1] > 0.95


def test_zero_embeddings_and_low_precision() -> None:
    assert float(embedding_spread(torch.zeros(4, 8))) == 0
    embeddings = gaussian(64, 32).bfloat16().requires_grad_()
    spread = embedding_spread(embeddings)
    assert spread.dtype == torch.float32
    assert not spread.requires_grad
    assert float(spread) == pytest.approx(float(embedding_spread(embeddings.double())), abs=1e-5)
