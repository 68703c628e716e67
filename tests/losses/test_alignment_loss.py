"""AlignmentLoss against its formulas, written as loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.losses import AlignmentLoss

Pair = tuple[Tensor, Tensor]
TERMS = ("linear_mean", "linear_covariance", "nonlinear_mean", "nonlinear_covariance")
STATISTICS = ("spatial", "pooled")


def batches(seed: int = 0, shape: tuple[int, ...] = (3, 4, 5, 6)) -> Pair:
    """Two batches of features that are alike but not equal, with a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.7
    return first, first + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(statistics: str, batch: int, channels: int, n: int) -> Pair:
    """What the loss draws: ω first, then φ, in float32."""
    source = generator()
    sizes = [(channels, n, 1)] * 2 if statistics == "spatial" else [(batch, 1, n), (batch, channels, n)]
    omega = torch.randn(sizes[0], generator=source)
    return omega.double(), (2 * math.pi * torch.rand(sizes[1], generator=source)).double()


def moments(vectors: list[list[float]]) -> tuple[list[float], list[list[float]]]:
    """Mean and covariance of points, one component after the other."""
    count, dims = len(vectors), range(len(vectors[0]))
    mean = [sum(vector[d] for vector in vectors) / count for d in dims]
    covariance = [
        [sum((vector[d] - mean[d]) * (vector[e] - mean[e]) for vector in vectors) / count for e in dims] for d in dims
    ]
    return mean, covariance


def spatial_reference(one: Tensor, other: Tensor, n: int) -> dict[str, float]:
    """The paper's terms, averaged over images."""
    batch, channels, height, width = one.shape
    omega, phi = draws("spatial", batch, channels, n)
    found = dict.fromkeys(TERMS, 0.0)
    for index in range(batch):
        points: dict[str, list[list[list[float]]]] = {"linear": [], "nonlinear": []}
        for features in (one[index], other[index]):
            places = [(y, x) for y in range(height) for x in range(width)]
            points["linear"].append([[float(features[c, y, x]) for c in range(channels)] for y, x in places])
            points["nonlinear"].append(
                [
                    [
                        math.sqrt(2) * math.cos(omega[c, k, 0] * features[c, y, x] + phi[c, k, 0]) / math.sqrt(n)
                        for c in range(channels)
                        for k in range(n)
                    ]
                    for y, x in places
                ]
            )
        for name, (first, second) in points.items():
            (mean, covariance), (mean2, covariance2) = moments(first), moments(second)
            found[f"{name}_mean"] += sum((a - b) ** 2 for a, b in zip(mean, mean2, strict=True)) / batch
            found[f"{name}_covariance"] += (
                sum(
                    (a - b) ** 2
                    for row, row2 in zip(covariance, covariance2, strict=True)
                    for a, b in zip(row, row2, strict=True)
                )
                / batch
            )
    return found


def pooled_reference(one: Tensor, other: Tensor, n: int) -> dict[str, float]:
    """What the released code adds up, image by image, with matrices."""
    batch, channels = one.shape[:2]
    omega, phi = draws("pooled", batch, channels, n)
    pooled = [features.mean(dim=(2, 3)) for features in (one, other)]
    centred = [features - features.mean(dim=0, keepdim=True) for features in pooled]
    found = dict.fromkeys(TERMS, 0.0)
    for index in range(batch):
        waves = []
        for features in centred:
            columns = []
            for k in range(n):
                phase = features[index] * omega[index, 0, k] + phi[index, :, k]
                phase = (phase - phase.min()) / (phase.max() - phase.min()) * math.pi / 2
                columns.append(math.sqrt(2 / n) * (torch.cos(phase) + torch.sin(phase)))
            waves.append(torch.stack(columns, dim=1).reshape(-1))
        for name, (u, v) in {"linear": (centred[0][index], centred[1][index]), "nonlinear": tuple(waves)}.items():
            found[f"{name}_mean"] += float(((u - v) ** 2).mean())
            found[f"{name}_covariance"] += float(((torch.outer(u, u) - torch.outer(v, v)) ** 2).mean())
    return found


REFERENCES: dict[str, Callable[[Tensor, Tensor, int], dict[str, float]]] = {
    "spatial": spatial_reference,
    "pooled": pooled_reference,
}


def compare(loss: AlignmentLoss, one: Tensor, other: Tensor, source: torch.Generator | None = None) -> Tensor:
    """The loss of two batches of features."""
    return loss(torch.cat([one, other]), generator() if source is None else source)[0]  # type: ignore[no-any-return]


