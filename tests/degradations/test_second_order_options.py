"""The blocks of the second-order pipeline: their defaults, what they change, and one line on what cannot be used."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from bsr_plugins.degradations import Params, SecondOrderDegradation, build_degradation
from bsr_plugins.degradations.second_order_options import KERNELS
from bsr_plugins.errors import BSRError, OptionError


def build(**options: Any) -> SecondOrderDegradation:
    degradation = build_degradation({"type": "SecondOrderDegradation", **options}, 4)
    assert isinstance(degradation, SecondOrderDegradation)
    return degradation


def draw(count: int = 300, **options: Any) -> Params:
    return build(per_sample=True, **options).sample(count, torch.Generator().manual_seed(0))


def test_released_settings_are_the_defaults() -> None:
    """Every key given, with its default: the same draws as from a bare block."""
    families = {"iso": 0.45, "aniso": 0.25, "generalized_iso": 0.12, "generalized_aniso": 0.03}
    families |= {"plateau_iso": 0.12, "plateau_aniso": 0.03}
    blur = {"sinc_prob": 0.1, "families": families, "theta": [-180, 180], "betag": [0.5, 4], "betap": [1, 2]}
    blur |= {"kernel_size": [7, 21]}
    modes = ["area", "bilinear", "bicubic"]
    odds = {"gaussian_prob": 0.5, "grey_prob": 0.4}
    first = {
        "blur": {"prob": 1.0, "sigma": [0.2, 3], **blur},
        "resize": {"prob": {"up": 0.2, "down": 0.7, "keep": 0.1}, "scale": [0.15, 1.5], "modes": modes},
        "noise": {"gaussian": [1, 30], "poisson": [0.05, 3], **odds},
        "jpeg": {"quality": [30, 95]},
    }
    second = {
        "blur": {"prob": 0.8, "sigma": [0.2, 1.5], **blur},
        "resize": {"prob": {"up": 0.3, "down": 0.4, "keep": 0.3}, "scale": [0.3, 1.2], "modes": modes},
        "noise": {"gaussian": [1, 25], "poisson": [0.05, 2.5], **odds},
        "jpeg": {"quality": [30, 95]},
    }
    final = {"sinc_prob": 0.8, "kernel_size": [7, 21], "modes": modes, "jpeg_last_prob": 0.5}
    whole, bare = draw(first=first, second=second, final=final), draw()
    assert all(torch.equal(whole[name], bare[name]) for name in bare)
    degradation = build()
    assert degradation.usm
    assert not degradation.per_sample
    assert degradation.round_to_8bit
    assert degradation.kernel_size is None


def test_one_key_of_a_block_leaves_the_others_at_the_rounds_defaults() -> None:
    changed = draw(second={"noise": {"grey_prob": 1}, "blur": {"kernel_size": 9}})
    default = draw()
    assert bool(changed["second_grey"].all())
    assert set(changed["second_taps"].tolist()) == {0, 9}
    for name in ("first_gaussian", "second_gaussian", "second_lambda1", "second_resize", "final_cutoff"):
        assert torch.equal(changed[name], default[name]), name


ROUND_OPTIONS: list[tuple[dict[str, Any], str, set[float]]] = [
    ({"blur": {"prob": 0}}, "kernel", {0}),
    ({"blur": {"sinc_prob": 1, "prob": 1}}, "kernel", {KERNELS.index("sinc")}),
    (
        {"blur": {"families": {"plateau_iso": 1}, "sinc_prob": 0, "prob": 1}},
        "kernel",
        {KERNELS.index("plateau_iso")},
    ),
    ({"blur": {"families": {"aniso": 1.0}, "sinc_prob": 0, "sigma": 0.7, "prob": 1}}, "lambda2", {0.7}),
    ({"blur": {"families": {"aniso": 1.0}, "sinc_prob": 0, "theta": 90, "prob": 1}}, "theta", {math.pi / 2}),
    ({"blur": {"families": {"generalized_iso": 1}, "sinc_prob": 0, "betag": 3, "prob": 1}}, "beta", {3}),
    ({"blur": {"families": {"plateau_aniso": 1}, "sinc_prob": 0, "betap": 2, "prob": 1}}, "beta", {2}),
    ({"blur": {"kernel_size": [3, 7], "prob": 1}}, "taps", {3, 5, 7}),
    ({"resize": {"prob": {"keep": 1}}}, "resize", {1}),
    ({"resize": {"prob": {"up": 0.5, "keep": 0.5}, "scale": 1}}, "resize", {1}),
    ({"resize": {"modes": ["bicubic", "area"]}}, "mode", {0, 2}),
    ({"resize": {"modes": "bilinear"}}, "mode", {1}),
    ({"noise": {"gaussian_prob": 0}}, "gaussian", {0}),
    ({"noise": {"gaussian_prob": 1}}, "poisson", {0}),
    ({"noise": {"gaussian_prob": 1, "gaussian": 7}}, "gaussian", {7}),
    ({"noise": {"gaussian_prob": 0, "poisson": 0.5}}, "poisson", {0.5}),
    ({"noise": {"grey_prob": 0}}, "grey", {0}),
    ({"jpeg": {"quality": 50}}, "quality", {50}),
]


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize(("block", "key", "values"), ROUND_OPTIONS)
def test_every_option_of_a_round(name: str, block: dict[str, Any], key: str, values: set[float]) -> None:
    other = "second" if name == "first" else "first"
    options: dict[str, Any] = {name: block}
    changed, default = draw(**options), draw()
    assert set(changed[f"{name}_{key}"].tolist()) == values
    assert not torch.equal(changed[f"{name}_{key}"], default[f"{name}_{key}"])
    assert torch.equal(changed[f"{other}_{key}"], default[f"{other}_{key}"])


@pytest.mark.parametrize(
    ("block", "key", "values"),
    [
        ({"sinc_prob": 0}, "kernel", {0}),
        ({"kernel_size": 15}, "taps", {0, 15}),
        ({"modes": ["area"]}, "mode", {0}),
        ({"jpeg_last_prob": 0}, "jpeg_last", {0}),
        ({"jpeg_last_prob": 1}, "jpeg_last", {1}),
    ],
)
def test_every_option_of_the_last_steps(block: dict[str, Any], key: str, values: set[float]) -> None:
    assert set(draw(final=block)[f"final_{key}"].tolist()) == values


PAIR = ", or a pair of them, the lower end first"
ODD = f"expected an odd number{PAIR}"
SOME = "expected a list of some of area, bilinear, bicubic, each once"
# (options, the message after `degradation.`)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"scale": 0}, "scale: 0, expected a whole number at least 1"),
    ({"usm": "yes"}, "usm: 'yes', expected true or false"),
    ({"per_sample": 1}, "per_sample: 1, expected true or false"),
    ({"round_to_8bit": None}, "round_to_8bit: None, expected true or false"),
    (
        {"frist": {}},
        "frist: unknown key, expected one of scale, usm, per_sample, round_to_8bit, first, second, final; "
        "did you mean 'first'?",
    ),
    ({"first": 3}, "first: 3, expected a block of keys"),
    ({"first": {"jpg": {}}}, "first.jpg: unknown key, expected one of blur, resize, noise, jpeg; did you mean 'jpeg'?"),
    ({"second": {"blur": [1]}}, "second.blur: [1], expected a block of keys"),
    (
        {"second": {"blur": {"sigmas": 1}}},
        "second.blur.sigmas: unknown key, expected one of prob, sigma, sinc_prob, families, theta, betag, betap, "
        "kernel_size; did you mean 'sigma'?",
    ),
    ({"first": {"blur": {"prob": 1.1}}}, "first.blur.prob: 1.1, expected a number in [0, 1]"),
    ({"first": {"blur": {"sigma": [0, 3]}}}, f"first.blur.sigma: [0, 3], expected a number above 0{PAIR}"),
    (
        {"first": {"blur": {"sigma": [0.2, 11]}}},
        "first.blur.sigma: [0.2, 11.0], expected at most 10.5, half of kernel_size",
    ),
    ({"second": {"blur": {"sigma": [1.5, 0.2]}}}, f"second.blur.sigma: [1.5, 0.2], expected a number above 0{PAIR}"),
    ({"first": {"blur": {"sinc_prob": -0.1}}}, "first.blur.sinc_prob: -0.1, expected a number in [0, 1]"),
    (
        {"first": {"blur": {"families": {"iso": 0.5, "aniso": 0.4}}}},
        "first.blur.families: {'iso': 0.5, 'aniso': 0.4}, expected probabilities that sum to 1",
    ),
    (
        {"first": {"blur": {"families": {"plateau": 1}}}},
        "first.blur.families.plateau: unknown key, expected one of iso, aniso, generalized_iso, generalized_aniso, "
        "plateau_iso, plateau_aniso; did you mean 'plateau_iso'?",
    ),
    ({"first": {"blur": {"families": {"iso": 2}}}}, "first.blur.families.iso: 2, expected a number in [0, 1]"),
    (
        {"first": {"blur": {"families": ["iso"]}}},
        "first.blur.families: ['iso'], expected a block of keys",
    ),
    ({"first": {"blur": {"theta": [0, 720]}}}, f"first.blur.theta: [0, 720], expected a number in [-360, 360]{PAIR}"),
    ({"first": {"blur": {"betag": [0, 4]}}}, f"first.blur.betag: [0, 4], expected a number in (0, 100]{PAIR}"),
    ({"first": {"blur": {"betap": -1}}}, f"first.blur.betap: -1, expected a number in (0, 100]{PAIR}"),
    ({"first": {"blur": {"kernel_size": [6, 21]}}}, f"first.blur.kernel_size: [6, 21], {ODD}"),
    ({"first": {"blur": {"kernel_size": [9, 7]}}}, f"first.blur.kernel_size: [9, 7], {ODD}"),
    (
        {"first": {"blur": {"kernel_size": [7.0, 21]}}},
        f"first.blur.kernel_size: [7.0, 21], {ODD}",
    ),
    (
        {"first": {"blur": {"kernel_size": [7, 9, 11]}}},
        f"first.blur.kernel_size: [7, 9, 11], {ODD}",
    ),
    ({"first": {"resize": {"scale": [0, 1.5]}}}, f"first.resize.scale: [0, 1.5], expected a number in (0, 8]{PAIR}"),
    (
        {"first": {"resize": {"scale": [1.1, 1.5]}}},
        "first.resize.scale: [1.1, 1.5], expected a pair [low, high] with low ≤ 1 ≤ high",
    ),
    (
        {"second": {"resize": {"prob": {"up": 0.3, "down": 0.4, "stay": 0.3}}}},
        "second.resize.prob.stay: unknown key, expected one of up, down, keep",
    ),
    (
        {"second": {"resize": {"prob": [0.3, 0.4, 0.3]}}},
        "second.resize.prob: [0.3, 0.4, 0.3], expected a block of keys",
    ),
    (
        {"first": {"resize": {"modes": ["area", "cubic"]}}},
        f"first.resize.modes: ['area', 'cubic'], {SOME}; did you mean 'bicubic'?",
    ),
    (
        {"first": {"resize": {"modes": []}}},
        f"first.resize.modes: [], {SOME}",
    ),
    (
        {"first": {"resize": {"modes": ["area", "area"]}}},
        f"first.resize.modes: ['area', 'area'], {SOME}",
    ),
    (
        {"first": {"noise": {"gaussian": [1, 300]}}},
        f"first.noise.gaussian: [1, 300], expected a number in [0, 255]{PAIR}",
    ),
    ({"first": {"noise": {"poisson": -1}}}, f"first.noise.poisson: -1, expected a number in [0, 100]{PAIR}"),
    (
        {"first": {"noise": {"gray_prob": 0.4}}},
        "first.noise.gray_prob: unknown key, expected one of gaussian, poisson, gaussian_prob, grey_prob; "
        "did you mean 'grey_prob'?",
    ),
    (
        {"second": {"noise": {"gaussian_prob": "half"}}},
        "second.noise.gaussian_prob: 'half', expected a number in [0, 1]",
    ),
    ({"second": {"noise": {"grey_prob": math.nan}}}, "second.noise.grey_prob: nan, expected a finite number"),
    ({"second": {"jpeg": {"quality": [0, 95]}}}, f"second.jpeg.quality: [0, 95], expected a number in [1, 100]{PAIR}"),
    ({"final": {"sinc_prob": 2}}, "final.sinc_prob: 2, expected a number in [0, 1]"),
    ({"final": {"kernel_size": 8}}, f"final.kernel_size: 8, {ODD}"),
    ({"final": {"modes": 1}}, f"final.modes: 1, {SOME}"),
    ({"final": {"jpeg_last_prob": True}}, "final.jpeg_last_prob: True, expected a number in [0, 1]"),
    (
        {"final": {"jpeg": {}}},
        "final.jpeg: unknown key, expected one of sinc_prob, kernel_size, modes, jpeg_last_prob",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_blocks_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        build(**options)
    assert str(caught.value) == f"degradation.{message}"


# (parameters of a sample, the message's end)
BAD_PARAMS: list[tuple[dict[str, float], str]] = [
    ({"first_kernel": 8}, "first_kernel is 8, expected the number of a kernel"),
    ({"final_kernel": 1}, "final_kernel is 1, expected the number of a kernel"),
    ({"second_taps": 8}, "second_taps is 8, expected an odd number"),
    ({"first_kernel": 7, "first_cutoff": 4.0}, "first_cutoff is 4.0, expected a number in (0, π]"),
    ({"first_lambda2": 0.0}, "first_lambda2 is 0.0, expected a number above 0"),
    ({"second_beta": math.nan}, "second_beta is nan, expected a number above 0"),
    ({"first_resize": 0.0}, "first_resize is 0.0, expected a number above 0"),
    ({"first_mode": 3}, "first_mode is 3, expected the number of a mode"),
    ({"second_gaussian": -1.0}, "second_gaussian is -1.0, expected a number of at least 0"),
    ({"first_poisson": math.nan}, "first_poisson is nan, expected a number of at least 0"),
    ({"second_quality": 0.5}, "second_quality is 0.5, expected a number in [1, 100], or 0 for none"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_PARAMS)
def test_parameters_out_of_range(changes: dict[str, float], message: str) -> None:
    degradation = build(first={"blur": {"sinc_prob": 0}}, second={"blur": {"sinc_prob": 0, "prob": 1}})
    params = degradation.sample(2, torch.Generator().manual_seed(0))
    gt = torch.zeros(2, 3, 96, 96)
    degradation(gt, params)
    for name, value in changes.items():
        params[name][1] = value
    with pytest.raises(BSRError, match=f"^degradation: the parameter {re.escape(message)}$"):
        degradation(gt, params)


def test_parameters_that_are_missing_or_too_few() -> None:
    degradation = build()
    params = degradation.sample(2, torch.Generator().manual_seed(0))
    for name in params:
        message = rf"^degradation: the parameter {name} is missing or not given for 2 samples$"
        few = {**params, name: params[name][:1]}
        none = {key: column for key, column in params.items() if key != name}
        for wrong in (few, none):
            with pytest.raises(BSRError, match=message):
                degradation(torch.zeros(2, 3, 96, 96), wrong)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 98, 96), "degradation: images of 98x96 pixels, expected sides that are multiples of 4"),
        ((1, 1, 96, 96), "degradation: images of shape (1, 1, 96, 96), expected (B, …, 3, H, W)"),
        ((3, 96, 96), "degradation: images of shape (3, 96, 96), expected (B, …, 3, H, W)"),
        (
            (1, 3, 40, 96),
            "degradation: images of 40x96 pixels, expected sides of at least 44 for the drawn kernels and factors",
        ),
    ],
)
def test_images_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    degradation = build(final={"kernel_size": 21, "sinc_prob": 1}, first={"resize": {"prob": {"keep": 1}}})
    params = degradation.sample(1, torch.Generator().manual_seed(0))
    with pytest.raises(BSRError, match=f"^{re.escape(message)}$"):
        degradation(torch.zeros(shape), params)
