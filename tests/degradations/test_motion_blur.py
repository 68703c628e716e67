"""Motion blur: its kernels against a plain reference, and its place among the other stages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from bsr_plugins.archs import OracleEncoder
from bsr_plugins.degradations import ClassicalDegradation, Params, build_degradation, classical_params
from bsr_plugins.degradations.protocols import Align8Degradation
from bsr_plugins.degradations.stages.blurs import MotionBlur
from bsr_plugins.degradations.stages.jpeg import jpeg
from bsr_plugins.degradations.stages.noise import gaussian_noise
from bsr_plugins.errors import BSRError, OptionError
from tests.degradations import reference
from tests.degradations.photographs import views

BLOCKS: dict[str, Any] = {
    "blur_iso": {"sigma": [0.5, 4.0]},
    "blur_aniso": {"sigma": [0.5, 3.0]},
    "blur_motion": {"length": [3, 21], "angle": [30, 120]},
    "noise": {"level": [5, 25]},
    "jpeg": {"quality": [30, 95]},
}


def columns(length: float | Sequence[float], angle: float | Sequence[float] = 0.0) -> Params:
    both = [torch.as_tensor(value, dtype=torch.float64).reshape(-1) for value in (length, angle)]
    return dict(zip(MotionBlur.columns, torch.broadcast_tensors(*both), strict=True))


def motion_params(length: float | Sequence[float], angle: float | Sequence[float] = 0.0, **others: Any) -> Params:
    """Write down parameters of motion blurs; others are those of `classical_params`."""
    motion = columns(length, angle)
    return classical_params(**{"lambda1": [0.0] * len(motion["motion_length"]), **others}) | motion


def kernel_of(params: Params, index: int, size: int = 21) -> Any:
    """Return a sample's kernel by the plain reference."""
    lambda1, lambda2, theta, length, angle = (
        float(params[name][index]) for name in ("lambda1", "lambda2", "theta", *MotionBlur.columns)
    )
    if length > 0:
        return reference.motion_kernel(length, angle, size)
    return reference.gaussian_kernel(lambda1, lambda2, theta, size)