def terms_of(loss: AlignmentLoss, one: Tensor, other: Tensor) -> dict[str, float]:
    return {name: float(term) for name, term in loss(torch.cat([one, other]), generator())[1].items()}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_terms_are_those_of_the_formulas(statistics: str, n: int) -> None:
    one, other = batches()
    loss = AlignmentLoss(statistics=statistics, num_random_features=n)
    expected = REFERENCES[statistics](one, other, n)
    assert terms_of(loss, one, other) == pytest.approx(expected, rel=1e-10)
    assert all(value > 1e-6 for value in expected.values())
    assert float(compare(loss, one, other)) == pytest.approx(sum(expected.values()), rel=1e-10)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_the_gradient_is_that_of_each_term(statistics: str, n: int, term: str) -> None:
    mapped, moment = term.split("_")
    weights: dict[str, Any] = {
        f"{name}_weight": float(name in (mapped, moment)) for name in ("linear", "nonlinear", "mean")
    }
    loss = AlignmentLoss(
        1.7, statistics, **weights, covariance_weight=float(moment == "covariance"), num_random_features=n
    )
    one, other = (features.requires_grad_() for features in batches(shape=(3, 3, 2, 3)))
    assert torch.autograd.gradcheck(lambda a, b: 3 * compare(loss, a, b), (one, other))


@pytest.mark.parametrize("statistics", STATISTICS)
def test_the_gradient_is_that_of_the_sum(statistics: str) -> None:
    loss = AlignmentLoss(0.5, statistics, 2.0, 3.0, 0.7, 1.1, num_random_features=2)
    one, other = (features.requires_grad_() for features in batches(shape=(2, 3, 3, 2)))
    assert torch.autograd.gradcheck(lambda a, b: compare(loss, a, b), (one, other))


@pytest.mark.parametrize("statistics", STATISTICS)
def test_weights_multiply_and_switch_off(statistics: str) -> None:
    one, other = batches()
    plain = terms_of(AlignmentLoss(statistics=statistics), one, other)
    weighted = AlignmentLoss(2.0, statistics, 3.0, 5.0, 7.0, 11.0)
    factors = {name: 2 * (5 if "non" in name else 3) * (7 if "mean" in name else 11) for name in TERMS}
    assert terms_of(weighted, one, other) == pytest.approx({name: factors[name] * plain[name] for name in TERMS})
    assert float(compare(weighted, one, other)) == pytest.approx(sum(factors[n] * plain[n] for n in TERMS))
    for name in ("linear", "nonlinear", "mean", "covariance"):
        off: dict[str, Any] = {f"{name}_weight": 0.0}
        left = terms_of(AlignmentLoss(statistics=statistics, **off), one, other)
        kept = [term for term in TERMS if name not in term.split("_")]
        assert left == pytest.approx({term: plain[term] for term in kept})


@pytest.mark.parametrize("statistics", STATISTICS)
def test_what_is_off_costs_nothing(statistics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed for nothing")

    one, other = batches()
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "cos", refuse)
        source = generator()
        before = source.get_state()
        compare(AlignmentLoss(statistics=statistics, nonlinear_weight=0.0), one, other, source)
        assert torch.equal(source.get_state(), before), "nothing is drawn"
        with pytest.raises(AssertionError):
            compare(AlignmentLoss(statistics=statistics), one, other)
    monkeypatch.setattr(torch, "baddbmm", refuse)
    compare(AlignmentLoss(statistics=statistics, covariance_weight=0.0), one, other)


@given(seed=st.integers(0, 1000), n=st.integers(1, 3), statistics=st.sampled_from(STATISTICS))
@settings(max_examples=15, deadline=None)
def test_zero_for_equal_batches_and_symmetric(seed: int, n: int, statistics: str) -> None:
    one, other = batches(seed)
    loss = AlignmentLoss(statistics=statistics, num_random_features=n)
    assert float(compare(loss, one, one.clone())) == 0
    assert float(compare(loss, one, other)) > 0
    assert float(compare(loss, one, other)) == float(compare(loss, other, one))


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_spatial_statistics_know_no_places(seed: int) -> None:
    one, other = batches(seed)
    shuffle = torch.randperm(30, generator=generator(seed))
    shuffled = other.flatten(2)[:, :, shuffle].view(other.shape)
    loss = AlignmentLoss()
    assert terms_of(loss, one, shuffled) == pytest.approx(terms_of(loss, one, other), rel=1e-9)
    assert float(compare(loss, one, one.flatten(2)[:, :, shuffle].view(one.shape))) < 1e-24


def test_spatial_images_count_alike_and_alone() -> None:
    one, other = batches(shape=(4, 3, 4, 4))
    loss = AlignmentLoss()
    each = [float(compare(loss, one[i : i + 1], other[i : i + 1])) for i in range(4)]
    assert float(compare(loss, one, other)) == pytest.approx(sum(each) / 4, rel=1e-12)


