"""What the second-order pipeline draws: supports, means and probabilities, and what a batch shares."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from bsr_plugins.degradations import Params, SecondOrderDegradation
from bsr_plugins.degradations.second_order import kernels_of
from bsr_plugins.degradations.second_order_options import KERNELS
from plain_degradations import PlainSecondOrder

COUNT = 12_000
DEVIATIONS = 4.5  # of a normal variable: 1 in 150,000

# what differs between the rounds, as the paper's supplement and the released training have it
ROUNDS: dict[str, dict[str, Any]] = {
    "first": {
        "blur": 1.0,
        "sigma": (0.2, 3.0),
        "directions": (0.2, 0.7, 0.1),
        "resize": (0.15, 1.5),
        "gaussian": (1, 30),
        "poisson": (0.05, 3),
    },
    "second": {
        "blur": 0.8,
        "sigma": (0.2, 1.5),
        "directions": (0.3, 0.4, 0.3),
        "resize": (0.3, 1.2),
        "gaussian": (1, 25),
        "poisson": (0.05, 2.5),
    },
}
FAMILY_PROBS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
SHARED_BY_A_BATCH = {
    *("first_resize", "first_mode", "second_resize", "second_mode", "final_mode", "final_jpeg_last"),
}


@pytest.fixture(scope="module")
def drawn() -> Params:
    return SecondOrderDegradation(4, per_sample=True).sample(COUNT, torch.Generator().manual_seed(0))


def assert_probability(happened: Tensor, prob: float) -> None:
    """Within what a binomial variable does by chance."""
    deviation = math.sqrt(prob * (1 - prob) / len(happened))
    assert float(happened.double().mean()) == pytest.approx(prob, abs=DEVIATIONS * deviation + 1e-12)


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    """In the range, up to its ends, and with a uniform variable's distribution."""
    width = high - low
    assert low <= float(values.min()) <= low + 10 * width / len(values)
    assert high - 10 * width / len(values) <= float(values.max()) <= high
    places = ((values - low) / width).sort().values
    gap = (places - torch.arange(len(values), dtype=torch.float64) / len(values)).abs().max()
    assert float(gap) < 2.2 / math.sqrt(len(values)), "Kolmogorov-Smirnov, 1 in 10,000"


@pytest.mark.parametrize("name", ROUNDS)
def test_kernels_are_drawn_by_their_probabilities(drawn: Params, name: str) -> None:
    kernel, blurs = drawn[f"{name}_kernel"], ROUNDS[name]["blur"]
    expected = [1 - blurs, *(blurs * 0.9 * prob for prob in FAMILY_PROBS), blurs * 0.1]
    for kind, prob in enumerate(expected):
        assert_probability(kernel == kind, prob)


@pytest.mark.parametrize("name", ROUNDS)
def test_widths_angles_and_exponents(drawn: Params, name: str) -> None:
    kernel = drawn[f"{name}_kernel"]
    is_a = {kind: kernel == index for index, kind in enumerate(KERNELS)}
    turned = is_a["aniso"] | is_a["generalized_aniso"] | is_a["plateau_aniso"]
    round_ones = is_a["iso"] | is_a["generalized_iso"] | is_a["plateau_iso"]
    lambda1, lambda2, theta, beta = (drawn[f"{name}_{key}"] for key in ("lambda1", "lambda2", "theta", "beta"))
    assert_uniform(lambda1[turned | round_ones], *ROUNDS[name]["sigma"])
    assert_uniform(lambda2[turned], *ROUNDS[name]["sigma"])
    assert_uniform(theta[turned], -math.pi, math.pi)
    both = torch.stack([lambda1[turned], lambda2[turned], theta[turned]])
    assert float((torch.corrcoef(both) - torch.eye(3)).abs().max()) < DEVIATIONS / math.sqrt(int(turned.sum()))
    assert torch.equal(lambda1[round_ones], lambda2[round_ones])
    assert not bool(theta[~turned].any())
    assert not bool(torch.stack([lambda1, lambda2, beta])[:, is_a["sinc"] | is_a["none"]].any())
    assert bool((beta[is_a["iso"] | is_a["aniso"]] == 1).all())

    generalized = beta[is_a["generalized_iso"] | is_a["generalized_aniso"]]
    assert_probability(generalized < 1, 0.5)
    assert_uniform(generalized[generalized < 1], 0.5, 1)
    assert_uniform(generalized[generalized > 1], 1, 4)
    plateau = beta[is_a["plateau_iso"] | is_a["plateau_aniso"]]
    assert_probability(plateau == 1, 0.5)
    assert_uniform(plateau[plateau != 1], 1, 2)