@pytest.mark.parametrize("size", [5, 21, 31])
def test_kernels_are_those_of_the_plain_reference(size: int) -> None:
    lengths = [1.0, 1.2, 2.0, 2.7, 3.0, 4.4, size - 0.3, float(size)]
    angles = [0.0, 0.3, math.pi / 4, 1.2, math.pi / 2, 2.0, math.pi, -0.7]
    pairs = [(length, angle) for length in lengths for angle in angles]
    made = MotionBlur.kernels(columns(*zip(*pairs, strict=True)), size)
    assert made.dtype == torch.float64
    for kernel, (length, angle) in zip(made, pairs, strict=True):
        expected = torch.from_numpy(reference.motion_kernel(length, angle, size))
        torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(made.sum((1, 2)), torch.ones(len(made), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(made, made.flip(1, 2), rtol=0, atol=1e-12)  # centred


def test_an_odd_length_along_an_axis_is_a_box_and_length_one_the_impulse() -> None:
    kernels = MotionBlur.kernels(columns([5.0, 5.0, 1.0, 0.4], [0.0, math.pi / 2, 0.9, 0.9]), 9)
    box = torch.zeros(9, 9, dtype=torch.float64)
    box[4, 2:7] = 0.2
    impulse = torch.zeros(9, 9, dtype=torch.float64)
    impulse[4, 4] = 1
    torch.testing.assert_close(kernels[0], box, rtol=0, atol=1e-12)
    torch.testing.assert_close(kernels[1], box.T, rtol=0, atol=1e-12)
    assert torch.equal(kernels[2], impulse)
    assert torch.equal(kernels[3], impulse)


def test_angles_turn_from_x_towards_y_and_length_spreads_the_kernel() -> None:
    turned = MotionBlur.kernels(columns(9.0, math.pi / 4), 21)[0]
    assert float(turned.diagonal().sum()) > 3 * float(turned.flip(1).diagonal().sum()), "[y, x], y downwards"
    x = torch.arange(-10, 11, dtype=torch.float64)
    kernels = MotionBlur.kernels(columns([3.0, 6.0, 9.0, 12.0], 0.0), 21)
    variances = (kernels.sum(1) * x.square()).sum(1)
    assert bool((variances.diff() > 0).all())


MIXED = motion_params(
    [0.0, 0.0, 0.0, 7.0, 12.5, 1.0, 20.0],
    [0.0, 0.0, 0.0, 0.0, 0.7, 0.5, 2.2],
    lambda1=[0.0, 1.5, 3.0, 0.0, 0.0, 0.0, 0.0],
    lambda2=[0.0, 1.5, 0.8, 0.0, 0.0, 0.0, 0.0],
    theta=[0.0, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0],
    noise_level=[0.0, 0.0, 8.0, 0.0, 12.0, 0.0, 5.0],
    noise_seed=[1, 2, 3, 4, 5, 6, 7],
    jpeg_quality=[0, 60, 0, 0, 0, 0, 75],
)


@pytest.mark.parametrize("border", ["clamp", "mirror"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_batch_that_mixes_all_kinds_is_what_the_reference_makes(scale: int, border: str) -> None:
    degradation = ClassicalDegradation(scale, border=border, round_to_8bit=False)
    gt = views(12 * scale, 14 * scale, batch=7, count=2)
    for index, (images, lq) in enumerate(zip(gt, degradation(gt, MIXED), strict=True)):
        expected = torch.from_numpy(reference.blur_bicubic(images, kernel_of(MIXED, index), scale, border))[None]
        expected = gaussian_noise(expected, MIXED["noise_level"][index, None], MIXED["noise_seed"][index, None])
        if MIXED["jpeg_quality"][index] > 0:
            expected = jpeg(expected, MIXED["jpeg_quality"][index, None])
        torch.testing.assert_close(lq, expected[0], rtol=0, atol=1e-9)


def test_the_fast_way_of_float32_images_is_exact() -> None:
    gt = views(96, 112, batch=3, count=2)
    params = motion_params([5.0, 13.3, 21.0], [0.2, 1.5, 3.0])
    lq = ClassicalDegradation(4, round_to_8bit=False)(gt.float(), params)
    for index, images in enumerate(gt):
        expected = torch.from_numpy(reference.blur_bicubic(images, kernel_of(params, index), 4)).float()
        torch.testing.assert_close(lq[index], expected, rtol=0, atol=1e-5)


def test_kernels_of_a_mixed_batch_are_what_the_oracle_takes() -> None:
    made = ClassicalDegradation(4).kernels(MIXED)
    assert made.dtype == torch.float32
    for index, kernel in enumerate(made):
        torch.testing.assert_close(kernel, torch.from_numpy(kernel_of(MIXED, index)).float(), rtol=0, atol=1e-7)
    representation = OracleEncoder(num_feat=8, representation_dim=6)(made)
    assert representation.shape == (7, 6)
    assert len({tuple(row) for row in representation[[0, 1, 2, 3, 4, 6]].tolist()}) == 6


def test_types_with_motion_draw_it_in_its_ranges_and_nowhere_else() -> None:
    types = ["bicubic", "iso", "motion", "motion+noise", "aniso+jpeg"]
    degradation = build_degradation({"type": "ClassicalDegradation", "types": types, **BLOCKS}, 4)
    params = degradation.sample(4000, torch.Generator().manual_seed(0))
    chosen = (params["type"] == 2) | (params["type"] == 3)
    length, angle = (params[name][chosen] for name in MotionBlur.columns)
    assert (float(length.min()), float(length.max())) == pytest.approx((3, 21), abs=0.1)
    assert (float(angle.min()), float(angle.max())) == pytest.approx((math.pi / 6, math.pi * 2 / 3), abs=0.01)
    assert bool((params["motion_length"][~chosen] == 0).all())
    assert bool((params["lambda1"][chosen] == 0).all())
    assert bool((params["noise_level"] > 0).eq(params["type"] == 3).all())
    gt = views(48, 48, batch=12)
    drawn = {name: column[:12] for name, column in params.items()}
    for images, lq, kernel in zip(gt, degradation(gt, drawn), degradation.kernels(drawn), strict=True):
        assert lq.shape == (1, 3, 12, 12)
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-6), images.shape


def test_without_motion_in_a_type_it_draws_nothing() -> None:
    unused = ClassicalDegradation(4, types=["iso+noise"], **BLOCKS)
    blocks = {key: BLOCKS[key] for key in ("blur_iso", "noise")}
    plain = ClassicalDegradation(4, types=["iso+noise"], **blocks)
    first, second = (each.sample(6, torch.Generator().manual_seed(1)) for each in (unused, plain))
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert MotionBlur.columns[0] not in first


def test_length_one_or_less_is_the_clean_image() -> None:
    degradation, gt = ClassicalDegradation(4), views(48, 48, batch=3)
    params = motion_params([0.0, 0.5, 1.0], 0.4)
    assert torch.equal(degradation(gt, params), degradation.clean(gt))
    assert degradation.smallest_side(params) == 4
    assert degradation.smallest_side(motion_params([0.0, 1.1])) == 11
    assert ClassicalDegradation(2, blur_motion={"length": 9}).smallest_side() == 11


def test_protocols_with_eight_bits_blur_by_it_too() -> None:
    gt = views(48, 44)
    blurred = Align8Degradation(4)(gt, motion_params(9.0, 0.3))
    near = ClassicalDegradation(4)(gt, motion_params(9.0, 0.3))
    assert float((blurred - near).abs().mean() * 255) < 1
    assert float((blurred - Align8Degradation(4).clean(gt)).abs().mean() * 255) > 2


def test_gradients() -> None:
    degradation = ClassicalDegradation(2, kernel_size=5, round_to_8bit=False)
    params = motion_params([4.0, 0.0, 0.0], 0.5, lambda1=[0.0, 1.0, 0.0])
    gt = views(6, 8, batch=3).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda gt: degradation(gt, params), gt, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blur_motion": {}}, "blur_motion.length: the key is missing"),
        ({"blur_motion": {"length": [1, 22]}}, "blur_motion.length: 22, expected a number in [0, 21]"),
        ({"blur_motion": {"length": 9, "angle": 400}}, "blur_motion.angle: 400, expected a number in [-360, 360]"),
        (
            {"blur_motion": {"lenght": 9}},
            "blur_motion.lenght: unknown key, expected one of length, angle, sampler; did you mean 'length'?",
        ),
        (
            {"blur_motoin": {"length": 9}},
            "blur_motoin: unknown key, expected one of scale, kernel_size, border, round_to_8bit, types, sampler, "
            "blur_iso, blur_aniso, blur_motion, noise, jpeg; did you mean 'blur_motion'?",
        ),
        ({"types": ["motion+iso"]}, "types: 'motion+iso', expected each stage once and at most one blur"),
        ({"types": ["motion"], "blur_motion": None}, "types: 'motion' needs the block blur_motion"),
    ],
)
def test_options_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        build_degradation({"type": "ClassicalDegradation", **BLOCKS, "types": ["motion"], **changes}, 4)
    assert str(caught.value) == f"degradation.{message}"
    with pytest.raises(OptionError) as caught:
        ClassicalDegradation(**{"scale": 4, **BLOCKS, "types": ["motion"], **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (motion_params(-1.0), "degradation: the parameter motion_length is -1.0, expected a number of at least 0"),
        (motion_params(math.nan), "degradation: the parameter motion_length is nan, expected a number of at least 0"),
        (
            motion_params(5.0, lambda1=2.0),
            "degradation: sample 0 has parameters of two blurs, expected one at most",
        ),
        (
            classical_params() | {"motion_length": torch.ones(1, dtype=torch.float64)},
            "degradation: the parameter motion_angle is missing or not given for 1 samples",
        ),
        (
            classical_params() | {"motion_lenght": torch.ones(1, dtype=torch.float64)},
            "degradation: among the parameters: unknown name 'motion_lenght', expected one of jpeg_quality, lambda1, "
            "lambda2, motion_angle, motion_length, noise_level, noise_seed, theta; did you mean 'motion_length'?",
        ),
    ],
)
def test_parameters_that_cannot_be_applied(params: Params, message: str) -> None:
    with pytest.raises(BSRError, match=f"^{re.escape(message)}$"):
        ClassicalDegradation(4)(torch.zeros(1, 3, 48, 48), params)
