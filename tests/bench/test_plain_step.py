"""The plain port of the training step against ours, ours against `ReDSRModel`, and the measuring of memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from basicsr.models import build_model
from torch import Tensor

import plain_step
from bsr_plugins.archs.da_conv import DAConv
from plain_step import (
    SIZES,
    WAYS,
    Batch,
    Networks,
    PlainDAConv,
    PlainStep,
    TrainingStep,
    agreement,
    build_networks,
    parts,
    photograph_batch,
)

if TYPE_CHECKING:
    from tests.conftest import Options, Project

TINY = SIZES["tiny"]
CPU = torch.device("cpu")
LOSSES = ["l_representation", "l_redegradation", "l_pix"]
TOUCHED = 2**26


@pytest.fixture
def networks() -> Networks:
    torch.manual_seed(10)
    net_g, degrader = build_networks(TINY, CPU)
    return Networks(net_g.double(), degrader.double())


@pytest.fixture
def batch() -> Batch:
    gt, params = photograph_batch(TINY, CPU)
    return Batch(gt.double(), params)


def both(networks: Networks) -> dict[str, TrainingStep]:
    return {way: make(networks) for way, make in WAYS.items()}


def test_the_two_agree_in_float64(networks: Networks, batch: Batch) -> None:
    steps = both(networks)
    found = agreement(steps, batch)
    assert list(found.losses) == LOSSES
    for value, difference in found.losses.values():
        assert value > 0.01
        assert abs(difference) < 1e-12
    assert found.gradient < 1e-9
    trained = [p for network in (steps["ours"].net_g, steps["ours"].degrader) for p in network.parameters()]
    compared = sum(gradient.numel() for gradient in steps["ours"].gradients().values())
    assert compared == sum(p.numel() for p in trained if p.requires_grad), "every gradient has been compared"


def test_the_two_stay_together(networks: Networks, batch: Batch) -> None:
    steps = both(networks)
    for _ in range(2):
        for step in steps.values():
            step.run(batch)
    assert agreement(steps, batch).gradient < 1e-6
    moved = [
        not torch.equal(now, then)
        for now, then in zip(steps["plain"].net_g.parameters(), networks.net_g.parameters(), strict=True)
        if then.requires_grad
    ]
    assert all(moved), "each has trained copies, not the networks that were given"


def test_each_goes_its_own_way(networks: Networks) -> None:
    for step, kind, other in ((PlainStep, PlainDAConv, DAConv), (TrainingStep, DAConv, PlainDAConv)):
        made = step(networks)
        modules = [*made.net_g.modules(), *made.degrader.modules()]
        assert sum(isinstance(module, kind) for module in modules) == 2 + 6
        assert not any(isinstance(module, other) for module in modules)


def blunder(grad: Tensor) -> Tensor:
    return grad * 1.01


def test_a_wrong_gradient_is_found(networks: Networks, batch: Batch) -> None:
    steps = both(networks)
    steps["ours"].net_g.get_parameter("compress.0.weight").register_hook(blunder)
    found = agreement(steps, batch)
    assert found.parameter == "net_g.compress.0.weight"
    assert found.gradient == pytest.approx(0.01)


def test_a_gradient_that_is_no_number_is_found(networks: Networks, batch: Batch) -> None:
    steps = both(networks)
    steps["ours"].net_g.get_parameter("compress.0.weight").register_hook(lambda grad: grad * torch.nan)
    found = agreement(steps, batch)
    assert found.parameter == "net_g.compress.0.weight"
    assert not found.gradient < 1


def test_a_missing_gradient_is_found(networks: Networks, batch: Batch) -> None:
    steps = both(networks)
    steps["ours"].degrader.get_parameter("tail.0.weight").requires_grad_(False)
    found = agreement(steps, batch)
    assert found.parameter == "degrader.tail.0.weight"
    assert found.gradient == float("inf")


@pytest.mark.parametrize(
    ("part", "loss"),
    [
        ("plain_energy_distance", "l_representation"),
        ("plain_degradation", "l_redegradation"),
        ("plain_dynamic_conv", "l_pix"),
    ],
)
def test_a_part_that_differs_is_found(
    networks: Networks, batch: Batch, monkeypatch: pytest.MonkeyPatch, part: str, loss: str
) -> None:
    plain = getattr(plain_step, part)
    monkeypatch.setattr(plain_step, part, lambda *arguments: plain(*arguments) * 1.01)
    found = agreement(both(networks), batch)
    assert abs(found.losses[loss][1]) > 1e-10  # by float error it would be 1e-15
    assert found.gradient > 1e-4


def test_ours_is_the_step_of_the_model(redsr_options: Options, as_read: Callable[[Options], Options]) -> None:
    redsr_options["scale"] = redsr_options["network_g"]["upscale"] = redsr_options["network_degrader"]["scale"] = 4
    redsr_options["datasets"]["train"]["gt_size"] = 4 * TINY.lr_size
    redsr_options["train"]["representation_opt"]["num_samples"] = plain_step.NUM_SAMPLES
    model = build_model(as_read(redsr_options))
    step = TrainingStep(Networks(model.net_g, model.training_networks["degrader"]))
    gt, params = photograph_batch(TINY, CPU)
    lq = step.degrade(Batch(gt, params))
    eight_bits = model.degradation(gt, params)
    assert 0.4 < float((lq - eight_bits).abs().max()) * 255 < 0.51

    model.current_iter, model.figures = 1, {}
    model.generator = None  # nothing may be drawn from it
    model.prepare_batch(gt, lq, params)
    wanted = model.compute_losses()
    made = step.losses(gt, lq)
    assert set(made) == set(wanted) == set(LOSSES)
    for name in LOSSES[1:]:
        assert torch.equal(made[name], wanted[name])
    # The samples are others, as the model draws new ones in every step.
    assert float(made[LOSSES[0]].detach()) == pytest.approx(float(wanted[LOSSES[0]].detach()), rel=0.1)


def test_the_parts_give_the_same_both_ways(networks: Networks, batch: Batch) -> None:
    found = parts(both(networks), TINY, batch)
    assert [(part.name, part.size) for part in found] == [
        ("dynamic convolution, generator", "2×8×24×24"),
        ("dynamic convolution, degrader", "2×8×96×96"),
        ("energy distance", "2×64"),
        ("degradation", "2×2×3×96×96"),
    ]
    torch.manual_seed(3)
    for part in found:
        plain, ours = (part.ways[way]() for way in WAYS)
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


def test_the_batch_has_a_kernel_for_each_image() -> None:
    gt, params = photograph_batch(TINY, CPU)
    assert gt.shape == (2, 2, 3, 96, 96)
    assert gt.dtype == torch.float32
    assert len({view.sum().item() for view in gt.flatten(0, 1)}) == 4
    assert len(set(params["lambda1"].tolist())) == 2


def test_memory_is_that_of_the_process_alone(project: Project) -> None:
    held = bytearray(b"x" * 4 * TOUCHED)  # makes this process, which starts the other, the larger one
    lines = [
        "import resource, sys",
        "from pathlib import Path",
        inspect.getsource(plain_step._peak_resident),  # its module would take long to import
        "before = _peak_resident()",
        f"bytearray({TOUCHED})[::4096] = b'x' * {TOUCHED // 4096}",  # given back at once, but there at the peak
        "print('needed', _peak_resident() - before)",
    ]
    outcome = project.python("-c", "\n".join(lines))
    assert outcome.status == 0, outcome.output
    assert TOUCHED * 0.95 < int(outcome.output.split("needed")[1]) < TOUCHED * 1.5
    assert len(held) == 4 * TOUCHED


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_two_agree_on_cuda() -> None:
    torch.manual_seed(10)
    place = torch.device("cuda")
    networks = Networks(*(network.double() for network in build_networks(TINY, place)))
    gt, params = photograph_batch(TINY, place)
    found = agreement(both(networks), Batch(gt.double(), params))
    assert all(abs(difference) < 1e-12 for _, difference in found.losses.values())
    assert found.gradient < 1e-9
