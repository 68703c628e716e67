"""The protocols' settings: every figure of the papers' tables."""

from __future__ import annotations

import math
import re

import pytest
import torch

from bsr_plugins.degradations import (
    PROTOCOLS,
    ClassicalDegradation,
    Params,
    Setting,
    classical_params,
    protocol_degradation,
    protocol_settings,
    with_noise_seed,
)
from bsr_plugins.errors import OptionError

ANISO9 = [
    *[(2.0, 0.2, 0), (2.0, 1.0, 10), (3.5, 1.5, 30), (3.5, 2.0, 45), (3.5, 2.0, 90)],
    *[(4.0, 1.5, 120), (4.0, 2.0, 135), (4.0, 3.0, 165), (4.0, 4.0, 180)],
]


def values(params: Params) -> dict[str, float]:
    return {name: float(tensor[0]) for name, tensor in params.items()}


def sigmas(settings: list[Setting]) -> list[float]:
    """Return the widths of settings that are isotropic blurs and nothing else."""
    for setting in settings:
        sigma = float(setting.params["lambda1"][0])
        assert values(setting.params) == values(classical_params(sigma)), setting.name
    return [float(setting.params["lambda1"][0]) for setting in settings]


def test_these_are_the_protocols() -> None:
    assert set(PROTOCOLS) == {"bicubic", "gaussian8", "widths", "aniso9", "aniso_unseen", "six", "align8"}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_clean(scale: int) -> None:
    (setting,) = protocol_settings("bicubic", scale)
    assert setting.name == "bicubic"
    assert set(values(setting.params).values()) == {0.0}


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (4, [1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2]),
        (3, [1.35, 1.50, 1.65, 1.80, 1.95, 2.10, 2.25, 2.40]),
        (2, [0.8 + 0.8 * step / 7 for step in range(8)]),
    ],
)
def test_gaussian8(scale: int, expected: list[float]) -> None:
    assert sigmas(protocol_settings("gaussian8", scale)) == pytest.approx(expected, abs=1e-6)


def test_gaussian8_names() -> None:
    names = ["sig1.8", "sig2", "sig2.2", "sig2.4", "sig2.6", "sig2.8", "sig3", "sig3.2"]
    assert [setting.name for setting in protocol_settings("gaussian8", 4)] == names


def test_widths() -> None:
    expected = [1.0, 1.8, 2.6, 3.4, 0.5, 1.4, 2.3, 3.2, 4.1, 5.0]
    assert sigmas(protocol_settings("widths", 4)) == expected


def test_aniso9_is_nine_kernels_at_three_noises() -> None:
    settings = protocol_settings("aniso9", 4)
    expected = [
        classical_params(lambda1, lambda2, math.radians(degrees), noise)
        for lambda1, lambda2, degrees in ANISO9
        for noise in (0, 10, 20)
    ]
    assert len(settings) == 27
    assert [values(setting.params) for setting in settings] == [values(params) for params in expected]


def test_aniso_unseen() -> None:
    expected = [(0.5, 0.2), (1.4, 0.8), (2.3, 1.4), (3.2, 2.0), (4.1, 2.6), (5.0, 3.2)]
    settings = protocol_settings("aniso_unseen", 4)
    assert [values(setting.params) for setting in settings] == [
        values(classical_params(*widths)) for widths in expected
    ]


def test_six_kinds() -> None:
    kinds = [
        (
            params["lambda1"] > 0,
            params["lambda1"] != params["lambda2"],
            params["noise_level"] > 0,
            params["jpeg_quality"] > 0,
        )
        for params in (values(setting.params) for setting in protocol_settings("six", 4))
    ]
    assert kinds == [
        (False, False, False, False),
        (True, False, False, False),
        (True, True, False, False),
        (True, True, True, False),
        (True, True, False, True),
        (True, True, True, True),
    ]


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_align8(scale: int) -> None:
    expected = {
        "clean": classical_params(),
        "blur": classical_params(2.0),
        "noise": classical_params(noise_level=20),
        "jpeg": classical_params(jpeg_quality=50),
        "blur_noise": classical_params(2.0, noise_level=20),
        "blur_jpeg": classical_params(2.0, jpeg_quality=50),
        "noise_jpeg": classical_params(noise_level=20, jpeg_quality=50),
        "blur_noise_jpeg": classical_params(2.0, noise_level=20, jpeg_quality=50),
    }
    settings = {setting.name: values(setting.params) for setting in protocol_settings("align8", scale)}
    assert settings == {name: values(params) for name, params in expected.items()}
    assert list(settings) == list(expected)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_settings_have_names_for_files_and_can_be_applied(protocol: str, scale: int) -> None:
    settings = protocol_settings(protocol, scale)
    names = [setting.name for setting in settings]
    assert len({name.lower() for name in names}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) for name in names)
    degradation = protocol_degradation(protocol, scale)
    assert degradation.scale == scale
    gt = torch.rand(1, 3, 12 * scale, 11 * scale, generator=torch.Generator().manual_seed(0))
    results = [degradation(gt, setting.params) for setting in settings]
    assert all(lq.shape == (1, 3, 12, 11) for lq in results)
    assert len({lq.numpy().tobytes() for lq in results}) == len(results), "no two settings are the same"


def test_the_pipeline_is_the_one_that_the_field_uses() -> None:
    degradation = protocol_degradation("gaussian8", 4)
    assert isinstance(degradation, ClassicalDegradation)
    assert (degradation.kernel_size, degradation.border, degradation.round_to_8bit) == (21, "clamp", True)


def test_a_noise_seed_is_given_to_a_copy() -> None:
    params = classical_params(lambda1=[1.0, 2.0], noise_level=10.0)
    seeded = with_noise_seed(params, 2**63 - 1)
    assert seeded["noise_seed"].tolist() == [2**63 - 1] * 2
    assert params["noise_seed"].tolist() == [0, 0]
    assert all(seeded[name] is params[name] for name in params if name != "noise_seed")


@pytest.mark.parametrize("function", [protocol_settings, protocol_degradation])
def test_an_unknown_protocol_is_an_error_that_offers_the_nearest(function: type) -> None:
    with pytest.raises(OptionError, match=r"^protocol: unknown name 'gausian8', .*; did you mean 'gaussian8'\?$"):
        function("gausian8", 4)
    with pytest.raises(
        OptionError, match=r"^protocol: unknown name \['six'\], expected one of align8, aniso9, .*widths"
    ):
        function(["six"], 4)


def test_gaussian8_knows_three_scales() -> None:
    with pytest.raises(OptionError, match=r"^protocol: gaussian8 at scale 8, expected one of \[2, 3, 4\]$"):
        protocol_settings("gaussian8", 8)
