"""Noise: its level, that it is white and Gaussian, and that a sample's field depends on its seed alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from bsr_plugins.degradations.noise import GREY_LEVELS, gaussian_noise


def field(level: float, shape: tuple[int, ...], seed: int = 3, base: float = 0.5) -> Tensor:
    """Return the noise alone, in grey levels, on a flat image of shape (1, …)."""
    x = torch.full(shape, base, dtype=torch.float64)
    return (gaussian_noise(x, torch.tensor([level]), torch.tensor([seed])) - x) * GREY_LEVELS


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("level", [0.5, 10, 25, 75])
@pytest.mark.parametrize("base", [0.0, 0.5, 1.0])
def test_has_the_asked_level_and_no_mean_and_is_not_clamped(level: float, base: float) -> None:
    noise = field(level, (1, 3, 800, 800), base=base)
    number = noise.numel()
    assert float(noise.std()) == pytest.approx(level, rel=4 / math.sqrt(2 * number))
    assert float(noise.mean()) == pytest.approx(0, abs=4 * level / math.sqrt(number))


def test_is_gaussian() -> None:
    noise = field(10, (1, 3, 200, 200)).flatten() / 10
    for bound in (0.5, 1, 2, 3):
        expected = math.erf(bound / math.sqrt(2))
        assert float((noise.abs() < bound).double().mean()) == pytest.approx(expected, abs=0.006)


def test_is_white() -> None:
    noise = field(10, (1, 3, 200, 200))[0]
    limit = 4 / math.sqrt(noise.numel())
    for dy, dx in [(0, 1), (1, 0), (1, 1), (2, 0), (0, 7), (8, 8)]:
        assert abs(correlation(noise[:, dy:, dx:], noise[:, : 200 - dy, : 200 - dx])) < limit


def test_is_independent_over_samples_views_and_channels() -> None:
    x = torch.zeros(2, 2, 3, 100, 100)
    noise = gaussian_noise(x, torch.tensor([10.0, 10.0]), torch.tensor([1, 2]))
    limit = 5 / math.sqrt(100 * 100)
    for a, b in itertools.combinations(noise.flatten(0, 2), 2):
        assert abs(correlation(a, b)) < limit


def test_a_sample_has_the_same_field_alone_and_in_any_batch() -> None:
    x = torch.rand(3, 2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    level, seed = torch.tensor([5.0, 0.0, 20.0]), torch.tensor([11, 12, 2**63 - 1])
    together = gaussian_noise(x, level, seed)
    for index in range(3):
        alone = gaussian_noise(x[index, None], level[index, None], seed[index, None])
        assert torch.equal(together[index], alone[0])
    turned = gaussian_noise(x.flip(0), level.flip(0), seed.flip(0))
    assert torch.equal(turned.flip(0), together)


def test_level_0_leaves_a_sample_as_it_is() -> None:
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(gaussian_noise(x, torch.tensor([0.0, 0.0]), torch.tensor([1, 2])), x)
    assert torch.equal(gaussian_noise(x, torch.tensor([0.0, 9.0]), torch.tensor([1, 2]))[0], x[0])


def test_the_level_scales_the_field_that_the_seed_fixes() -> None:
    torch.testing.assert_close(field(20, (1, 3, 8, 8)), 4 * field(5, (1, 3, 8, 8)))
    assert not torch.allclose(field(20, (1, 3, 8, 8), seed=4), field(20, (1, 3, 8, 8)))


def test_no_global_random_state_is_read_or_advanced() -> None:
    state = torch.get_rng_state()
    first = field(5, (1, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(field(5, (1, 3, 8, 8)), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_and_double_precision_have_one_field(dtype: torch.dtype) -> None:
    x = torch.full((1, 3, 8, 8), 0.5, dtype=dtype)
    noisy = gaussian_noise(x, torch.tensor([25.0], dtype=torch.float64), torch.tensor([3]))
    assert noisy.dtype == dtype
    expected = field(25, (1, 3, 8, 8)) / GREY_LEVELS + 0.5
    torch.testing.assert_close(noisy.double(), expected, rtol=0, atol=1e-6)


def test_passes_gradients_unchanged() -> None:
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    gaussian_noise(x, torch.tensor([5.0, 0.0]), torch.tensor([1, 2])).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))
