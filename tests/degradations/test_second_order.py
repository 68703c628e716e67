"""The second-order pipeline against BasicSR's functions, and what its result depends on."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from basicsr.data.degradations import bivariate_generalized_Gaussian, bivariate_plateau, circular_lowpass_kernel
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.utils import USMSharp
from basicsr.utils.img_process_util import filter2D
from torch import Tensor

from bsr_plugins.degradations import ClassicalDegradation, Params, SecondOrderDegradation, classical_params
from bsr_plugins.degradations.second_order import kernels_of
from bsr_plugins.degradations.second_order_options import KERNELS
from bsr_plugins.degradations.stages.noise import gaussian_noise, poisson_noise
from tests.degradations.photographs import photograph, views

GREY_LEVELS = 255
MODES = ("area", "bilinear", "bicubic")
COUNT = 36
SIZE = (84, 96)
WITHOUT_ROUNDINGS: dict[str, Any] = {
    "first_quality": 0.0,
    "second_quality": 0.0,
    "first_poisson": 0.0,
    "second_poisson": 0.0,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(params: Params, index: int) -> Params:
    return {name: column[index : index + 1] for name, column in params.items()}


def with_values(params: Params, **values: float) -> Params:
    return {
        name: torch.full_like(column, values[name]) if name in values else column for name, column in params.items()
    }


def draw(count: int = COUNT, seed: int = 3, **values: float) -> Params:
    """Draw samples that differ in everything; some columns may be given a value."""
    return with_values(SecondOrderDegradation(4, per_sample=True).sample(count, generator(seed)), **values)


def plain_kernel(params: Params, name: str) -> Tensor:
    """Return the kernel of the one sample by BasicSR, float64, (1, 21, 21)."""
    kind, taps = KERNELS[int(params[f"{name}_kernel"])], int(params[f"{name}_taps"])
    if kind == "none":
        pulse = torch.zeros(1, 21, 21, dtype=torch.float64)
        pulse[0, 10, 10] = 1
        return pulse
    if kind == "sinc":
        kernel = circular_lowpass_kernel(float(params[f"{name}_cutoff"]), taps)
    else:
        make = bivariate_plateau if kind.startswith("plateau") else bivariate_generalized_Gaussian
        widths, shape = (f"{name}_lambda1", f"{name}_lambda2", f"{name}_theta"), float(params[f"{name}_beta"])
        isotropic = kind.endswith("iso") and not kind.endswith("aniso")
        kernel = make(taps, *(float(params[key]) for key in widths), shape, isotropic=isotropic)
    return torch.from_numpy(np.pad(kernel, (21 - taps) // 2))[None]


def plain_noise(x: Tensor, params: Params, name: str) -> Tensor:
    seed, grey = params[f"{name}_noise_seed"], params[f"{name}_grey"]
    level, strength = params[f"{name}_gaussian"], params[f"{name}_poisson"]
    noisy = gaussian_noise(x, level, seed, grey) if float(level) > 0 else poisson_noise(x, strength, seed, grey)
    return noisy.clamp(0, 1)


def opencv_jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Code one image, (1, 3, H, W), at a whole quality; 0 stands for none."""
    levels = (x[0].clamp(0, 1) * GREY_LEVELS).round().byte().permute(1, 2, 0).numpy()
    if float(quality) == 0:
        return x.clamp(0, 1)
    _, coded = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return torch.from_numpy(decoded[..., ::-1].copy()).permute(2, 0, 1)[None].to(x) / GREY_LEVELS


