"""Noise: its level, its distribution, that it is white, and that a sample's field depends on its seed alone."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bsr_plugins  # noqa: F401  isort: skip  (BasicSR cannot be imported before it)
from basicsr.data.degradations import generate_poisson_noise_pt

from bsr_plugins.degradations.base import GREY_LEVELS
from bsr_plugins.degradations.stages.noise import gaussian_noise, poisson_noise
from tests.degradations.photographs import photograph, views


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


def test_grey_noise_is_one_field_for_the_channels_of_an_image() -> None:
    x = views(60, 50, batch=3, count=2)
    level, seed = torch.tensor([10.0, 20.0, 0.0]), torch.tensor([1, 2, 3])
    noise = (gaussian_noise(x, level, seed, torch.tensor([True, False, True])) - x) * GREY_LEVELS
    for view in noise[0]:
        torch.testing.assert_close(view, view[:1].expand(3, -1, -1), rtol=0, atol=1e-10)
    assert float(noise[0].std()) == pytest.approx(10, rel=0.05)
    assert abs(correlation(noise[0, 0, 0], noise[0, 1, 0])) < 5 / math.sqrt(60 * 50)
    for a, b in itertools.combinations(noise[1].flatten(0, 1), 2):
        assert abs(correlation(a, b)) < 5 / math.sqrt(60 * 50)
    assert torch.equal(noise[2], torch.zeros_like(noise[2]))


def test_colour_noise_is_the_same_with_and_without_flags() -> None:
    x, level, seed = views(9, 7, batch=2), torch.tensor([10.0, 20.0]), torch.tensor([1, 2])
    for noise in (gaussian_noise, poisson_noise):
        assert torch.equal(noise(x, level, seed), noise(x, level, seed, torch.tensor([False, False])))


def shot(x: Tensor, seed: int = 3, scale: float = 1.0, grey: bool = False) -> Tensor:
    """Return the Poisson noise alone on one image, shape (3, H, W)."""
    return poisson_noise(x[None], torch.tensor([scale]), torch.tensor([seed]), torch.tensor([grey]))[0] - x


def palette(number: int, side: int = 120, seed: int = 0) -> Tensor:
    """Make an image, shape (3, side, side), with so many distinct 8-bit values, all about equally often."""
    levels = torch.linspace(255, 0, number, dtype=torch.float64).round()
    order = torch.arange(3 * side * side) % number
    shuffled = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
    return levels[shuffled].view(3, side, side) / 255


def eight_bits(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255) / 255


def luma(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(-3)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)


def events(x: Tensor) -> int:
    """Count the distinct values of an image of 8 bits and round up to a power of two."""
    power = 1
    while power < len(set(x.flatten().tolist())):
        power *= 2
    return power


def assert_moments(noise: Tensor, variance: Tensor, counts: Tensor) -> None:
    """Check mean and variance of Poisson noise, six standard errors wide, where `counts` are expected."""
    assert bool((noise[variance == 0] == 0).all())
    noise, variance, counts = noise[variance > 0], variance[variance > 0], counts[variance > 0]
    normal = noise / variance.sqrt()
    number = normal.numel()
    assert float(normal.mean()) == pytest.approx(0, abs=6 / math.sqrt(number))
    error = math.sqrt(float((2 + 1 / counts).mean()) / number)
    assert float(normal.square().mean()) == pytest.approx(1, abs=6 * error)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8, 9, 17, 100, 128, 129, 255, 256])
def test_poisson_counts_follow_their_distribution(number: int) -> None:
    """An image of n values expects p·v events of a pixel p, v being n rounded up to a power of two."""
    x = palette(number)
    v = events(x)
    counts = (x + shot(x)) * v
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-8)
    for value in sorted(set(x.flatten().tolist()))[:: max(1, number // 5)]:
        found = counts[x == value].round().long()
        distribution = scipy.stats.poisson(value * v)
        expected = torch.from_numpy(distribution.cdf(range(3 * v + 40)))
        shares = found.bincount(minlength=3 * v + 40).cumsum(0) / found.numel()
        assert found.numel() > 150
        assert float((shares - expected).abs().max()) < 2.2 / math.sqrt(found.numel())  # Kolmogorov, p < 1e-4


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 256), st.floats(0.05, 3), st.integers(0, 2**63 - 1), st.booleans())
def test_poisson_variance_is_that_of_the_formula(number: int, scale: float, seed: int, grey: bool) -> None:
    x = palette(number)
    p = eight_bits(luma(x)) if grey else x
    v = events(p)
    noise = shot(x, seed, scale, grey)
    assert_moments(noise[: p.shape[0]], p / v * scale**2, p * v)


def test_grey_poisson_noise_is_the_lumas_for_all_channels() -> None:
    x = photograph("astronaut.png")[:, 100:180, 200:300]
    noise = shot(x, grey=True)
    torch.testing.assert_close(noise, noise[:1].expand(3, -1, -1), rtol=0, atol=1e-12)
    p = eight_bits(luma(x))
    counts = (p + noise[:1]) * events(p)
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("grey", [False, True])
def test_poisson_noise_is_distributed_like_that_of_basicsr(grey: bool) -> None:
    """Means and variances per pixel over many fields of one photograph, and over channels."""
    x = photograph("astronaut.png")[:, 8:256:16, 128:376:16].float() * 0.95 + 0.05
    number, scale = 1500, torch.tensor(1.7)
    batch = x.expand(number, 3, *x.shape[1:])
    ours = poisson_noise(batch, scale.expand(number), torch.arange(number), torch.full((number,), grey)) - batch
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = generate_poisson_noise_pt(batch, scale.expand(number), torch.full((number,), float(grey)))
    ratio = ours.var(0).sqrt() / theirs.var(0).sqrt()
    pixels = ratio[0].numel() if grey else ratio.numel()
    assert float(ratio.mean()) == pytest.approx(1, abs=6 / math.sqrt(number * pixels))
    assert float(ratio.std()) < 1.5 / math.sqrt(number)
    error = math.sqrt(float(theirs.var()) * 2 / (number * pixels))
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=6 * error)
    shared = [float((field[:, 0] * field[:, 1]).mean() / field.square().mean()) for field in (ours, theirs)]
    assert shared[0] == pytest.approx(shared[1], abs=0.02)


def test_distinct_values_are_counted_per_view() -> None:
    x = torch.stack([palette(2), palette(200), palette(20)])[None]
    noise = poisson_noise(x, torch.tensor([1.0]), torch.tensor([3])) - x
    for view, field in zip(x[0], noise[0], strict=True):
        assert_moments(field, view / events(view), view * events(view))


def test_poisson_noise_is_that_of_the_image_in_8_bits() -> None:
    x = palette(40)
    off = x + (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.9 / 255
    off = torch.where(x == 1, 1.3, torch.where(x == 0, -0.2, off))
    torch.testing.assert_close(shot(off), shot(x), rtol=0, atol=1e-12)


def test_a_pixel_of_the_next_level_changes_its_own_noise_a_little() -> None:
    """So that what one device rounds up and another rounds down stays where it is."""
    x = palette(256, side=60)
    moved = x.clone().flatten()
    moved[::7] = torch.where(moved[::7] > 0, moved[::7] - 1 / 255, 0)
    moved = moved.view_as(x)
    assert events(eight_bits(moved)) == events(x)
    difference = (shot(moved) - shot(x)).abs().flatten() * GREY_LEVELS
    assert 0 < float(difference[::7].mean()) < 1
    assert float(difference.max()) < 4
    difference[::7] = 0
    assert float(difference.max()) < 1e-9


def test_a_sample_has_the_same_poisson_noise_alone_and_in_any_batch() -> None:
    x = views(20, 16, batch=4, count=2).float()
    scale, seed = torch.tensor([1.0, 0.0, 2.5, 1.0]), torch.tensor([11, 12, 2**63 - 1, 13])
    grey = torch.tensor([True, False, False, True])
    together = poisson_noise(x, scale, seed, grey)
    assert together.shape == x.shape
    for index in range(4):
        alone = poisson_noise(x[index, None], scale[index, None], seed[index, None], grey[index, None])
        assert torch.equal(together[index], alone[0])
        assert torch.equal(together[index], x[index]) == (index == 1)
    turned = poisson_noise(x.flip(0), scale.flip(0), seed.flip(0), grey.flip(0))
    assert torch.equal(turned.flip(0), together)


def test_scale_0_everywhere_leaves_the_batch_as_it_is() -> None:
    x = views(8, 8, batch=2)
    assert torch.equal(poisson_noise(x, torch.zeros(2), torch.tensor([1, 2]), torch.tensor([True, False])), x)


def test_poisson_noise_is_white_and_follows_scale_and_seed() -> None:
    x = torch.full((3, 100, 100), 0.6, dtype=torch.float64)
    noise = shot(x)
    limit = 5 / math.sqrt(noise.numel())
    for dy, dx in [(0, 1), (1, 0), (1, 1), (2, 0), (0, 7)]:
        assert abs(correlation(noise[:, dy:, dx:], noise[:, : 100 - dy, : 100 - dx])) < limit
    for a, b in itertools.combinations(noise, 2):
        assert abs(correlation(a, b)) < 5 / 100
    assert abs(correlation(shot(x, seed=4), noise)) < limit
    torch.testing.assert_close(shot(x, scale=0.3), 0.3 * noise, rtol=1e-6, atol=1e-8)


def test_poisson_noise_neither_reads_nor_advances_the_global_random_state() -> None:
    x = palette(9, side=8)
    state = torch.get_rng_state()
    first = shot(x)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(shot(x), first)


def test_poisson_noise_has_one_field_in_single_and_double_precision_and_passes_gradients() -> None:
    x = palette(60, side=20)
    single = x.float()[None].requires_grad_()
    noisy = poisson_noise(single, torch.tensor([1.5], dtype=torch.float64), torch.tensor([3]))
    assert noisy.dtype == torch.float32
    torch.testing.assert_close(noisy[0].detach().double(), x + shot(x, scale=1.5), rtol=0, atol=1e-6)
    noisy.sum().backward()
    assert single.grad is not None
    assert torch.equal(single.grad, torch.ones_like(single))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_has_the_same_poisson_noise() -> None:
    x = torch.stack([palette(150), palette(3), palette(256)])
    scale, seed, grey = torch.tensor([1.0, 0.5, 2.0]), torch.tensor([1, 2, 3]), torch.tensor([False, True, False])
    on_cuda = poisson_noise(x.to("cuda"), scale, seed, grey)
    assert on_cuda.device.type == "cuda"
    torch.testing.assert_close(on_cuda.cpu(), poisson_noise(x, scale, seed, grey), rtol=0, atol=1e-9)
    grey_gauss = gaussian_noise(x.to("cuda"), scale, seed, grey).cpu()
    torch.testing.assert_close(grey_gauss, gaussian_noise(x, scale, seed, grey), rtol=0, atol=1e-12)