def test_pooled_statistics_forget_what_the_batch_shares() -> None:
    one, other = batches()
    loss = AlignmentLoss(statistics="pooled")
    shift = torch.linspace(-1, 1, 4, dtype=torch.float64).view(1, 4, 1, 1)
    assert terms_of(loss, one, other + shift) == pytest.approx(terms_of(loss, one, other), rel=1e-9)
    shuffled = other.flatten(2).flip(2).view(other.shape)
    assert terms_of(loss, one, shuffled) == pytest.approx(terms_of(loss, one, other), rel=1e-9)


def test_pooled_statistics_of_one_channel_are_finite() -> None:
    one, other = (features.requires_grad_() for features in batches(shape=(3, 1, 2, 2)))
    loss = compare(AlignmentLoss(statistics="pooled"), one, other)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert one.grad is not None
    assert bool(torch.isfinite(one.grad).all())


def test_a_stride_takes_rows_and_columns_and_every_beginning() -> None:
    one, other = batches(shape=(2, 3, 7, 5))
    loss, plain = AlignmentLoss(stride=2, nonlinear_weight=0.0), AlignmentLoss(nonlinear_weight=0.0)
    possible = {
        round(float(compare(plain, one[:, :, y::2, x::2], other[:, :, y::2, x::2])), 12) for y in (0, 1) for x in (0, 1)
    }
    found = {round(float(compare(loss, one, other, generator(seed))), 12) for seed in range(40)}
    assert found == possible
    assert len(possible) == 4
    with pytest.raises(BSRError, match=r"^AlignmentLoss.stride: 5 for features of 7x5, expected less than a side$"):
        compare(AlignmentLoss(stride=5), one, other)
    features = one.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: compare(AlignmentLoss(stride=2), a, other), (features,))


def test_draws_are_the_generators() -> None:
    one, other = batches()
    loss = AlignmentLoss()
    before = torch.get_rng_state()
    assert float(compare(loss, one, other, generator(1))) != float(compare(loss, one, other, generator(2)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_half_precision_is_measured_in_float32(statistics: str) -> None:
    one, other = (features.bfloat16() for features in batches())
    loss = AlignmentLoss(statistics=statistics)
    with torch.autocast("cpu", torch.bfloat16):
        found = compare(loss, one, other)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(compare(loss, one.double(), other.double())), rel=1e-4)


def test_features_that_are_near_keep_their_digits_in_float32() -> None:
    one, other = batches(shape=(2, 8, 32, 32))
    near = one + 1e-3 * (other - one)
    loss = AlignmentLoss()
    exact = float(compare(loss, one, near))
    assert float(compare(loss, one.float(), near.float())) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"statistics": "spatal"}, r"statistics: unknown name 'spatal', .*did you mean 'spatial'"),
        ({"statistics": 1}, r"statistics: unknown name 1, expected one of pooled, spatial"),
        ({"loss_weight": -1.0}, r"loss_weight: -1.0, expected a number in \[0, inf\]"),
        ({"linear_weight": "1"}, r"linear_weight: '1', expected a number"),
        ({"covariance_weight": -0.1}, r"covariance_weight: -0.1, expected a number"),
        ({"num_random_features": 0}, r"num_random_features: 0, expected a whole number at least 1"),
        ({"stride": 0}, r"stride: 0, expected a whole number at least 1"),
        ({"linear_weight": 0, "nonlinear_weight": 0}, r"loss_weight: .* switch every term off, expected one"),
        ({"mean_weight": 0, "covariance_weight": 0}, r"loss_weight: .* switch every term off, expected one"),
        ({"loss_weight": 0}, r"loss_weight: .* switch every term off, expected one"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(OptionError, match=f"^{expected}") as caught:
        AlignmentLoss(**arguments)
    assert "\n" not in str(caught.value)


def test_features_that_cannot_be_compared() -> None:
    one, other = batches()
    with pytest.raises(BSRError, match=r"features \(5, 4, 5, 6\), expected \(2·B, C, H, W\)"):
        compare(AlignmentLoss(), one, other[:2])
    with pytest.raises(BSRError, match=r"features \(6, 4, 30\), expected \(2·B, C, H, W\)"):
        compare(AlignmentLoss(), one.flatten(2), other.flatten(2))
    with pytest.raises(BSRError, match=r"features \(3, 4, 5, 6\), expected \(2·B, C, H, W\)"):
        AlignmentLoss()(one, generator())
    with pytest.raises(
        BSRError, match="a batch of 1 over all ranks, expected at least 2 images with statistics: pooled"
    ):
        compare(AlignmentLoss(statistics="pooled"), one[:1], other[:1])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("statistics", STATISTICS)
def test_cuda_agrees_with_the_cpu(statistics: str) -> None:
    loss, (one, other) = AlignmentLoss(statistics=statistics, num_random_features=2), batches(shape=(5, 8, 12, 12))
    gradients = []
    for device in ("cpu", "cuda"):
        features = one.to(device).requires_grad_()
        compare(loss, features, other.to(device)).backward()
        assert features.grad is not None
        gradients.append(features.grad.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
