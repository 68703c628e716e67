"""EnergyDistanceLoss and KLDivergenceLoss against their formulas, their properties, gradients, precision, options."""

from __future__ import annotations

import math

import pytest
import torch
from basicsr.losses import build_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.losses import EnergyDistanceLoss, KLDivergenceLoss, RepresentationLoss
from bsr_plugins.losses.representation_loss import DISTRIBUTIONS, LEAST_VARIANCE

SAMPLES_SEED = 11
MEAN_AND_STD = {"gaussian": (0.0, 1.0), "uniform": (0.5, math.sqrt(1 / 12)), "exponential": (1.0, 1.0)}
SKEWNESS = {"gaussian": 0.0, "uniform": 0.0, "exponential": 2.0}
BOTH = pytest.mark.parametrize("loss", [EnergyDistanceLoss(), KLDivergenceLoss()], ids=["energy", "kl"])


def samples_generator() -> torch.Generator:
    return torch.Generator().manual_seed(SAMPLES_SEED)


def random_points(batch: int, dim: int, seed: int) -> Tensor:
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient_of(loss: RepresentationLoss, points: Tensor) -> Tensor:
    points = points.clone().requires_grad_()
    loss(points, samples_generator()).backward()
    assert points.grad is not None
    return points.grad


def plain_energy_distance(f: list[list[float]], t: list[list[float]]) -> float:
    """Eq. 5, term by term."""
    b, m = len(f), len(t)
    between = sum(math.dist(f[i], t[j]) for i in range(b) for j in range(m))
    among_f = sum(math.dist(f[i], f[j]) for i in range(b) for j in range(b))
    among_t = sum(math.dist(t[i], t[j]) for i in range(m) for j in range(m))
    return 2 / (b * m) * between - 1 / b**2 * among_f - 1 / m**2 * among_t


def plain_kl_divergence(f: list[list[float]]) -> float:
    """The divergence of a diagonal Gaussian from N(0, I), component by component."""
    total = 0.0
    for c in range(len(f[0])):
        values = [point[c] for point in f]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        total += (mean**2 + variance - 1 - math.log(variance)) / 2
    return total


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(1, 6), st.integers(1, 9), st.sampled_from(sorted(DISTRIBUTIONS)), st.integers(0))
def test_energy_distance_agrees_with_eq_5(batch: int, dim: int, count: int, distribution: str, seed: int) -> None:
    points = 2 * random_points(batch, dim, seed % 2**63) + 0.5
    samples = DISTRIBUTIONS[distribution](torch.empty(count, dim), samples_generator())
    expected = plain_energy_distance(points.tolist(), samples.tolist())
    for divide_by_dim, divisor in ((False, 1), (True, dim)):
        loss = EnergyDistanceLoss(0.25, distribution, num_samples=count, divide_by_dim=divide_by_dim)
        got = loss(points, samples_generator())
        assert got.shape == ()
        assert got.dtype == torch.float64
        assert float(got) == pytest.approx(0.25 * expected / divisor, rel=1e-9, abs=1e-12)


def test_defaults_are_the_papers() -> None:
    points = random_points(5, 3, seed=1)
    samples = torch.randn(64, 3, generator=samples_generator())
    expected = 0.01 * plain_energy_distance(points.tolist(), samples.tolist())
    assert float(EnergyDistanceLoss()(points, samples_generator())) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 12), st.integers(1, 8), st.floats(0, 10), st.sampled_from(sorted(DISTRIBUTIONS)), st.integers(0, 999)
)
def test_energy_distance_is_not_negative(batch: int, dim: int, spread: float, distribution: str, seed: int) -> None:
    points = spread * random_points(batch, dim, seed)
    loss = EnergyDistanceLoss(1.0, distribution, num_samples=8)
    assert float(loss(points, samples_generator())) >= -1e-12
    assert float(loss(points.float(), samples_generator())) >= -1e-5


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_energy_distance_of_the_samples_themselves_is_zero_and_its_gradient_finite(distribution: str) -> None:
    points = DISTRIBUTIONS[distribution](torch.empty(16, 5), samples_generator())
    loss = EnergyDistanceLoss(1.0, distribution, num_samples=16)
    assert float(loss(points, samples_generator())) == pytest.approx(0, abs=1e-6)
    assert torch.allclose(gradient_of(loss, points), torch.zeros(16, 5), atol=1e-6)


