"""Stages, samplers, protocols and degradations of somebody else, and what has to stay as it is without them."""

from __future__ import annotations

import inspect
import json
import math
import runpy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bsr_plugins.blocks import interval, number
from bsr_plugins.degradations import (
    DEGRADATIONS,
    PROTOCOLS,
    SAMPLERS,
    STAGES,
    ClassicalDegradation,
    LRStage,
    Params,
    Protocol,
    Sampler,
    SecondOrderDegradation,
    Setting,
    build_degradation,
    classical_params,
    protocol_degradation,
    protocol_settings,
)
from bsr_plugins.degradations.base import require
from bsr_plugins.errors import BSRError, OptionError
from tests.degradations import reference
from tests.degradations.photographs import crops, views
from tests.helpers.examples import example_file


class Darkening(LRStage):
    """A loss of light."""

    columns = ("darkening",)

    def __init__(self, part: Any, sampler: Any = "uniform") -> None:
        super().__init__(sampler, interval(part, "part", 0, 1))

    @classmethod
    def check(cls, params: Params) -> None:
        require(params, "darkening", (params["darkening"] >= 0) & (params["darkening"] <= 1), "a number in [0, 1]")

    @classmethod
    def change(cls, lq: Tensor, params: Params) -> Tensor:
        return lq * (1 - params["darkening"].to(lq).view(-1, *[1] * (lq.dim() - 1)))


@pytest.fixture(autouse=True)
def registries_as_they_were() -> Iterator[None]:
    registries: list[dict[str, Any]] = [STAGES, SAMPLERS, PROTOCOLS, DEGRADATIONS]
    kept = [(registry, dict(registry)) for registry in registries]
    yield
    for registry, known in kept:
        registry.clear()
        registry.update(known)


def example(name: str) -> dict[str, Any]:
    """Run a file of the guide, which registers what it holds, and return its names."""
    return runpy.run_path(str(example_file(name)), run_name=name)


@pytest.fixture
def stages() -> None:
    example("box_blur_stage")
    STAGES.register("dark")(Darkening)


def build(**options: Any) -> ClassicalDegradation:
    degradation = build_degradation({"type": "ClassicalDegradation", **options}, 4)
    assert isinstance(degradation, ClassicalDegradation)
    return degradation


@pytest.mark.usefixtures("stages")
def test_a_registered_stage_is_drawn_applied_and_named_in_types() -> None:
    blocks = {"blur_box": {"width": [3, 9]}, "dark": {"part": [0.2, 0.4]}, "jpeg": {"quality": 60}}
    degradation = build(types=["bicubic", "box", "box+dark", "box+dark+jpeg"], round_to_8bit=False, **blocks)
    params = degradation.sample(16, torch.Generator().manual_seed(3))
    assert set(params["type"].tolist()) == {0, 1, 2, 3}
    assert bool((params["box_width"] > 0).eq(params["type"] > 0).all())
    assert bool((params["darkening"] > 0).eq(params["type"] > 1).all())
    gt = views(24, 28, batch=16)
    for index, lq in enumerate(degradation(gt, params)):
        width = float(params["box_width"][index])
        profile = torch.tensor([min(max((max(width, 1) + 1) / 2 - abs(x - 10), 0), 1) for x in range(21)]).double()
        kernel = (torch.outer(profile, profile) / profile.sum() ** 2).numpy()
        torch.testing.assert_close(degradation.kernels(params)[index].double().numpy(), kernel, rtol=0, atol=1e-6)
        expected = torch.from_numpy(reference.blur_bicubic(gt[index], kernel, 4))
        expected = expected * (1 - params["darkening"][index])
        if params["jpeg_quality"][index] == 0:
            torch.testing.assert_close(lq, expected, rtol=0, atol=1e-6)
        else:  # JPEG comes last
            assert float((lq - expected).abs().mean()) < 0.05
            torch.testing.assert_close(lq * 255, (lq * 255).round(), rtol=0, atol=1e-9)