@pytest.mark.parametrize("name", [*ROUNDS, "final"])
def test_taps_and_cutoffs(drawn: Params, name: str) -> None:
    kernel, taps, cutoff = (drawn[f"{name}_{key}"] for key in ("kernel", "taps", "cutoff"))
    none, sinc = kernel == 0, kernel == KERNELS.index("sinc")
    assert not bool(taps[none].any())
    assert not bool(cutoff[~sinc].any())
    for size in range(7, 22, 2):
        assert_probability(taps[~none] == size, 1 / 8)
    assert set(taps[~none].tolist()) == set(range(7, 22, 2))
    large = sinc & (taps >= 13)
    assert_uniform(cutoff[sinc & ~large], math.pi / 3, math.pi)
    assert_uniform(cutoff[large], math.pi / (3 if name == "final" else 5), math.pi)


@pytest.mark.parametrize("name", ROUNDS)
def test_resizes(drawn: Params, name: str) -> None:
    scale, (low, high) = drawn[f"{name}_resize"], ROUNDS[name]["resize"]
    for happened, prob in zip((scale > 1, scale < 1, scale == 1), ROUNDS[name]["directions"], strict=True):
        assert_probability(happened, prob)
    assert_uniform(scale[scale > 1], 1, high)
    assert_uniform(scale[scale < 1], low, 1)


@pytest.mark.parametrize("name", [*ROUNDS, "final"])
def test_modes(drawn: Params, name: str) -> None:
    for mode in range(3):
        assert_probability(drawn[f"{name}_mode"] == mode, 1 / 3)


@pytest.mark.parametrize("name", ROUNDS)
def test_noise_and_jpeg(drawn: Params, name: str) -> None:
    gaussian, poisson = drawn[f"{name}_gaussian"], drawn[f"{name}_poisson"]
    assert bool(((gaussian > 0) ^ (poisson > 0)).all()), "one or the other"
    assert_probability(gaussian > 0, 0.5)
    assert_uniform(gaussian[gaussian > 0], *ROUNDS[name]["gaussian"])
    assert_uniform(poisson[poisson > 0], *ROUNDS[name]["poisson"])
    for members in (gaussian > 0, poisson > 0):
        assert_probability(drawn[f"{name}_grey"][members], 0.4)
    assert_uniform(drawn[f"{name}_quality"], 30, 95)
    assert len(set(drawn[f"{name}_noise_seed"].tolist())) == COUNT
    assert int(drawn[f"{name}_noise_seed"].min()) >= 0


def test_last_steps(drawn: Params) -> None:
    assert_probability(drawn["final_kernel"] == KERNELS.index("sinc"), 0.8)
    assert_probability(drawn["final_kernel"] == 0, 0.2)
    assert_probability(drawn["final_jpeg_last"], 0.5)


def test_what_is_drawn_once_a_batch() -> None:
    degradation, generator = SecondOrderDegradation(4), torch.Generator().manual_seed(1)
    batches = [degradation.sample(8, generator) for _ in range(600)]
    columns = {name: torch.stack([params[name] for params in batches]) for name in batches[0]}
    # whether it is of one kind or another is shared, though the values differ from image to image
    for name in ROUNDS:
        columns[f"{name} is noisy by photons"] = columns[f"{name}_poisson"] > 0
        columns[f"{name} blurs"] = columns[f"{name}_kernel"] != 0
    equal = {name for name, column in columns.items() if bool((column == column[:, :1]).all())}
    kinds = {f"{name} {what}" for name in ROUNDS for what in ("is noisy by photons", "blurs")}
    assert equal == SHARED_BY_A_BATCH | kinds
    assert_probability(columns["second blurs"][:, 0], 0.8)
    assert_probability(columns["first is noisy by photons"][:, 0], 0.5)
    assert_probability(columns["first_resize"][:, 0] > 1, 0.2)
    assert_probability(columns["final_jpeg_last"][:, 0], 0.5)
    assert_probability(columns["first_grey"].flatten(), 0.4)
    assert_uniform(columns["second_quality"].flatten(), 30, 95)


