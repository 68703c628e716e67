"""ModulatedL1Loss, its weights and its distances against Eq. 7 and 8, gradients, precision, options."""

from __future__ import annotations

import math

import pytest
import torch
from basicsr.losses import build_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from torch import Tensor

from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.losses import ModulatedL1Loss, modulation, redegradation_distance


def random_images(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def photographs() -> Tensor:
    """Three patches of a photograph (3, 3, 16, 16), float32."""
    image = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    return torch.stack([image[:, top : top + 16, 200:216] for top in (40, 100, 300)])


def plain_rmse(first: list[float], second: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) / len(first))


def plain_loss(sr: Tensor, gt: Tensor, reproduced: Tensor, lq: Tensor) -> float:
    """Eq. 7 and 8, image by image, with the confidence C = 1/d written out."""
    losses: list[float] = []
    for i in range(sr.shape[0]):
        confidence = 1 / plain_rmse(reproduced[i].flatten().tolist(), lq[i].flatten().tolist())
        weight = 2 / (1 + 1 / confidence)
        pairs = list(zip(sr[i].flatten().tolist(), gt[i].flatten().tolist(), strict=True))
        losses.append(weight * sum(abs(a - b) for a, b in pairs) / len(pairs))
    return sum(losses) / len(losses)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(0, 999))
def test_agrees_with_eq_7_and_8(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    sr, gt = (random_images(batch, channels, 2 * height, 2 * width, seed=seed + k) for k in (0, 1))
    reproduced, lq = (random_images(batch, channels, height, width, seed=seed + k) for k in (2, 3))
    loss = ModulatedL1Loss(loss_weight=0.5)(sr, gt, redegradation_distance(reproduced, lq))
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(0.5 * plain_loss(sr, gt, reproduced, lq), rel=1e-9)


def test_distance_is_the_rmse_of_each_photograph() -> None:
    lq = photographs()
    offsets = torch.tensor([0.0, 0.25, 1.0])
    distance = redegradation_distance(lq + offsets[:, None, None, None], lq)
    assert distance.shape == (3,)
    assert torch.allclose(distance, offsets, atol=1e-6)


def test_weights_at_known_distances() -> None:
    weights = modulation(torch.tensor([0.0, 0.25, 1.0, 3.0]))
    assert torch.allclose(weights, torch.tensor([2.0, 1.6, 1.0, 0.5]))


def test_the_better_reproduced_photograph_weighs_more() -> None:
    gt = photographs()
    sr = gt + 0.1
    loss = ModulatedL1Loss()
    near, far = loss(sr, gt, torch.full((3,), 0.05)), loss(sr, gt, torch.full((3,), 0.5))
    assert float(near) == pytest.approx(0.1 * 2 / 1.05, rel=1e-5)
    assert float(far) == pytest.approx(0.1 * 2 / 1.5, rel=1e-5)


def test_no_gradient_flows_through_the_weights() -> None:
    sr, gt = (random_images(2, 3, 8, 8, seed=seed) for seed in (1, 2))
    distance = torch.tensor([0.1, 0.4], dtype=torch.float64, requires_grad=True)
    sr.requires_grad_()
    assert not modulation(distance).requires_grad
    ModulatedL1Loss()(sr, gt, distance).backward()
    assert distance.grad is None
    weights = torch.tensor([2 / 1.1, 2 / 1.4], dtype=torch.float64)[:, None, None, None]
    assert sr.grad is not None
    assert torch.allclose(sr.grad, weights * (sr.detach() - gt).sign() / sr.numel())


def test_the_distance_has_no_gradient_of_its_own() -> None:
    lq = random_images(2, 3, 4, 4, seed=3)
    degrader_output = lq.clone().requires_grad_()  # a distance of 0, where the root has no finite gradient
    distance = redegradation_distance(degrader_output, lq.clone().requires_grad_())
    assert not distance.requires_grad


def test_gradients_are_the_derivatives() -> None:
    sr, gt = (random_images(2, 1, 3, 2, seed=seed).requires_grad_() for seed in (4, 5))
    distance = torch.tensor([0.1, 0.4], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: ModulatedL1Loss()(a, b, distance), (sr, gt))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(low: torch.dtype) -> None:
    gt = photographs()
    sr, distance = (gt + 0.03).to(low), torch.tensor([0.1, 0.2, 0.3], dtype=low)
    with torch.autocast("cpu", dtype=low):
        loss, rmse = ModulatedL1Loss()(sr, gt.to(low), distance), redegradation_distance(sr, gt.to(low))
    assert (loss.dtype, rmse.dtype, modulation(distance).dtype) == (torch.float32,) * 3
    assert torch.equal(loss, ModulatedL1Loss()(sr.float(), gt.to(low).float(), distance.float()))
    assert torch.equal(rmse, redegradation_distance(sr.float(), gt.to(low).float()))


@pytest.mark.parametrize(
    ("sr", "gt", "distance", "message"),
    [
        ((2, 3, 8, 8), (2, 3, 8, 4), (2,), "sr (2, 3, 8, 8) and gt (2, 3, 8, 4), expected two equal shapes"),
        ((3, 8, 8), (3, 8, 8), (3,), "sr (3, 8, 8) and gt (3, 8, 8), expected two equal shapes"),
        ((2, 3, 8, 8), (2, 3, 8, 8), (1,), "distance (1,), expected (2,)"),
        ((2, 3, 8, 8), (2, 3, 8, 8), (2, 1), "distance (2, 1), expected (2,)"),
        ((2, 3, 8, 8), (2, 3, 8, 8), (), "distance (), expected (2,)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    sr: tuple[int, ...], gt: tuple[int, ...], distance: tuple[int, ...], message: str
) -> None:
    with pytest.raises(BSRError) as caught:
        ModulatedL1Loss()(torch.zeros(sr), torch.zeros(gt), torch.zeros(distance))
    assert str(caught.value).startswith(f"ModulatedL1Loss: {message}")


def test_a_distance_of_different_shapes_is_refused() -> None:
    with pytest.raises(BSRError, match=r"^redegradation_distance: reproduced \(1, 3, 4, 4\) and lq \(2, 3, 4, 4\)"):
        redegradation_distance(torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4))


def test_stock_basicsr_builds_it() -> None:
    loss = build_loss({"type": "ModulatedL1Loss", "loss_weight": 0.5})
    assert isinstance(loss, ModulatedL1Loss)
    assert loss.loss_weight == 0.5


@pytest.mark.parametrize("value", [-1, "1", None])
def test_a_bad_weight_is_named(value: object) -> None:
    with pytest.raises(OptionError, match=r"^loss_weight: .*expected"):
        ModulatedL1Loss(value)  # type: ignore[arg-type]