@pytest.mark.usefixtures("stages")
def test_a_registered_stage_can_be_adaptive() -> None:
    def adaptive() -> ClassicalDegradation:
        return build(blur_box={"width": [1, 15]}, dark={"part": [0, 0.5]}, sampler={"type": "ads", "grid": 9})

    degradation, other = adaptive(), adaptive()
    degradation.calibrate(crops(["astronaut.png"], 48, 2))
    state = json.loads(json.dumps(degradation.calibration()))
    assert {name: block["ranges"] for name, block in state.items()} == {"box": [[1, 15]], "dark": [[0, 0.5]]}
    assert "kernel_size" in state["box"]["settings"]
    assert "kernel_size" not in state["dark"]["settings"]
    other.load_calibration(state)
    first, second = (each.sample(9, torch.Generator().manual_seed(2)) for each in (degradation, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("stages")
def test_a_registered_stage_is_a_known_key() -> None:
    keys = ["scale", "kernel_size", "border", "round_to_8bit", "types", "sampler"]
    keys += ["blur_iso", "blur_aniso", "blur_motion", "blur_box", "noise", "dark", "jpeg"]
    signature = inspect.signature(ClassicalDegradation)
    assert list(signature.parameters) == keys
    assert signature.parameters["blur_box"].annotation is STAGES["box"]
    with pytest.raises(OptionError, match=r"^degradation\.blur_bx: unknown key, expected .*; did you mean 'blur_box'"):
        build(blur_bx={"width": 3})
    with pytest.raises(OptionError, match=r"^blur_bx: unknown key, expected one of scale, .*; did you mean 'blur_box'"):
        ClassicalDegradation(4, blur_bx={"width": 3})
    with pytest.raises(OptionError, match=r"^degradation\.blur_box\.width: 25, expected a number in \[0, 21\]$"):
        build(blur_box={"width": 25})
    with pytest.raises(OptionError, match=r"^degradation\.dark\.sampler\.gamma: 0, expected a number above 0$"):
        build(dark={"part": 0.1, "sampler": {"type": "power", "gamma": 0}})
    with pytest.raises(OptionError, match=r"at most one blur$"):
        build(types=["box+motion"], blur_box={"width": 3}, blur_motion={"length": 3})
    params = classical_params() | {"darkening": torch.tensor([2.0])}
    with pytest.raises(BSRError, match=r"^degradation: the parameter darkening is 2\.0, expected a number in "):
        build()(torch.zeros(1, 3, 24, 24), params)


def test_signatures_of_subclasses_are_what_their_constructors_take() -> None:
    class Fixed(ClassicalDegradation):
        def __init__(self, scale: int) -> None:
            super().__init__(scale)

    class Twice(ClassicalDegradation):
        pass

    assert list(inspect.signature(Fixed).parameters) == ["scale"]
    assert list(inspect.signature(Twice).parameters) == list(inspect.signature(ClassicalDegradation).parameters)


def test_a_registered_sampler_draws() -> None:
    example("middle_sampler")
    degradation = build(noise={"level": [10, 20]}, sampler={"type": "middle", "draws": 3})
    levels = degradation.sample(2000, torch.Generator().manual_seed(0))["noise_level"]
    assert 10 <= float(levels.min()) < float(levels.max()) <= 20
    assert float(levels.mean()) == pytest.approx(15, abs=0.2)
    assert float(levels.std()) == pytest.approx(10 / math.sqrt(12 * 3), abs=0.1)
    with pytest.raises(OptionError, match=r"^degradation\.noise\.sampler\.draws: 0, expected a whole number in"):
        build(noise={"level": 3, "sampler": {"type": "middle", "draws": 0}})
    with pytest.raises(OptionError, match=r"^degradation\.sampler\.type: unknown name 'midle', .*mean 'middle'\?$"):
        build(noise={"level": 3}, sampler="midle")


def test_a_registered_protocol_brings_what_applies_it() -> None:
    @PROTOCOLS.register("mirrored")
    def mirrored(scale: int) -> Protocol:
        settings = [Setting(f"sig{sigma}", classical_params(sigma)) for sigma in (1.0, 2.0)]
        return Protocol(ClassicalDegradation(scale, border="mirror"), settings)

    degradation = protocol_degradation("mirrored", 3)
    assert isinstance(degradation, ClassicalDegradation)
    assert (degradation.border, degradation.scale) == ("mirror", 3)
    assert [setting.name for setting in protocol_settings("mirrored", 3)] == ["sig1.0", "sig2.0"]
    with pytest.raises(OptionError, match=r"^protocol: unknown name 'mirored', .*; did you mean 'mirrored'\?$"):
        protocol_settings("mirored", 3)


def test_a_registered_degradation_is_built_from_its_block() -> None:
    @DEGRADATIONS.register("Mirrored")
    class Mirrored(ClassicalDegradation):
        def __init__(self, scale: int, sigma: float) -> None:
            super().__init__(scale, border="mirror", blur_iso={"sigma": number(sigma, "sigma", 0, 4)})

    degradation = build_degradation({"type": "Mirrored", "sigma": 2}, 2)
    assert isinstance(degradation, Mirrored)
    assert degradation.sample(1, torch.Generator())["lambda1"].tolist() == [2.0]
    with pytest.raises(OptionError, match=r"^here\.sigma: 9, expected a number in \[0, 4\]$"):
        build_degradation({"type": "Mirrored", "sigma": 9}, 2, "here")


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(BSRError, match=r"^the stage 'noise' is there already \(.*\.GaussianNoise\)$"):
        STAGES.register("noise")(Darkening)
    with pytest.raises(BSRError, match=r"^the sampler 'ads' is there already"):
        SAMPLERS.register("ads")(Sampler)


# What version 0.1.0 drew and measured, before stages were classes.
BLOCKS: dict[str, Any] = {
    "types": ["bicubic", "iso", "aniso", "aniso+noise", "aniso+jpeg", "aniso+noise+jpeg", "noise", "iso+jpeg"],
    "blur_iso": {"sigma": [0.2, 4.0]},
    "blur_aniso": {"sigma": [0.5, 3.0], "theta": [0, 180]},
    "noise": {"level": [0, 25]},
    "jpeg": {"quality": [30, 95]},
}
DRAWN = {
    "type": [1, 7, 0, 3],
    "lambda1": [2.751880521, 2.72578207, 0.0, 0.55015811],
    "lambda2": [2.751880521, 2.72578207, 0.0, 2.876090252],
    "theta": [0.0, 0.0, 0.0, 0.244771784],
    "noise_level": [0.0, 0.0, 0.0, 20.698170792],
    "jpeg_quality": [0.0, 88.49641717, 0.0, 0.0],
    "noise_seed": [3924100880522759311, 1836251520734910904, 1026998079079248832, 8850697690413982192],
}
SETTINGS = {"scale": 4, "border": "clamp", "round_to_8bit": True}
CALIBRATION = {
    "iso": {
        "ranges": [[0.2, 4.0]],
        "settings": {**SETTINGS, "kernel_size": 21},
        "distances": [0.0, 3.5224151611328125, 9.002699851989746, 14.09154987335205, 17.9843692779541],
    },
    "jpeg": {
        "ranges": [[30.0, 95.0]],
        "settings": SETTINGS,
        "distances": [12.22181224822998, 11.387025833129883, 9.623587608337402, 7.810250282287598, 4.614791393280029],
    },
}


def test_draws_are_those_of_earlier_versions() -> None:
    drawn = build(**BLOCKS).sample(4, torch.Generator().manual_seed(11))
    assert list(drawn) == list(DRAWN)
    for name, values in drawn.items():
        assert values.tolist() == (DRAWN[name] if name == "noise_seed" else pytest.approx(DRAWN[name], abs=1e-8)), name


def test_calibrations_of_earlier_versions_are_loaded_and_measured_again() -> None:
    blocks = {key: BLOCKS[key] for key in ("blur_iso", "jpeg")}
    degradation = build(**blocks, sampler={"type": "ads", "grid": 5})
    degradation.load_calibration(json.loads(json.dumps(CALIBRATION)))
    drawn = degradation.sample(4, torch.Generator().manual_seed(11))
    assert drawn["lambda1"].tolist() == pytest.approx([2.673985387, 2.650926927, 2.356491064, 0.950369251], abs=1e-8)
    assert drawn["jpeg_quality"].tolist() == pytest.approx([88.22633154, 89.69842476, 51.1735973, 78.1863378], abs=1e-6)
    again = build(**blocks, sampler={"type": "ads", "grid": 5})
    again.calibrate(crops(["astronaut.png"], 48, 1))
    for name, found in again.calibration().items():
        assert found["settings"] == CALIBRATION[name]["settings"]
        assert found["distances"] == pytest.approx(CALIBRATION[name]["distances"], abs=1e-3)


def test_second_order_draws_are_those_of_earlier_versions() -> None:
    drawn = SecondOrderDegradation(4).sample(2, torch.Generator().manual_seed(11))
    assert drawn["first_lambda1"].tolist() == pytest.approx([0.583732182, 2.496063356], abs=1e-8)
    assert drawn["first_theta"].tolist() == pytest.approx([2.512927791, 1.144765712], abs=1e-8)
    assert drawn["second_noise_seed"].tolist() == [356822069620088069, 4789687216898814556]
    assert drawn["final_cutoff"].tolist() == pytest.approx([2.82887603, 1.174146764], abs=1e-8)