def test_per_sample_nothing_is_shared(drawn: Params) -> None:
    """Neighbours in a batch are as independent as any two draws, for whatever the released code draws once a batch."""
    once = {name: drawn[name].double() for name in SHARED_BY_A_BATCH}
    once |= {f"{name} poisson": (drawn[f"{name}_poisson"] > 0).double() for name in ROUNDS}
    once["second blurs"] = (drawn["second_kernel"] != 0).double()
    for name, column in once.items():
        correlation = torch.corrcoef(torch.stack([column[:-1], column[1:]]))[0, 1]
        assert abs(float(correlation)) < DEVIATIONS / math.sqrt(COUNT), name


def test_columns_are_tensors_on_the_cpu_with_the_batch_first(drawn: Params) -> None:
    for per_sample in (False, True):
        degradation = SecondOrderDegradation(2, per_sample=per_sample)
        for batch in (0, 1, 5):
            params = degradation.sample(batch, torch.Generator().manual_seed(3))
            assert set(params) == set(drawn)
            assert all(column.shape == (batch,) and column.device.type == "cpu" for column in params.values())
            assert {name: column.dtype for name, column in params.items()} == {
                name: column.dtype for name, column in drawn.items()
            }
    counts = [name for name, column in drawn.items() if column.dtype == torch.int64]
    assert {name.split("_", 1)[1] for name in counts} == {"kernel", "taps", "mode", "noise_seed"}
    flags = [name for name, column in drawn.items() if column.dtype == torch.bool]
    assert flags == ["first_grey", "second_grey", "final_jpeg_last"]


def test_the_generator_alone_decides() -> None:
    degradation = SecondOrderDegradation(4)
    state = torch.random.get_rng_state()
    one, again, other = (degradation.sample(6, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["first_quality"], other["first_quality"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_exponents_on_one_side_of_the_gaussian_are_drawn_evenly() -> None:
    blur = {"families": {"generalized_iso": 0.5, "plateau_aniso": 0.5}, "betag": [2, 6], "betap": [0.2, 0.8]}
    params = SecondOrderDegradation(4, first={"blur": {**blur, "sinc_prob": 0}}).sample(
        4000, torch.Generator().manual_seed(0)
    )
    generalized = params["first_kernel"] == KERNELS.index("generalized_iso")
    assert_uniform(params["first_beta"][generalized], 2, 6)
    assert_uniform(params["first_beta"][~generalized], 0.2, 0.8)


@pytest.fixture
def _seeded_globally() -> Iterator[None]:
    """BasicSR draws from the global generators; they are put back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


@pytest.mark.usefixtures("_seeded_globally")
def test_kernels_are_distributed_as_those_of_basicsr(drawn: Params) -> None:
    """By four numbers that tell kernels apart: the tap at the centre, its neighbour, the widths along x and xy."""
    count = 2500
    basicsr = PlainSecondOrder(4, torch.zeros(1, 3, 96, 96)).kernels(count)
    axis = torch.arange(-10, 11, dtype=torch.float64)
    for name, theirs in {"first": "kernel1", "second": "kernel2", "final": "sinc_kernel"}.items():
        params = {key: column[drawn["second_kernel"] != 0][:count] for key, column in drawn.items()}
        ours = kernels_of(params, name, torch.empty(0, dtype=torch.float64))
        assert ours.shape == basicsr[theirs].shape == (count, 21, 21)
        for weights in ("centre", "neighbour", "xx", "xy"):
            measured = []
            for kernels in (ours, basicsr[theirs].double()):
                moments = {"xx": axis.square() * torch.ones(21, 1), "xy": axis * axis[:, None]}
                measured.append(
                    kernels[:, 10, 10 + (weights == "neighbour")]
                    if weights in ("centre", "neighbour")
                    else (kernels * moments[weights]).sum((1, 2)).round(decimals=6)
                )
            assert ks_2samp(*(values.numpy() for values in measured)).pvalue > 1e-4, (name, weights)
