"""Samplers: where they draw, and that adaptive draws spread the degraded distance evenly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bsr_plugins.degradations.samplers import AdaptiveSampler, PowerSampler, Sampler, UniformSampler, build_sampler
from bsr_plugins.errors import BSRError, OptionError

Curve = Callable[[Tensor], Tensor]
RANGES = st.lists(
    st.tuples(st.floats(-100, 100), st.floats(0, 100)).map(lambda drawn: (drawn[0], drawn[0] + drawn[1])),
    min_size=1,
    max_size=3,
)
RISING: Curve = lambda x: x.square() + 0.1 * x  # noqa: E731


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(curve: Curve = RISING, ranges: tuple[float, float] = (0.0, 1.0), grid: int = 65) -> AdaptiveSampler:
    """Fit an adaptive sampler to a curve over one parameter."""
    sampler = AdaptiveSampler(grid)
    sampler.fit(curve(sampler.nodes([ranges])[:, 0]))
    return sampler


def fitted_surface(surface: Callable[[Tensor, Tensor], Tensor]) -> AdaptiveSampler:
    sampler = AdaptiveSampler()
    nodes = sampler.nodes([(0.0, 1.0)] * 2)
    sampler.fit(surface(nodes[:, 0], nodes[:, 1]).view(sampler.grid_shape(2)))
    return sampler


def variation(values: Tensor, low: float, high: float, bins: int = 10) -> float:
    """Return the coefficient of variation of a histogram."""
    counts = torch.histc(values, bins, low, high)
    return float(counts.std(correction=0) / counts.mean())


@settings(max_examples=60, deadline=None)
@given(RANGES, st.integers(0, 50), st.floats(0.01, 100), st.integers(0, 1000))
def test_draws_lie_in_their_ranges(ranges: list[tuple[float, float]], count: int, gamma: float, seed: int) -> None:
    samplers: list[Sampler] = [UniformSampler(), PowerSampler(gamma), fitted(), fitted(lambda x: -x)]
    if len(ranges) > 1:
        samplers.append(fitted_surface(lambda x, y: x + y))
    for sampler in samplers:
        drawn = sampler.draw(ranges, count, generator(seed))
        assert drawn.shape == (count, len(ranges))
        assert drawn.dtype == torch.float64
        for (low, high), column in zip(ranges, drawn.T, strict=True):
            slack = 1e-12 * max(abs(low), abs(high), 1)
            assert bool(((column >= low - slack) & (column <= high + slack)).all())


@pytest.mark.parametrize("sampler", [UniformSampler(), PowerSampler(0.5), fitted()])
def test_a_range_of_one_value_gives_that_value(sampler: Sampler) -> None:
    drawn = sampler.draw([(2.5, 2.5), (0.0, 1.0)], 20, generator())
    assert set(drawn[:, 0].tolist()) == {2.5}
    assert len(set(drawn[:, 1].tolist())) == 20


@pytest.mark.parametrize("sampler", [UniformSampler(), PowerSampler(2.0), fitted(), fitted_surface(lambda x, y: x + y)])
def test_draws_depend_on_the_generator_alone(sampler: Sampler) -> None:
    ranges = [(0.2, 4.0), (0.2, 4.0), (0.0, math.pi)]
    state = torch.get_rng_state()
    first = sampler.draw(ranges, 9, generator(7))
    assert torch.equal(sampler.draw(ranges, 9, generator(7)), first)
    assert not torch.equal(sampler.draw(ranges, 9, generator(8)), first)
    assert torch.equal(torch.get_rng_state(), state), "no global random state is advanced"


def test_uniform_draws_are_even_up_to_both_ends_and_independent() -> None:
    drawn = UniformSampler().draw([(2.0, 5.0), (-1.0, 0.0)], 20_000, generator())
    for column, (low, high) in zip(drawn.T, [(2.0, 5.0), (-1.0, 0.0)], strict=True):
        assert variation(column, low, high) < 0.05
        assert float(column.min()) == pytest.approx(low, abs=1e-3)
        assert float(column.max()) == pytest.approx(high, abs=1e-3)
    assert abs(float(torch.corrcoef(drawn.T)[0, 1])) < 0.03


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_power_draws_follow_the_power_law(gamma: float) -> None:
    """`u^γ` lies below x with probability `x^(1/γ)`."""
    drawn = PowerSampler(gamma).draw([(1.0, 3.0)], 20_000, generator())[:, 0]
    for part in (0.1, 0.3, 0.5, 0.9):
        assert float((drawn < 1 + 2 * part).double().mean()) == pytest.approx(part ** (1 / gamma), abs=0.015)


def test_nodes_cover_the_ranges_with_the_last_parameter_fastest() -> None:
    curve = AdaptiveSampler(5).nodes([(1.0, 3.0)])
    assert curve.tolist() == [[1.0], [1.5], [2.0], [2.5], [3.0]]
    surface = AdaptiveSampler(5).nodes([(0.0, 8.0), (10.0, 18.0)])
    assert surface.shape == (81, 2)
    assert surface[:3].tolist() == [[0, 10], [0, 11], [0, 12]]
    assert surface[-1].tolist() == [8, 18]
    assert AdaptiveSampler(5).grid_shape(1) == (5,)
    assert AdaptiveSampler(5).grid_shape(2) == (9, 9)


CURVES: dict[str, Curve] = {
    "rising": RISING,
    "falling": lambda x: 3 - 2 * x.sqrt(),
    "saturating": lambda x: 1 - torch.exp(-8 * x),
    "steep at the end": lambda x: x**6,
    "flat, then rising": lambda x: (x - 0.3).clamp_min(0),
    "flat in the middle": lambda x: x.clamp_max(0.4) + (x - 0.7).clamp_min(0),
    "falling, flat at the end": lambda x: (0.6 - x).clamp_min(0),
    "falling with a small bump": lambda x: -x + 0.05 * torch.sin(40 * x),
}


@pytest.mark.parametrize("grid", [5, 64, 65, 81])
@pytest.mark.parametrize("name", CURVES)
def test_the_distance_of_adaptive_draws_is_exactly_uniform(name: str, grid: int) -> None:
    """With D piecewise linear between the nodes, D of a draw is the place of its u between D's ends."""
    curve, low, high = CURVES[name], 2.0, 6.0
    sampler = fitted(lambda x: curve((x - low) / (high - low)), (low, high), grid)
    nodes = torch.linspace(0, 1, grid, dtype=torch.float64)
    falling = bool(curve(nodes)[0] > curve(nodes)[-1])
    monotone = curve(nodes.flip(0) if falling else nodes).cummax(0).values
    monotone = monotone.flip(0) if falling else monotone

    units = torch.rand(500, 1, generator=generator(), dtype=torch.float64)[:, 0]
    places = (sampler.draw([(low, high)], 500, generator())[:, 0] - low) / (high - low) * (grid - 1)
    below = places.floor().long().clamp_max(grid - 2)
    distances = torch.lerp(monotone[below], monotone[below + 1], places - below)
    expected = monotone.min() + units * (monotone.max() - monotone.min())
    torch.testing.assert_close(distances, expected, rtol=0, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=5, max_size=40), st.booleans())
