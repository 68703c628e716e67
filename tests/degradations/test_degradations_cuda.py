"""CUDA does what the CPU does: the same draws and fields, and results that differ in the last digits alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bsr_plugins.degradations import ClassicalDegradation, sigma_align
from bsr_plugins.degradations.blur import blur, blur_bicubic, separable_blur_bicubic
from bsr_plugins.degradations.kernels import gaussian_kernels, gaussian_profiles
from bsr_plugins.degradations.resize import bicubic_resize
from bsr_plugins.degradations.stages.jpeg import jpeg
from bsr_plugins.degradations.stages.noise import gaussian_noise
from tests.degradations.photographs import views
from tests.degradations.test_motion_blur import motion_params

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

DEVICE = "cuda"
AGREEMENT = 1e-3 / 255

PARAMS = motion_params(
    [0.0, 0.0, 0.0, 0.0, 4.5],
    [0.0, 0.0, 0.0, 0.0, 0.9],
    lambda1=[0.0, 1.5, 3.0, 2.0, 0.0],
    lambda2=[0.0, 1.5, 0.8, 2.0, 0.0],
    theta=[0.0, 0.0, 0.6, 1.0, 0.0],
    noise_level=[0.0, 0.0, 0.0, 12.0, 5.0],
    noise_seed=[1, 2, 3, 4, 5],
)


def assert_agree(on_cuda: Tensor, on_cpu: Tensor) -> None:
    assert on_cuda.device.type == DEVICE
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, rtol=0, atol=AGREEMENT)


@pytest.mark.parametrize("side", [48, 128])
def test_blur_and_bicubic(side: int) -> None:
    x = views(side, side + 16, batch=2, count=2)
    widths = torch.tensor([[3.5, 1.0], [0.8, 2.0], [0.4, 1.9]], dtype=torch.float64)
    kernels = gaussian_kernels(widths[0], widths[1], widths[2], 21)
    profiles = gaussian_profiles(widths[0], 21)
    gt = x.float().to(DEVICE)
    assert_agree(blur(gt, kernels.float().to(DEVICE)), blur(x, kernels).float())
    assert_agree(bicubic_resize(gt, (20, 31), "mirror"), bicubic_resize(x, (20, 31), "mirror").float())
    for border in ("clamp", "mirror"):
        assert_agree(
            blur_bicubic(gt, kernels.float().to(DEVICE), 4, border), blur_bicubic(x, kernels, 4, border).float()
        )
        assert_agree(
            separable_blur_bicubic(gt, profiles.float().to(DEVICE), 4, border),
            separable_blur_bicubic(x, profiles, 4, border).float(),
        )


def test_noise_has_one_field_on_every_device() -> None:
    x, level, seed = torch.rand(3, 2, 3, 16, 16), torch.tensor([5.0, 0.0, 50.0]), torch.tensor([7, 8, 9])
    assert_agree(gaussian_noise(x.to(DEVICE), level, seed), gaussian_noise(x, level, seed))


def test_jpeg_gives_the_same_pixels() -> None:
    x = views(50, 67, batch=4, count=2).float()
    quality = torch.tensor([5, 40, 75, 100])
    assert torch.equal(jpeg(x.to(DEVICE), quality).cpu(), jpeg(x, quality))


def test_the_whole_pipeline() -> None:
    degradation = ClassicalDegradation(4, round_to_8bit=False)
    gt = views(96, 112, batch=5, count=2).float()
    lq = degradation(gt.to(DEVICE), PARAMS)
    assert lq.dtype == gt.dtype
    assert_agree(lq, degradation(gt, PARAMS))
    half = degradation(gt.to(DEVICE).half(), PARAMS)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float().cpu(), degradation(gt, PARAMS), rtol=0, atol=2e-3)
    rounded = ClassicalDegradation(4)
    difference = (rounded(gt.to(DEVICE), PARAMS).cpu() - rounded(gt, PARAMS)).abs() * 255
    assert float(difference.max()) < 1.1
    assert float((difference > 0.1).float().mean()) < 1e-3


def test_gradients() -> None:
    degradation = ClassicalDegradation(2, kernel_size=5, round_to_8bit=False)
    gt = views(6, 8, batch=5).to(DEVICE).requires_grad_()
    assert torch.autograd.gradcheck(lambda gt: degradation(gt, PARAMS), gt, atol=1e-6)


def test_calibration_agrees_and_can_be_used_on_the_other_device() -> None:
    def adaptive() -> ClassicalDegradation:
        return ClassicalDegradation(
            4, blur_aniso={"sigma": [0.2, 4.0]}, jpeg={"quality": [30, 95]}, sampler={"type": "ads", "grid": 9}
        )

    images = views(64, 64, batch=4)[:, 0].float()
    on_cpu, on_cuda = adaptive(), adaptive()
    on_cpu.calibrate(images)
    on_cuda.calibrate(images.to(DEVICE))
    for name, found in on_cuda.calibration().items():
        expected = torch.tensor(on_cpu.calibration()[name]["distances"])
        torch.testing.assert_close(torch.tensor(found["distances"]), expected, rtol=1e-2, atol=1e-2)
    assert on_cuda.sample(3, torch.Generator().manual_seed(0))["lambda1"].device.type == "cpu"


def test_sigma_alignment() -> None:
    distances = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    on_cuda, on_cpu = sigma_align(distances.to(DEVICE), 4, 0.1), sigma_align(distances, 4, 0.1)
    assert torch.equal(on_cuda.indices.cpu(), on_cpu.indices)
    assert torch.equal(on_cuda.accepted.cpu(), on_cpu.accepted)