def plain(gt: Tensor, params: Params, scale: int) -> Tensor:
    """Degrade one image, (1, 3, H, W), as `RealESRGANModel.feed_data` goes about it, up to the 8 bits."""
    lr = (gt.shape[-2] // scale, gt.shape[-1] // scale)
    x = filter2D(gt, plain_kernel(params, "first"))
    x = F.interpolate(x, scale_factor=float(params["first_resize"]), mode=MODES[int(params["first_mode"])])
    x = opencv_jpeg(plain_noise(x, params, "first"), params["first_quality"])

    x = filter2D(x, plain_kernel(params, "second"))
    relative = float(params["second_resize"])
    size = (int(gt.shape[-2] / scale * relative), int(gt.shape[-1] / scale * relative))
    x = plain_noise(F.interpolate(x, size=size, mode=MODES[int(params["second_mode"])]), params, "second")

    if not bool(params["final_jpeg_last"]):
        x = opencv_jpeg(x, params["second_quality"])
    x = filter2D(F.interpolate(x, size=lr, mode=MODES[int(params["final_mode"])]), plain_kernel(params, "final"))
    return opencv_jpeg(x, params["second_quality"]) if bool(params["final_jpeg_last"]) else x


def test_the_samples_of_these_tests_go_every_way() -> None:
    params = draw()
    assert set(params["first_kernel"].tolist()) == set(range(1, 8))
    assert set(params["second_kernel"].tolist()) >= {0, 1, 2, 7}
    assert set(params["final_kernel"].tolist()) == {0, 7}
    for name in ("first", "second"):
        assert set(torch.sign(params[f"{name}_resize"] - 1).tolist()) == {-1, 0, 1}
        assert set(params[f"{name}_mode"].tolist()) == {0, 1, 2}
        assert set((params[f"{name}_gaussian"] > 0).tolist()) == {True, False}
        assert set(params[f"{name}_grey"].tolist()) == {True, False}
    assert set(params["final_mode"].tolist()) == {0, 1, 2}
    assert set(params["final_jpeg_last"].tolist()) == {True, False}


@pytest.mark.parametrize("name", ["first", "second", "final"])
def test_kernels_are_basicsrs(name: str) -> None:
    params = draw(200)
    made = kernels_of(params, name, torch.empty(0, dtype=torch.float64))
    for index, kernel in enumerate(made):
        torch.testing.assert_close(kernel, plain_kernel(one(params, index), name)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scale", "count"), [(1, 8), (3, 8), (4, COUNT)])
def test_equals_the_plain_pipeline_without_roundings(scale: int, count: int) -> None:
    """All linear steps, clamps and Gaussian noise; neither JPEG nor Poisson noise, which round."""
    params = draw(count, **WITHOUT_ROUNDINGS)
    gt = views(*SIZE, batch=count)[:, 0]
    made = SecondOrderDegradation(scale, round_to_8bit=False)(gt, params)
    for index, lq in enumerate(made):
        expected = plain(gt[index, None], one(params, index), scale)
        torch.testing.assert_close(lq, expected[0], rtol=0, atol=2e-5)  # sinc kernels are good to 2e-7 a tap
    rounded = SecondOrderDegradation(scale)(gt, params)
    torch.testing.assert_close(rounded, (made.clamp(0, 1) * GREY_LEVELS).round() / GREY_LEVELS, rtol=0, atol=0)


def test_equals_the_plain_pipeline_with_all_its_roundings() -> None:
    """With OpenCV's JPEG and Poisson noise, but without sinc kernels, whose last digits would be rounded otherwise."""
    bare: dict[str, Any] = {"blur": {"sinc_prob": 0}}
    degradation = SecondOrderDegradation(
        4, per_sample=True, round_to_8bit=False, first=bare, second=bare, final={"sinc_prob": 0}
    )
    params = degradation.sample(COUNT, generator())
    for name in ("first", "second"):
        params[f"{name}_quality"] = params[f"{name}_quality"].round()
        params[f"{name}_quality"][::7] = 0
    gt = views(*SIZE, batch=COUNT)[:, 0]
    made = degradation(gt, params)
    for index, lq in enumerate(made):
        expected = plain(gt[index, None], one(params, index), 4)
        torch.testing.assert_close(lq, expected[0], rtol=0, atol=1e-9)


def test_float32_differs_in_the_last_digits() -> None:
    params = draw(**WITHOUT_ROUNDINGS)
    gt = views(*SIZE, batch=COUNT, count=2)
    degradation = SecondOrderDegradation(4, round_to_8bit=False)
    made = degradation(gt.float(), params)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), degradation(gt, params), rtol=0, atol=1e-5)


def assert_each_alone_is_the_same(degradation: SecondOrderDegradation, params: Params) -> None:
    """In float64, where no last digit is near enough to a half to be rounded otherwise."""
    batch = len(params["first_kernel"])
    gt = views(*SIZE, batch=batch, count=2)
    together = degradation(gt, params)
    order = torch.randperm(batch, generator=generator())
    turned = degradation(gt[order], {name: column[order] for name, column in params.items()})
    torch.testing.assert_close(turned, together[order], rtol=0, atol=1e-9)
    for index in range(batch):
        alone = degradation(gt[index, None], one(params, index))
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-9)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_sample_does_not_depend_on_its_batch(per_sample: bool) -> None:
    degradation = SecondOrderDegradation(4, per_sample=per_sample)
    for seed in range(3):
        params = degradation.sample(6, generator(seed))
        assert_each_alone_is_the_same(degradation, params)
    params["first_quality"][1], params["second_quality"][::2] = 0, 0
    assert_each_alone_is_the_same(degradation, params)