def test_points_that_coincide_pull_towards_the_samples_alone() -> None:
    points = random_points(1, 3, seed=2).expand(4, 3)
    samples = DISTRIBUTIONS["gaussian"](torch.empty(8, 3), samples_generator()).double()
    steps = points[0] - samples
    expected = 2 / (4 * 8) * (steps / steps.norm(dim=1, keepdim=True)).sum(dim=0)
    gradient = gradient_of(EnergyDistanceLoss(1.0, num_samples=8), points)
    assert torch.allclose(gradient, expected.expand(4, 3), rtol=1e-9)


def test_near_duplicates_keep_their_digits() -> None:
    points = 100 + 1e-4 * torch.arange(40.0)[:, None].expand(40, 2)  # more than 25 points, cdist's own limit
    expected = plain_energy_distance(points.tolist(), torch.rand(8, 2, generator=samples_generator()).tolist())
    got = EnergyDistanceLoss(1.0, "uniform", num_samples=8)(points, samples_generator())
    assert float(got) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_descent_brings_points_to_the_distribution(distribution: str) -> None:
    points = (3 + 0.01 * random_points(96, 3, seed=4)).float().requires_grad_()
    optimizer = torch.optim.Adam([points], 0.1)
    loss, generator = EnergyDistanceLoss(1.0, distribution, num_samples=256), samples_generator()
    before = float(loss(points, samples_generator()).detach())
    for _ in range(150):
        optimizer.zero_grad()
        loss(points, generator).backward()
        optimizer.step()
    assert float(loss(points, samples_generator()).detach()) < before / 20
    mean, std = MEAN_AND_STD[distribution]
    assert torch.allclose(points.mean(dim=0), torch.full((3,), mean), atol=0.25)
    assert torch.allclose(points.std(dim=0), torch.full((3,), std), atol=0.25 * std)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distributions_have_their_moments(distribution: str) -> None:
    drawn = DISTRIBUTIONS[distribution](torch.empty(40000, 2), samples_generator())
    mean, std = MEAN_AND_STD[distribution]
    assert drawn.dtype == torch.float32
    for values in drawn.double().T:
        assert float(values.mean()) == pytest.approx(mean, abs=0.02)
        assert float(values.std()) == pytest.approx(std, abs=0.02)
        assert float(((values - mean) / std).pow(3).mean()) == pytest.approx(SKEWNESS[distribution], abs=0.2)
    assert abs(float(torch.corrcoef(drawn.T)[0, 1])) < 0.02
    assert float(drawn.min()) < -3 if distribution == "gaussian" else float(drawn.min()) >= 0


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_generator_decides_the_samples(distribution: str) -> None:
    points, generator = random_points(4, 3, seed=5).float(), samples_generator()
    loss, state = EnergyDistanceLoss(1.0, distribution), torch.get_rng_state()
    first, second = loss(points, generator), loss(points, generator)
    assert torch.equal(first, loss(points, samples_generator()))
    assert not torch.equal(first, second)
    assert torch.allclose(loss(points.double(), samples_generator()).float(), first)
    assert torch.equal(torch.get_rng_state(), state)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 9), st.integers(1, 6), st.floats(1e-3, 3), st.floats(-2, 2), st.integers(0, 999))
def test_kl_divergence_agrees_with_its_formula(batch: int, dim: int, spread: float, shift: float, seed: int) -> None:
    points = spread * random_points(batch, dim, seed) + shift
    got = KLDivergenceLoss(0.25)(points, samples_generator())
    assert got.shape == ()
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(0.25 * plain_kl_divergence(points.tolist()), rel=1e-9, abs=1e-12)


def test_kl_divergence_is_zero_at_the_normal_distributions_moments_and_draws_nothing() -> None:
    generator = samples_generator()
    points = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]])
    assert float(KLDivergenceLoss(1.0)(points, generator)) == 0
    assert float(KLDivergenceLoss(1.0)(points + 2, generator)) == 6
    assert torch.equal(generator.get_state(), samples_generator().get_state())


