"""Bad input to degradations: one line that names the key, the value and what was expected."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from bsr_plugins.degradations import ClassicalDegradation, Params, build_degradation, classical_params
from bsr_plugins.errors import BSRError, OptionError

AWAY = object()  # the key is left out

# (what is changed in a block that can be used, the whole message)
BLOCKS: list[tuple[dict[str, Any], str]] = [
    (
        {"type": AWAY},
        "degradation: the key 'type' is missing, expected one of ClassicalDegradation, SecondOrderDegradation",
    ),
    (
        {"type": "ClasicalDegradation"},
        "degradation.type: unknown name 'ClasicalDegradation', expected one of ClassicalDegradation, "
        "SecondOrderDegradation; did you mean 'ClassicalDegradation'?",
    ),
    (
        {"type": None},
        "degradation.type: unknown name None, expected one of ClassicalDegradation, SecondOrderDegradation",
    ),
    ({"scale": AWAY}, "degradation.scale: the key is missing"),
    ({"scale": 0}, "degradation.scale: 0, expected a whole number at least 1"),
    ({"scale": 2.0}, "degradation.scale: 2.0, expected a whole number at least 1"),
    ({"scale": "4"}, "degradation.scale: '4', expected a whole number at least 1"),
    ({"scale": True}, "degradation.scale: True, expected a whole number at least 1"),
    ({"kernel_size": 20}, "degradation.kernel_size: 20, expected an odd number"),
    ({"kernel_size": -1}, "degradation.kernel_size: -1, expected a whole number at least 1"),
    (
        {"border": "mirrored"},
        "degradation.border: unknown name 'mirrored', expected one of clamp, mirror; did you mean 'mirror'?",
    ),
    ({"round_to_8bit": "no"}, "degradation.round_to_8bit: 'no', expected true or false"),
    ({"round_to_8bit": 0}, "degradation.round_to_8bit: 0, expected true or false"),
    (
        {"jepg": {"quality": 50}},
        "degradation.jepg: unknown key, expected one of scale, kernel_size, border, round_to_8bit, types, "
        "sampler, blur_iso, blur_aniso, blur_motion, noise, jpeg; did you mean 'jpeg'?",
    ),
    ({"blur_iso": 2.0}, "degradation.blur_iso: 2.0, expected a block of keys and values"),
    ({"blur_iso": {}}, "degradation.blur_iso.sigma: the key is missing"),
    (
        {"blur_iso": {"sigmas": [1, 2]}},
        "degradation.blur_iso.sigmas: unknown key, expected one of sigma, sampler; did you mean 'sigma'?",
    ),
    (
        {"blur_iso": {"sigma": 1, "kernel_size": 7}},
        "degradation.blur_iso.kernel_size: unknown key, expected one of sigma, sampler",
    ),
    ({"blur_iso": {"sigma": 1, 3: 4}}, "degradation.blur_iso.3: unknown key, expected one of sigma, sampler"),
    ({"blur_iso": {"sigma": [0.2, 11]}}, "degradation.blur_iso.sigma: 11, expected a number in [0, 10.5]"),
    ({"blur_iso": {"sigma": -0.1}}, "degradation.blur_iso.sigma: -0.1, expected a number in [0, 10.5]"),
    ({"blur_iso": {"sigma": [4, 0.2]}}, "degradation.blur_iso.sigma: [4, 0.2], expected the lower end first"),
    (
        {"blur_iso": {"sigma": [0.2, 1, 4]}},
        "degradation.blur_iso.sigma: [0.2, 1, 4], expected a number or a pair [low, high]",
    ),
    ({"blur_iso": {"sigma": "0.2"}}, "degradation.blur_iso.sigma: '0.2', expected a number in [0, 10.5]"),
    ({"blur_iso": {"sigma": math.nan}}, "degradation.blur_iso.sigma: nan, expected a number in [0, 10.5]"),
    (
        {"kernel_size": 7, "blur_iso": {"sigma": [0.2, 4]}},
        "degradation.blur_iso.sigma: 4, expected a number in [0, 3.5]",
    ),
    (
        {"blur_aniso": {"sigma": [0, 4]}},
        "degradation.blur_aniso.sigma: [0, 4], expected widths above 0 (σ = 0 is for isotropic kernels only)",
    ),
    (
        {"blur_aniso": {"sigma": 2, "theta": [0, 720]}},
        "degradation.blur_aniso.theta: 720, expected a number in [-360, 360]",
    ),
    ({"noise": {"level": [0, 256]}}, "degradation.noise.level: 256, expected a number in [0, 255]"),
    ({"noise": {"level": -1}}, "degradation.noise.level: -1, expected a number in [0, 255]"),
    ({"jpeg": {"quality": [0, 95]}}, "degradation.jpeg.quality: 0, expected a number in [1, 100]"),
    ({"jpeg": {"quality": [30, 101]}}, "degradation.jpeg.quality: 101, expected a number in [1, 100]"),
    (
        {"types": ["iso", "anisso"]},
        "degradation.types: in 'anisso': unknown name 'anisso', expected one of aniso, bicubic, iso, jpeg, motion, "
        "noise; did you mean 'aniso'?",
    ),
    (
        {"types": ["iso + noise"]},
        "degradation.types: in 'iso + noise': unknown name 'iso ', expected one of aniso, bicubic, iso, jpeg, motion, "
        "noise; did you mean 'iso'?",
    ),
    ({"types": ["jpeg"], "jpeg": AWAY}, "degradation.types: 'jpeg' needs the block jpeg"),
    ({"types": ["iso+noise+iso"]}, "degradation.types: 'iso+noise+iso', expected each stage once and at most one blur"),
    ({"types": ["iso+aniso"]}, "degradation.types: 'iso+aniso', expected each stage once and at most one blur"),
    ({"types": AWAY}, "degradation.types: 'iso+aniso+noise+jpeg', expected each stage once and at most one blur"),
    ({"types": []}, "degradation.types: the list is empty, expected at least one type"),
    ({"types": "iso"}, "degradation.types: 'iso', expected a list such as [bicubic, iso]"),
    (
        {"sampler": "asd"},
        "degradation.sampler.type: unknown name 'asd', expected one of ads, power, uniform; did you mean 'ads'?",
    ),
    (
        {"blur_iso": {"sigma": 1, "sampler": {"type": "ads", "gird": 9}}},
        "degradation.blur_iso.sampler.gird: unknown key, expected one of grid; did you mean 'grid'?",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BLOCKS)
def test_blocks_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    good = {
        "type": "ClassicalDegradation",
        "scale": 4,
        "blur_iso": {"sigma": [0.2, 4.0]},
        "blur_aniso": {"sigma": [0.2, 4.0]},
        "noise": {"level": [0, 25]},
        "jpeg": {"quality": [30, 95]},
        "types": ["iso", "aniso+noise"],
    }
    build_degradation(good)
    block = {key: value for key, value in {**good, **changes}.items() if value is not AWAY}
    with pytest.raises(OptionError) as caught:
        build_degradation(block)
    assert str(caught.value) == message
    assert "\n" not in message


@pytest.mark.parametrize("block", [None, "ClassicalDegradation", ["ClassicalDegradation"]])
def test_what_is_no_block(block: Any) -> None:
    with pytest.raises(OptionError, match=r"^degradation: expected a block with the key 'type', got "):
        build_degradation(block)


def test_the_block_is_left_as_it_was() -> None:
    block = {"type": "ClassicalDegradation", "scale": 2, "blur_iso": {"sigma": 1.0, "sampler": {"type": "ads"}}}
    kept = {**block, "blur_iso": {"sigma": 1.0, "sampler": {"type": "ads"}}}
    build_degradation(block)
    assert block == kept


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 50, 48), "degradation: images of 50x48 pixels, expected sides that are multiples of 4"),
        ((1, 3, 48, 50), "degradation: images of 48x50 pixels, expected sides that are multiples of 4"),
        ((3, 48, 48), "degradation: images of shape (3, 48, 48), expected (B, …, 3, H, W)"),
        ((1, 1, 48, 48), "degradation: images of shape (1, 1, 48, 48), expected (B, …, 3, H, W)"),
        ((1, 2, 4, 48, 48), "degradation: images of shape (1, 2, 4, 48, 48), expected (B, …, 3, H, W)"),
        ((2, 3, 48, 48), "degradation: the parameter lambda1 is missing or not given for 2 samples"),
        (
            (1, 3, 8, 64),
            "blur: an image of 8x64 pixels is too small for a kernel of 21 taps, expected sides above 10",
        ),
    ],
)
def test_images_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    for params in (classical_params(1.0), classical_params(2.0, 1.0)):
        with pytest.raises(BSRError, match=f"^{re.escape(message)}$"):
            ClassicalDegradation(4)(torch.zeros(shape), params)


LEAST, BOTH = "a number of at least 0", "a number above 0, or 0 for no blur where lambda1 is 0"
QUALITY = "a number in [1, 100], or 0 for none"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (classical_params(-1.0), f"lambda1 is -1.0, expected {LEAST}"),
        (classical_params(0.0, 1.0), f"lambda2 is 1.0, expected {BOTH}"),
        (classical_params(1.0, 0.0), f"lambda2 is 0.0, expected {BOTH}"),
        (classical_params(math.nan), f"lambda1 is nan, expected {LEAST}"),
        (classical_params([1.0, -0.5]), f"lambda1 is -0.5, expected {LEAST}"),
        (classical_params(noise_level=-3.0), f"noise_level is -3.0, expected {LEAST}"),
        (classical_params(noise_level=math.nan), f"noise_level is nan, expected {LEAST}"),
        (classical_params(jpeg_quality=0.5), f"jpeg_quality is 0.5, expected {QUALITY}"),
        (classical_params(jpeg_quality=101), f"jpeg_quality is 101.0, expected {QUALITY}"),
        (classical_params(jpeg_quality=-1), f"jpeg_quality is -1.0, expected {QUALITY}"),
    ],
)
def test_parameters_out_of_range(params: Params, message: str) -> None:
    with pytest.raises(BSRError, match=f"^degradation: the parameter {re.escape(message)}$"):
        ClassicalDegradation(4)(torch.zeros(len(params["theta"]), 3, 48, 48), params)


@pytest.mark.parametrize("name", sorted(classical_params()))
def test_parameters_that_are_missing_or_too_few(name: str) -> None:
    message = rf"^degradation: the parameter {name} is missing or not given for 2 samples$"
    params = classical_params([1.0, 2.0])
    with pytest.raises(BSRError, match=message):
        ClassicalDegradation(4)(torch.zeros(2, 3, 48, 48), {**params, name: params[name][:1]})
    del params[name]
    with pytest.raises(BSRError, match=message):
        ClassicalDegradation(4)(torch.zeros(2, 3, 48, 48), params)
