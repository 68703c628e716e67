"""InfoNCELoss against its formula, its ends, stability, gradients, options."""

from __future__ import annotations

import math

import pytest
import torch
from basicsr.losses import build_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bsr_plugins.errors import OptionError
from bsr_plugins.losses import InfoNCELoss


def random_units(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1)


def plain_info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> float:
    """The formula in loops; positive (B, M, D)."""
    losses = []
    for b in range(query.shape[0]):
        for m in range(positive.shape[1]):
            top = math.exp(float(query[b] @ positive[b, m]) / temperature)
            rest = sum(math.exp(float(query[b] @ negatives[:, k]) / temperature) for k in range(negatives.shape[1]))
            losses.append(-math.log(top / (top + rest)))
    return sum(losses) / len(losses)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(2, 6), st.floats(0.05, 2), st.integers(0, 999)
)
def test_agrees_with_the_formula(
    batch: int, positives: int, count: int, dim: int, temperature: float, seed: int
) -> None:
    query, positive = random_units(batch, dim, seed=seed), random_units(batch, positives, dim, seed=seed + 1)
    negatives = random_units(count, dim, seed=seed + 2).T
    loss = InfoNCELoss(temperature=temperature)(query, positive, negatives)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(plain_info_nce(query, positive, negatives, temperature), rel=1e-9)


def test_one_positive_may_come_without_its_dimension() -> None:
    query, positive, negatives = (random_units(5, 4, seed=seed) for seed in range(3))
    loss = InfoNCELoss()
    assert torch.equal(loss(query, positive, negatives.T), loss(query, positive[:, None], negatives.T))


def test_the_default_temperature_is_dasrs() -> None:
    query, positive, negatives = (random_units(5, 4, seed=seed) for seed in range(3))
    expected = plain_info_nce(query, positive[:, None], negatives.T, 0.07)
    assert float(InfoNCELoss()(query, positive, negatives.T)) == pytest.approx(expected)


def test_weight_scales_the_loss() -> None:
    query, positive, negatives = (random_units(5, 4, seed=seed) for seed in range(3))
    whole, part = InfoNCELoss(), InfoNCELoss(loss_weight=0.25)
    assert float(part(query, positive, negatives.T)) == pytest.approx(0.25 * float(whole(query, positive, negatives.T)))


def test_ends() -> None:
    one = torch.ones(3, 1, dtype=torch.float64)
    negatives = torch.ones(1, 8, dtype=torch.float64)
    loss = InfoNCELoss(temperature=0.5)
    assert float(loss(one, one, negatives)) == pytest.approx(math.log(9))  # nothing to tell them apart
    assert float(loss(one, one, -negatives)) == pytest.approx(math.log1p(8 * math.exp(-4)))
    assert float(loss(one, -one, negatives)) == pytest.approx(4 + math.log(8 + math.exp(-4)))


@pytest.mark.parametrize("sign", [1, -1])
def test_stable_at_the_lowest_temperature_in_float32(sign: int) -> None:
    query = torch.ones(2, 1, requires_grad=True)
    loss = InfoNCELoss(temperature=1e-4)(query, sign * torch.ones(2, 1), -sign * torch.ones(1, 4))
    loss.backward()
    expected = 0.0 if sign == 1 else 2e4 + math.log(4)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_a_loss_near_zero_keeps_its_digits() -> None:
    query = torch.ones(1, 1, dtype=torch.float64)
    loss = InfoNCELoss(temperature=0.04)(query, query, -torch.ones(1, 1, dtype=torch.float64))
    assert float(loss) == pytest.approx(math.log1p(math.exp(-50)), rel=1e-9, abs=0)


def test_gradients_are_the_derivatives_and_several_positives_do_not_compete() -> None:
    query, positive = random_units(2, 4, seed=1).requires_grad_(), random_units(2, 3, 4, seed=2).requires_grad_()
    negatives = random_units(5, 4, seed=3).T
    loss = InfoNCELoss(temperature=0.3)
    assert torch.autograd.gradcheck(lambda q, p: loss(q, p, negatives), (query, positive))
    alone = [loss(query, positive[:, view], negatives) for view in range(3)]
    assert torch.allclose(loss(query, positive, negatives), torch.stack(alone).mean())


def test_only_accepted_queries_count() -> None:
    query, positive, negatives = (random_units(5, 4, seed=seed).requires_grad_() for seed in range(3))
    loss, accepted = InfoNCELoss(), torch.tensor([True, False, True, True, False])
    expected = loss(query[accepted], positive[accepted], negatives.T)
    assert torch.equal(loss(query, positive, negatives.T, accepted), expected)
    assert torch.equal(
        loss(query, positive, negatives.T, torch.ones(5, dtype=torch.bool)), loss(query, positive, negatives.T)
    )
    none = loss(query, positive, negatives.T, torch.zeros(5, dtype=torch.bool))
    none.backward()
    assert none == 0
    assert query.grad is not None
    assert not query.grad.any()


def test_autocast_changes_nothing() -> None:
    query, positive, negatives = (random_units(5, 64, seed=seed).float() for seed in range(3))
    loss = InfoNCELoss()
    expected = loss(query, positive, negatives.T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(query, positive, negatives.T), expected)
    low = loss(query.bfloat16(), positive.bfloat16(), negatives.T)
    assert low.dtype == torch.float32
    assert torch.allclose(low, expected, rtol=0.05)


def test_stock_basicsr_builds_it() -> None:
    loss = build_loss({"type": "InfoNCELoss", "loss_weight": 0.5, "temperature": 0.1})
    assert isinstance(loss, InfoNCELoss)
    assert (loss.loss_weight, loss.temperature) == (0.5, 0.1)


@pytest.mark.parametrize(
    ("option", "value"),
    [("temperature", 0), ("temperature", -1), ("temperature", "0.07"), ("loss_weight", -1), ("loss_weight", None)],
)
def test_bad_options_are_named(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=rf"^{option}: .*expected"):
        InfoNCELoss(**{option: value})  # type: ignore[arg-type]