def test_kl_divergence_of_a_collapsed_batch_is_finite() -> None:
    points = torch.full((4, 3), 2.0)
    expected = 3 * (4 + LEAST_VARIANCE - 1 - math.log(LEAST_VARIANCE)) / 2
    assert float(KLDivergenceLoss(1.0)(points, samples_generator())) == pytest.approx(expected)
    assert torch.allclose(gradient_of(KLDivergenceLoss(1.0), points), torch.full((4, 3), 2.0 / 4))


def test_kl_divergence_spreads_a_batch_as_narrow_as_an_untrained_encoders() -> None:
    points = 0.01 + 1e-4 * random_points(16, 3, seed=6).float()
    centred = points - points.mean(dim=0)
    apart = -(gradient_of(KLDivergenceLoss(1.0), points) * centred).sum(dim=0)
    assert torch.allclose(apart, torch.ones(3), rtol=1e-3)  # -σ dKL/dσ = 1 - σ²


@BOTH
def test_gradients_are_the_derivatives(loss: RepresentationLoss) -> None:
    points = random_points(4, 3, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: loss(f, samples_generator()), (points,))


@BOTH
def test_order_does_not_matter(loss: RepresentationLoss) -> None:
    points = random_points(6, 3, seed=8)
    assert torch.allclose(loss(points.flip(0), samples_generator()), loss(points, samples_generator()), rtol=1e-12)


@BOTH
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_and_low_precision_is_computed_in_float32(
    loss: RepresentationLoss, low: torch.dtype
) -> None:
    points = random_points(32, 64, seed=9).float()
    expected = loss(points, samples_generator())
    with torch.autocast("cpu", dtype=low):
        assert torch.equal(loss(points, samples_generator()), expected)
        assert loss(points.to(low), samples_generator()).dtype == torch.float32
    rounded = points.to(low)
    assert torch.equal(loss(rounded, samples_generator()), loss(rounded.float(), samples_generator()))


@BOTH
def test_other_shapes_are_refused(loss: RepresentationLoss) -> None:
    with pytest.raises(BSRError, match=r"Loss: representation \(2, 3, 4\), expected \(B, C\)$"):
        loss(torch.zeros(2, 3, 4), samples_generator())


def test_kl_divergence_of_one_representation_is_refused() -> None:
    with pytest.raises(BSRError, match=r"^KLDivergenceLoss: a batch of 1 over all ranks, expected at least 2"):
        KLDivergenceLoss()(torch.zeros(1, 4), samples_generator())


def test_stock_basicsr_builds_them() -> None:
    energy = build_loss({"type": "EnergyDistanceLoss", "loss_weight": 0.5, "distribution": "uniform"})
    assert isinstance(energy, EnergyDistanceLoss)
    assert (energy.loss_weight, energy.distribution, energy.num_samples) == (0.5, "uniform", 64)
    divergence = build_loss({"type": "KLDivergenceLoss"})
    assert isinstance(divergence, KLDivergenceLoss)
    assert divergence.loss_weight == 0.01
    assert isinstance(energy, RepresentationLoss)
    assert isinstance(divergence, RepresentationLoss)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_samples", 0, "0, expected a whole number at least 1"),
        ("num_samples", 6.5, "6.5, expected a whole number at least 1"),
        ("divide_by_dim", "no", "'no', expected true or false"),
        ("loss_weight", -1, "-1, expected a number in [0, inf]"),
        ("distribution", "gausian", "unknown name 'gausian', expected one of exponential, gaussian, uniform; did"),
        ("distribution", ["gaussian"], "unknown name ['gaussian'], expected one of"),
    ],
)
def test_bad_options_are_named(option: str, value: object, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        EnergyDistanceLoss(**{option: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{option}: {message}")


def test_a_bad_weight_names_its_own_loss() -> None:
    with pytest.raises(OptionError, match=r"^loss_weight: 'x', expected"):
        KLDivergenceLoss("x")  # type: ignore[arg-type]