def test_adaptive_draws_are_monotone_in_their_quantile(steps: list[float], falling: bool) -> None:
    """Any measured curve: a higher D is drawn further along the parameter, and nothing leaves the range."""
    steps = [*steps, 1.0]
    distances = torch.tensor(steps, dtype=torch.float64).cumsum(0)
    sampler = AdaptiveSampler(len(steps))
    sampler.fit(distances.flip(0) if falling else distances)
    units = torch.rand(200, 1, generator=generator(), dtype=torch.float64)[:, 0]
    places = sampler.draw([(0.0, 1.0)], 200, generator())[units.argsort(), 0]
    moves = places.diff()
    assert bool((moves <= 1e-12).all() if falling else (moves >= -1e-12).all())
    assert 0 <= float(places.min()) <= float(places.max()) <= 1


SURFACES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, y: x + y,
    "product": lambda x, y: (x + 0.1) * (y + 0.1),
    "saturating": lambda x, y: 1 - torch.exp(-2 * (x + y)),
    "unequal": lambda x, y: 3 * x + y.square(),
}


@pytest.mark.parametrize("name", SURFACES)
def test_the_distance_over_two_parameters_is_uniform(name: str) -> None:
    surface = SURFACES[name]
    sampler = fitted_surface(surface)
    ends = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    low, high = surface(ends[:, 0], ends[:, 1]).tolist()
    adaptive, uniform = (
        variation(surface(*kind.draw([(0.0, 1.0)] * 2, 10_000, generator()).T), low, high)
        for kind in (sampler, UniformSampler())
    )
    assert adaptive < 0.1
    assert adaptive < uniform / 4


