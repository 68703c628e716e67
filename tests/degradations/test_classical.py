"""The classical degradation: its stages put together, what it draws, and what its result depends on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bsr_plugins.degradations import ClassicalDegradation, Params, build_degradation, classical_params
from bsr_plugins.degradations.base import Degradation
from bsr_plugins.degradations.stages.jpeg import jpeg
from bsr_plugins.degradations.stages.noise import gaussian_noise
from bsr_plugins.errors import BSRError
from tests.degradations import reference
from tests.degradations.photographs import photograph, views

STAGES: dict[str, Any] = {
    "blur_iso": {"sigma": [0.2, 4.0]},
    "blur_aniso": {"sigma": [0.5, 3.0], "theta": [0, 180]},
    "noise": {"level": [0, 25]},
    "jpeg": {"quality": [30, 95]},
}
TYPES = ["bicubic", "iso", "aniso", "aniso+noise", "aniso+jpeg", "aniso+noise+jpeg", "noise", "iso+jpeg"]


def everything(scale: int = 4, **options: Any) -> ClassicalDegradation:
    degradation = build_degradation(
        {"type": "ClassicalDegradation", "scale": scale, "types": TYPES, **STAGES, **options}
    )
    assert isinstance(degradation, ClassicalDegradation)
    return degradation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(params: Params, index: int) -> Params:
    return {name: values[index : index + 1] for name, values in params.items()}


MIXED = classical_params(
    lambda1=[0.0, 1.5, 3.0, 2.0, 0.0, 4.0],
    lambda2=[0.0, 1.5, 0.8, 2.0, 0.0, 0.5],
    theta=[0.0, 0.0, 0.6, 1.0, 0.0, 2.5],
    noise_level=[0.0, 0.0, 0.0, 12.0, 5.0, 20.0],
    noise_seed=[1, 2, 3, 4, 5, 6],
    jpeg_quality=[0, 0, 0, 0, 40, 75],
)


@pytest.mark.parametrize("border", ["clamp", "mirror"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_the_stages_come_in_the_order_of_equation_1(scale: int, border: str) -> None:
    """Blur, bicubic, noise, JPEG, 8 bits; blur and bicubic by the plain reference."""
    degradation = ClassicalDegradation(scale, border=border)
    gt = views(12 * scale, 14 * scale, batch=6, count=2)
    made = degradation(gt, MIXED)
    for index, (images, lq) in enumerate(zip(gt, made, strict=True)):
        lambda1, lambda2, theta = (float(MIXED[name][index]) for name in ("lambda1", "lambda2", "theta"))
        kernel = reference.gaussian_kernel(lambda1, lambda2, theta)
        expected = torch.from_numpy(reference.blur_bicubic(images, kernel, scale, border))[None]
        expected = gaussian_noise(expected, MIXED["noise_level"][index, None], MIXED["noise_seed"][index, None])
        if MIXED["jpeg_quality"][index] > 0:
            expected = jpeg(expected, MIXED["jpeg_quality"][index, None])
        expected = (expected.clamp(0, 1) * 255).round() / 255
        torch.testing.assert_close(lq, expected[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kernel_size", [7, 21, 31])
def test_kernels_have_the_asked_size(kernel_size: int) -> None:
    degradation = ClassicalDegradation(2, kernel_size=kernel_size, round_to_8bit=False)
    gt = views(40, 36, batch=2)
    made = degradation(gt, classical_params([3.0, 3.0], [3.0, 2.0], [0.0, 0.5]))
    for images, lq, lambda2 in zip(gt, made, (3.0, 2.0), strict=True):
        kernel = reference.gaussian_kernel(3.0, lambda2, 0.5, kernel_size)
        torch.testing.assert_close(lq, torch.from_numpy(reference.blur_bicubic(images, kernel, 2)), rtol=0, atol=1e-9)


def test_drawn_parameters_are_tensors_on_the_cpu_with_the_batch_first() -> None:
    params = everything().sample(5, generator())
    reals, wholes = ("lambda1", "lambda2", "theta", "noise_level", "jpeg_quality"), ("noise_seed", "type")
    assert set(params) == {*reals, *wholes}
    assert all(params[name].dtype == torch.float64 for name in reals)
    assert all(params[name].dtype == torch.int64 for name in wholes)
    assert all(values.shape == (5,) and values.device.type == "cpu" for values in params.values())
    assert all(len(values) == 0 for values in everything().sample(0, generator()).values())


def test_types_are_drawn_equally_and_each_has_its_stages_alone() -> None:
    degradation = everything()
    params = degradation.sample(8000, generator())
    counts = torch.bincount(params["type"], minlength=len(TYPES))
    assert len(counts) == len(TYPES)
    # 1000 expected of each, standard deviation 30
    assert 870 < int(counts.min()) <= int(counts.max()) < 1130
    for index, name in enumerate(TYPES):
        drawn = {key: values[params["type"] == index] for key, values in params.items()}
        stages = set(name.split("+"))
        assert bool((drawn["lambda1"] > 0).all()) == bool(stages & {"iso", "aniso"})
        assert bool((drawn["lambda1"] == drawn["lambda2"]).all()) == ("aniso" not in stages)
        assert bool((drawn["theta"] == 0).all()) == ("aniso" not in stages)
        assert bool((drawn["noise_level"] > 0).all()) == ("noise" in stages)
        assert bool((drawn["jpeg_quality"] > 0).all()) == ("jpeg" in stages)


def test_parameters_are_drawn_from_their_ranges_and_reach_their_ends() -> None:
    drawn = everything(types=["aniso+noise+jpeg"]).sample(4000, generator())
    for name, low, high in [
        ("lambda1", 0.5, 3.0),
        ("lambda2", 0.5, 3.0),
        ("theta", 0, math.pi),
        ("noise_level", 0, 25),
        ("jpeg_quality", 30, 95),
    ]:
        values = drawn[name].double()
        assert float(values.min()) == pytest.approx(low, abs=(high - low) / 200)
        assert float(values.max()) == pytest.approx(high, abs=(high - low) / 200)
        assert low <= float(values.min())
        assert float(values.max()) <= high
    assert int(drawn["noise_seed"].min()) >= 0
    assert len(set(drawn["noise_seed"].tolist())) == 4000
    assert abs(float(torch.corrcoef(torch.stack([drawn["lambda1"], drawn["lambda2"]]))[0, 1])) < 0.07


def test_without_a_list_there_is_one_type_of_all_the_stages_described() -> None:
    degradation = ClassicalDegradation(4, blur_iso={"sigma": 2.0}, noise={"level": 10}, jpeg={"quality": 50})
    params = degradation.sample(3, generator())
    seeds = params["noise_seed"].tolist()
    expected = classical_params(2.0, noise_level=10.0, noise_seed=seeds, jpeg_quality=50)
    assert {name: values.tolist() for name, values in params.items() if name != "type"} == {
        name: values.tolist() for name, values in expected.items()
    }
    assert params["type"].tolist() == [0, 0, 0]


def test_without_any_stage_it_is_bicubic() -> None:
    degradation = ClassicalDegradation(4)
    gt = views(48, 64, batch=2)
    assert torch.equal(degradation(gt, degradation.sample(2, generator())), degradation.clean(gt))


def test_clean_is_the_rounded_bicubic_in_any_dimensions() -> None:
    gt = views(24, 36, batch=2, count=3)
    expected = torch.from_numpy(reference.blur_bicubic(gt, reference.gaussian_kernel(0, 0, 0), 3))
    torch.testing.assert_close(ClassicalDegradation(3, round_to_8bit=False).clean(gt), expected, rtol=0, atol=1e-12)
    rounded = everything(3).clean(gt)
    torch.testing.assert_close(rounded, (expected.clamp(0, 1) * 255).round() / 255, rtol=0, atol=1e-12)
    assert torch.equal(everything(3).clean(gt[0]), rounded[0])


def test_drawn_parameters_can_be_replayed_saved_and_loaded(tmp_path: Path) -> None:
    degradation = everything()
    gt = views(64, 64, batch=16).float()
    params = degradation.sample(16, generator(5))
    lq = degradation(gt, params)
    assert torch.equal(degradation(gt, params), lq)
    again = degradation.sample(16, generator(5))
    assert all(torch.equal(again[name], params[name]) for name in params)
    torch.save(params, tmp_path / "params.pt")
    loaded = torch.load(tmp_path / "params.pt", weights_only=True)
    assert torch.equal(everything()(gt, loaded), lq)
    other = degradation.sample(16, generator(6))
    assert not torch.equal(degradation(gt, other), lq)


def test_parameters_and_images_are_left_as_they_were() -> None:
    gt, params = views(48, 48, batch=6), {name: values.clone() for name, values in MIXED.items()}
    kept = gt.clone()
    ClassicalDegradation(4)(gt, params)
    assert torch.equal(gt, kept)
    assert all(torch.equal(params[name], MIXED[name]) for name in MIXED)


@pytest.mark.parametrize("round_to_8bit", [True, False])
def test_a_sample_does_not_depend_on_its_batch(round_to_8bit: bool) -> None:
    degradation = everything(round_to_8bit=round_to_8bit)
    gt, params = views(48, 64, batch=8, count=2).float(), degradation.sample(8, generator(1))
    together = degradation(gt, params)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    turned = degradation(gt[order], {name: values[order] for name, values in params.items()})
    for index in range(8):
        alone = degradation(gt[index, None], one(params, index))
        # a last digit may differ, and where it falls on a half, so may the 8 bits or what JPEG makes of them
        for made in (alone[0], turned[order.argsort()[index]]):
            difference = (made - together[index]).abs() * 255
            assert float(difference.mean()) < 0.05 if params["jpeg_quality"][index] else float(difference.max()) < 1.1
            assert float((difference > 1e-3).float().mean()) < 0.02


def test_views_share_one_degradation_but_not_the_noise() -> None:
    degradation = ClassicalDegradation(4, round_to_8bit=False)
    view = views(48, 48)
    lq = degradation(view.expand(1, 3, -1, -1, -1), one(MIXED, 2))
    assert torch.equal(lq[:, 0], lq[:, 2])
    noisy = degradation(view.expand(1, 3, -1, -1, -1), one(MIXED, 3))
    assert not torch.equal(noisy[:, 0], noisy[:, 2])


@pytest.mark.parametrize("dims", [(), (1,), (4,), (2, 3)])
def test_any_dimensions_lie_between_the_batch_and_the_colours(dims: tuple[int, ...]) -> None:
    gt = torch.rand(6, *dims, 3, 24, 36, generator=generator())
    lq = ClassicalDegradation(2)(gt, MIXED)
    assert lq.shape == (6, *dims, 3, 12, 18)
    flat = ClassicalDegradation(2)(gt.reshape(6, -1, 3, 24, 36), MIXED)
    torch.testing.assert_close(lq, flat.view_as(lq), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scale", "height", "width"), [(4, 300, 448), (3, 297, 201), (2, 158, 14), (1, 31, 33)])
def test_whole_images_of_any_size(scale: int, height: int, width: int) -> None:
    gt = photograph("chelsea.png")[None, :, :height, :width].float()
    for index in range(6):
        lq = ClassicalDegradation(scale)(gt, one(MIXED, index))
        assert lq.shape == (1, 3, height // scale, width // scale)
        assert 0 <= float(lq.min()) <= float(lq.max()) <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_have_the_type_of_the_images(dtype: torch.dtype) -> None:
    degradation = ClassicalDegradation(4, round_to_8bit=False)
    gt = views(48, 48, batch=6).to(dtype)
    lq = degradation(gt, MIXED)
    assert lq.dtype == dtype
    expected = degradation(gt.double(), MIXED)
    unit = torch.finfo(dtype).eps
    plain = MIXED["jpeg_quality"] == 0  # before JPEG, a last digit can move a pixel over a half
    torch.testing.assert_close(lq[plain].double(), expected[plain], rtol=0, atol=4 * unit + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_lie_on_the_8_bit_grid(dtype: torch.dtype) -> None:
    params = {**MIXED, "noise_level": torch.full((6,), 80.0)}
    levels = ClassicalDegradation(4)(views(48, 48, batch=6).to(dtype), params) * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert (float(levels.min()), float(levels.max())) == pytest.approx((0, 255))


def test_without_rounding_nothing_is_clamped() -> None:
    lq = ClassicalDegradation(4, round_to_8bit=False)(torch.zeros(1, 3, 400, 400), classical_params(noise_level=20.0))
    assert float(lq.std() * 255) == pytest.approx(20, rel=0.03)
    assert float(lq.min()) < -0.1


def test_gradients_through_every_stage_that_has_one() -> None:
    """Bicubic, isotropic, anisotropic and noise in one batch, against finite differences."""
    degradation = ClassicalDegradation(2, kernel_size=5, round_to_8bit=False)
    params = {name: values[:4] for name, values in MIXED.items()}
    gt = views(6, 8, batch=4).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda gt: degradation(gt, params), gt, atol=1e-6)


def test_gradients_of_a_mixed_batch_with_jpeg_reach_the_other_samples() -> None:
    degradation = ClassicalDegradation(4, round_to_8bit=False)
    gt = views(48, 48, batch=6, count=2).float().requires_grad_()
    degradation(gt, MIXED).sum().backward()
    assert gt.grad is not None
    sums = gt.grad.sum((1, 2, 3, 4))
    # every LR pixel's weights sum to 1; JPEG's roundings give no gradient
    assert sums[:4].tolist() == pytest.approx([2 * 3 * 12 * 12] * 4, rel=1e-4)
    assert sums[4:].tolist() == [0, 0]


def test_written_parameters_are_broadcast() -> None:
    params = classical_params(lambda1=[1.0, 2.0], theta=0.5, jpeg_quality=[0, 80])
    assert params["lambda2"].tolist() == [1.0, 2.0], "isotropic where the second width is left out"
    assert params["theta"].tolist() == [0.5, 0.5]
    assert params["jpeg_quality"].tolist() == [0, 80]
    assert {name for name, values in params.items() if values.dtype != torch.float64} == {"noise_seed"}
    assert params["noise_seed"].dtype == torch.int64
    params["theta"][0] = 9
    assert params["theta"].tolist() == [9, 0.5], "the samples do not share memory"
    assert all(values.tolist() == [0] for values in classical_params().values())


def difference_of(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() * 255)


def test_turning_by_half_a_circle_and_swapping_widths_change_nothing() -> None:
    degradation = ClassicalDegradation(4, round_to_8bit=False)
    gt = views(64, 64)
    lq = degradation(gt, classical_params(3.0, 1.0, 0.4))
    assert difference_of(degradation(gt, classical_params(3.0, 1.0, 0.4 + math.pi)), lq) < 1e-9
    assert difference_of(degradation(gt, classical_params(1.0, 3.0, 0.4 - math.pi / 2)), lq) < 1e-9
    assert difference_of(degradation(gt, classical_params(3.0, 1.0, -0.4)), lq) > 1


def test_autocast_does_not_reach_the_degradation() -> None:
    degradation = ClassicalDegradation(4, round_to_8bit=False)
    gt = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lq = degradation(gt, classical_params(2.0))
    assert torch.equal(lq, degradation(gt, classical_params(2.0)))


@pytest.mark.parametrize("kernel_size", [7, 21])
def test_the_kernels_are_those_of_the_closed_form(kernel_size: int) -> None:
    degradation = ClassicalDegradation(4, kernel_size=kernel_size)
    assert degradation.kernel_size == kernel_size
    made = degradation.kernels(MIXED)
    assert made.shape == (6, kernel_size, kernel_size)
    assert made.dtype == torch.float32
    for index, kernel in enumerate(made):
        lambda1, lambda2, theta = (float(MIXED[name][index]) for name in ("lambda1", "lambda2", "theta"))
        expected = torch.from_numpy(reference.gaussian_kernel(lambda1, lambda2, theta, kernel_size)).float()
        torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-7)
    impulse = torch.zeros(kernel_size, kernel_size)
    impulse[kernel_size // 2, kernel_size // 2] = 1
    assert torch.equal(made[0], impulse), "no blur"
    assert torch.equal(made[4], impulse)


def test_the_kernels_are_those_that_blur() -> None:
    """Whatever is drawn, of whatever type: blurring with the kernels gives the LR image."""
    degradation = everything(types=["bicubic", "iso", "aniso"], round_to_8bit=False)
    params = degradation.sample(12, generator(3))
    assert set(params["type"].tolist()) == {0, 1, 2}
    gt = views(48, 48, batch=12, count=1)
    made = degradation(gt, params)
    for images, lq, kernel in zip(gt, made, degradation.kernels(params), strict=True):
        expected = torch.from_numpy(reference.blur_bicubic(images, kernel.double().numpy(), 4))
        torch.testing.assert_close(lq, expected, rtol=0, atol=1e-6)


def test_a_degradation_without_a_single_kernel_says_so() -> None:
    class Twice(ClassicalDegradation):
        kernels = Degradation.kernels

    assert Degradation.kernel_size is None
    with pytest.raises(BSRError, match=r"^Twice: has no single blur kernel, expected a degradation that has one"):
        Twice(4).kernels(classical_params())