def test_samples_that_differ_in_one_thing_are_not_taken_for_alike() -> None:
    differing: dict[str, float] = {"first_resize": 0.7, "first_mode": 2, "second_resize": 1.1, "second_mode": 0}
    differing |= {"final_mode": 1, "final_jpeg_last": True}
    params = {name: column.expand(len(differing) + 1).clone() for name, column in one(draw(), 0).items()}
    for name, value in {"resize": 0.5, "mode": 1}.items():
        params[f"first_{name}"][:], params[f"second_{name}"][:] = value, value
    params["final_mode"][:], params["final_jpeg_last"][:] = 2, False
    for index, (name, value) in enumerate(differing.items()):
        params[name][index] = value
    assert_each_alone_is_the_same(SecondOrderDegradation(4), params)


def test_parameters_decide_and_can_be_saved(tmp_path: Path) -> None:
    degradation, gt = SecondOrderDegradation(4), views(96, 96, batch=4).float()
    params = degradation.sample(4, generator(1))
    kept, image = {name: column.clone() for name, column in params.items()}, gt.clone()
    lq = degradation(gt, params)
    state = torch.random.get_rng_state()
    assert torch.equal(degradation(gt, params), lq)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(gt, image)
    assert all(torch.equal(params[name], kept[name]) for name in params)
    torch.save(params, tmp_path / "params.pt")
    assert torch.equal(SecondOrderDegradation(4)(gt, torch.load(tmp_path / "params.pt", weights_only=True)), lq)
    assert not torch.equal(degradation(gt, degradation.sample(4, generator(2))), lq)


@pytest.mark.parametrize("dims", [(), (1,), (3,), (2, 2)])
def test_views_share_everything_but_the_noise(dims: tuple[int, ...]) -> None:
    params = draw(6, **WITHOUT_ROUNDINGS, first_gaussian=0.0, second_gaussian=0.0)
    degradation = SecondOrderDegradation(3, round_to_8bit=False)
    gt = torch.rand(6, *dims, 3, 96, 120, generator=generator())
    lq = degradation(gt, params)
    assert lq.shape == (6, *dims, 3, 32, 40)
    flat, made = gt.view(6, -1, 3, 96, 120), lq.view(6, -1, 3, 32, 40)
    for index in range(flat.shape[1]):
        torch.testing.assert_close(degradation(flat[:, index], params), made[:, index], rtol=0, atol=1e-5)
    if dims == (3,):
        view = gt[:, :1].expand(6, 3, 3, 96, 120)
        noisy = degradation(view, with_values(params, first_gaussian=10.0))
        assert not torch.equal(noisy[:, 0], noisy[:, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_8_bit_images_of_the_type_given(dtype: torch.dtype) -> None:
    gt = views(96, 96, batch=6).to(dtype)
    lq = SecondOrderDegradation(4)(gt, draw(6))
    assert lq.dtype == dtype
    assert SecondOrderDegradation(4).target(gt).dtype == dtype
    assert (float(lq.min()) >= 0) & (float(lq.max()) <= 1)
    levels = lq.double() * GREY_LEVELS
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=GREY_LEVELS * torch.finfo(dtype).eps)


def test_autocast_does_not_reach_the_degradation() -> None:
    degradation, gt, params = SecondOrderDegradation(4), views(96, 96, batch=4).float(), draw(4)
    expected = degradation.target(gt), degradation(gt, params), degradation.clean(gt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = degradation.target(gt), degradation(gt, params), degradation.clean(gt)
    assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))


def test_the_target_is_sharpened_as_by_basicsr() -> None:
    gt = views(56, 64, batch=1, count=2).float()
    target = SecondOrderDegradation(4).target(gt)
    assert target.shape == gt.shape
    # a pixel at the threshold may fall on the other side
    torch.testing.assert_close(target, USMSharp()(gt[0])[None], rtol=0, atol=1e-3)
    assert float((target - gt).abs().max()) > 0.05
    assert SecondOrderDegradation(4, usm=False).target(gt) is gt
    assert ClassicalDegradation(4).target(gt) is gt