def test_among_equal_distances_draws_over_two_parameters_stay_even() -> None:
    """Where D = x + y is between 0.9 and 1.1, x − y is as widely spread as under uniform draws."""
    sampler = fitted_surface(lambda x, y: x + y)
    drawn = sampler.draw([(0.0, 1.0)] * 2, 60_000, generator())
    band = drawn[(drawn.sum(1) - 1).abs() < 0.1]
    assert variation(band[:, 0] - band[:, 1], -0.9, 0.9) < 0.1
    assert float(band[:, 0].mean()) == pytest.approx(0.5, abs=0.02)
    assert all(len(set(column.tolist())) == len(drawn) for column in drawn.T), "no draw is bound to a grid"


def test_parameters_beyond_the_measured_ones_stay_uniform() -> None:
    for sampler in (fitted(), fitted_surface(lambda x, y: x + y)):
        angles = sampler.draw([(0.2, 4.0), (0.2, 4.0), (0.0, math.pi)], 20_000, generator())[:, 2]
        assert variation(angles, 0, math.pi) < 0.05


def test_only_adaptive_samplers_need_calibration_and_once() -> None:
    assert not UniformSampler().needs_calibration
    assert not PowerSampler(2.0).needs_calibration
    assert AdaptiveSampler().needs_calibration
    assert not fitted().needs_calibration


def test_drawing_before_calibration_is_an_error() -> None:
    with pytest.raises(BSRError, match=r"^ads: the sampler has not been calibrated; call calibrate\(\) or load_"):
        AdaptiveSampler().draw([(0.0, 1.0)], 3, generator())


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (torch.arange(6.0), r"^here: distances of shape \(6,\), expected 5 or 9x9 finite numbers$"),
        (torch.arange(81.0), r"^here: distances of shape \(81,\), expected 5 or 9x9 finite numbers$"),
        (torch.tensor([0, 1, math.nan, 3, 4]), r"^here: distances of shape \(5,\), expected 5 or 9x9 finite numbers$"),
        (torch.tensor([0, 1, 2, 3, math.inf]), r"^here: distances of shape \(5,\), expected 5 or 9x9 finite numbers$"),
        (
            torch.full((5,), 1.5),
            r"^here: the degraded distance changes by 0 grey levels over the range, .* least 0\.001$",
        ),
        (torch.zeros(9, 9), r"^here: the degraded distance changes by 0 grey levels over the range, .* least 0\.001$"),
    ],
)
def test_distances_that_cannot_be_fitted(distances: Tensor, message: str) -> None:
    with pytest.raises(BSRError, match=message):
        AdaptiveSampler(5).fit(distances, "here")


def test_a_sampler_is_built_from_its_name_or_its_block() -> None:
    assert isinstance(build_sampler("uniform", "here"), UniformSampler)
    power = build_sampler({"type": "power", "gamma": 0.5}, "here")
    assert isinstance(power, PowerSampler)
    assert power.gamma == 0.5
    adaptive = build_sampler({"type": "ads", "grid": 33}, "here")
    assert isinstance(adaptive, AdaptiveSampler)
    assert adaptive.grid == 33


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            "unifrom",
            r"^here\.type: unknown name 'unifrom', expected one of ads, power, uniform; did you mean 'uniform'\?$",
        ),
        ("power", r"^here\.gamma: the key is missing$"),
        (["ads"], r"^here: expected a block with the key 'type', got \['ads'\]$"),
        ({"type": ["ads"]}, r"^here\.type: unknown name \['ads'\], expected one of ads, power, uniform"),
        ({"gamma": 2}, r"^here: the key 'type' is missing, expected one of ads, power, uniform$"),
        ({"type": "power", "gama": 2}, r"^here\.gama: unknown key, expected one of gamma; did you mean 'gamma'\?$"),
        ({"type": "power", "gamma": 0}, r"^here\.gamma: 0, expected a number above 0$"),
        ({"type": "power", "gamma": -1}, r"^here\.gamma: -1, expected a number in \[0, 100\]$"),
        ({"type": "power", "gamma": "2"}, r"^here\.gamma: '2', expected a number in \[0, 100\]$"),
        ({"type": "ads", "grid": 4}, r"^here\.grid: 4, expected a whole number at least 5$"),
        ({"type": "ads", "grid": 9.0}, r"^here\.grid: 9\.0, expected a whole number at least 5$"),
    ],
)
def test_bad_sampler_blocks(block: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_sampler(block, "here")  # type: ignore[arg-type]