def test_the_call_itself_does_not_sharpen() -> None:
    gt, params = views(96, 96, batch=2).float(), draw(2)
    assert torch.equal(SecondOrderDegradation(4)(gt, params), SecondOrderDegradation(4, usm=False)(gt, params))


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_images_of_the_shortest_side_can_be_degraded(scale: int) -> None:
    degradation = SecondOrderDegradation(scale, per_sample=True)
    side = degradation.smallest_side()
    assert side == max(74, 11 * scale)  # 11 pixels after a first resize by 0.15; 11 pixels under the last filter
    side += -side % scale
    params = degradation.sample(60, generator())
    params["first_resize"][:3] = 0.15
    params["second_resize"][:3] = 0.3
    for name in ("first", "second", "final"):
        params[f"{name}_kernel"][:3], params[f"{name}_taps"][:3], params[f"{name}_cutoff"][:3] = 7, 21, 2.0
    lq = degradation(torch.rand(60, 3, side, side, generator=generator()), params)
    assert lq.shape == (60, 3, side // scale, side // scale)


def test_drawn_parameters_may_need_less() -> None:
    degradation = SecondOrderDegradation(2)
    params = with_values(draw(1), first_resize=0.5, second_resize=0.3, first_kernel=7, first_cutoff=2.0, first_taps=9)
    params = with_values(params, second_kernel=7, second_cutoff=2.0, second_taps=15, final_kernel=0, final_taps=0)
    assert degradation.smallest_side(params) == 16, "8 pixels after halving"
    assert degradation.smallest_side(with_values(params, second_kernel=0, second_taps=0)) == 8, "0.3 · 4 is a pixel"
    assert degradation.smallest_side(with_values(params, final_kernel=7, final_taps=21)) == 22
    assert degradation.smallest_side(with_values(params, first_resize=0.29)) == 28, "0.29 · 27 are not 8 pixels"
    several = {name: torch.cat([params[name], draw(5)[name]]) for name in params}
    sides = [degradation.smallest_side(one(several, index)) for index in range(6)]
    assert degradation.smallest_side(several) == max(sides) > min(sides)
    gt = torch.rand(1, 3, 16, 16, generator=generator())
    assert degradation(gt, params).shape == (1, 3, 8, 8)
    blurless = {"blur": {"prob": 0}}
    free = SecondOrderDegradation(2, first=blurless, second=blurless, final={"sinc_prob": 0})
    assert free.smallest_side() == 8
    resized = SecondOrderDegradation(2, first={**blurless, "resize": {"prob": {"keep": 1}}}, final={"sinc_prob": 0})
    assert resized.smallest_side() == 11


def test_whole_photographs() -> None:
    gt = photograph("chelsea.png")[None, :, :300, :448].float()
    params = draw(6)
    for index in range(6):
        lq = SecondOrderDegradation(4)(gt, one(params, index))
        assert lq.shape == (1, 3, 75, 112)
        assert float(F.l1_loss(lq, F.interpolate(gt, size=lq.shape[-2:], mode="area"))) < 0.15, "the same picture"


def test_clean_is_the_bicubic_of_the_classical_degradation() -> None:
    gt = views(96, 108, batch=2, count=2)
    for rounds in (True, False):
        expected = ClassicalDegradation(3, round_to_8bit=rounds)(gt, classical_params([0.0, 0.0]))
        assert torch.equal(SecondOrderDegradation(3, round_to_8bit=rounds).clean(gt), expected)


def test_nothing_is_calibrated() -> None:
    degradation = SecondOrderDegradation(4)
    assert not degradation.needs_calibration
    degradation.calibrate(torch.zeros(1, 3, 96, 96))
    assert degradation.calibration() == {}
    degradation.load_calibration({})


def test_basicsrs_pipeline_is_the_one_that_these_tests_know() -> None:
    """The order of its steps, by where its code calls them; its options' names with a 2 are the second round's."""
    code = inspect.getsource(RealESRGANModel.feed_data)
    steps = ["self.kernel1)", "resize_range'", "noise_range'", "jpeg_range'", "self.kernel2)", "resize_range2'"]
    steps += [
        "noise_range2'",
        "self.sinc_kernel)",
        "jpeg_range2'",
        "jpeg_range2'",
        "self.sinc_kernel)",
        "clamp and round",
    ]
    place = 0
    for step in steps:
        place = code.index(step, place) + 1
    assert math.isclose(SecondOrderDegradation(4).final.jpeg_last_prob, float(code.split("uniform() < ")[-1][:3]))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_does_what_the_cpu_does() -> None:
    gt, degradation = views(*SIZE, batch=COUNT, count=2), SecondOrderDegradation(4, round_to_8bit=False)
    params = draw()
    made = degradation(gt.to("cuda"), params)
    assert made.device.type == "cuda"
    difference = (made.cpu() - degradation(gt, params)).abs() * GREY_LEVELS
    # sinc kernels are good to 2e-7 a tap, by which a pixel may be moved over a half before JPEG
    assert float(difference.mean()) < 0.1
    assert float((difference > 0.5).double().mean()) < 0.02
    linear = draw(**WITHOUT_ROUNDINGS)
    made = degradation(gt.float().to("cuda"), linear).cpu().double()
    torch.testing.assert_close(made, degradation(gt, linear), rtol=0, atol=2e-5)
    torch.testing.assert_close(degradation.target(gt.to("cuda")).cpu(), degradation.target(gt), rtol=0, atol=1e-6)
    torch.testing.assert_close(degradation.clean(gt.to("cuda")).cpu(), degradation.clean(gt), rtol=0, atol=1e-6)
