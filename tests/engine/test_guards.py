"""Steps whose numbers are not finite: our models leave them out without a trace, those of others end the run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bsr_plugins.engine.guard import StepWatch, guard_of
from bsr_plugins.errors import BSRError
from bsr_plugins.models.step_guard import NonFiniteError
from tests.engine.guarded_steps import (
    INF,
    NAN,
    CarefulModel,
    batch_at,
    gradients_of,
    keep_message,
    make,
    register_strangers,
    spoilt,
    state_of,
    step,
)
from tests.models.stepping import assert_equal

if TYPE_CHECKING:
    from tests.conftest import Options


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    register_strangers(monkeypatch.setitem)


@pytest.fixture
def log(opts: dict[str, Options]) -> Iterator[list[str]]:
    """The messages of BasicSR's logger that are warnings or worse."""
    make(opts["sr"])  # sets the logger up
    messages: list[str] = []
    collect = partial(keep_message, messages)
    logging.getLogger("basicsr").addFilter(collect)
    yield messages
    logging.getLogger("basicsr").removeFilter(collect)


@pytest.mark.parametrize("kind", ["aacl", "redsr", "align"])
def test_a_bad_batch_leaves_no_trace_in_our_models(kind: str, opts: dict[str, Options]) -> None:
    model, undisturbed = make(opts[kind]), make(opts[kind])
    guard = guard_of(model)
    for iteration in range(1, 6):
        batch, before = batch_at(opts[kind], iteration), state_of(model)
        if iteration in (2, 4):
            assert not step(model, iteration, spoilt(batch))
            assert_equal(state_of(model), before)
            undisturbed.update_learning_rate(iteration)
        else:
            assert step(model, iteration, batch)
            step(undisturbed, iteration, batch)
            assert any(not torch.equal(value, before[key]) for key, value in state_of(model).items() if key in before)
    assert_equal(state_of(model), state_of(undisturbed))
    logged = {name: value for name, value in model.get_current_log().items() if name != "skipped_steps"}
    assert logged == dict(undisturbed.get_current_log())
    assert guard.figures() == {"skipped_steps": 2.0}
    if kind == "aacl":
        assert int(model.bare_moco.queue_filled) == 12, "three steps of four keys"


def test_many_in_a_row_end_the_run_and_a_resumed_one_counts_on(opts: dict[str, Options], log: list[str]) -> None:
    opts["redsr"]["train"]["max_nonfinite_steps"] = 3
    model, resumed = make(opts["redsr"]), make(opts["redsr"])
    good = batch_at(opts["redsr"], 2)
    bad = spoilt(batch_at(opts["redsr"], 1))
    for iteration, batch in enumerate((bad, bad, good, bad, bad), 1):
        assert step(model, iteration, batch) == (batch is good)
    guard_of(resumed).load_state(guard_of(model).state())
    with pytest.raises(NonFiniteError) as caught:
        step(resumed, 6, bad)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("iteration 6", "3 steps in a row", "is nan", "train.max_nonfinite_steps", "train.optim_*.lr"):
        assert part in message
    assert log[0].startswith("Iteration 1: step skipped (1 in a row, 1 in all): ")
    assert "gt_path 0_0.png, 0_1.png, 0_2.png, 0_3.png; degraded by " in log[0]
    assert "(3 in a row, 5 in all)" in log[-1]
    assert guard_of(resumed).state() == {"skipped_in_a_row": 3, "skipped_total": 5}


def stopped(model: Any, batch: Any, iteration: int = 7) -> str:
    """Make a step that ends the run, and return what is said."""
    with pytest.raises(NonFiniteError) as caught:
        step(model, iteration, batch)
    assert isinstance(caught.value, BSRError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bad_batch_ends_the_run_of_a_stock_model(opts: dict[str, Options]) -> None:
    assert stopped(make(opts["sr"]), spoilt(batch_at(opts["sr"], 7))) == (
        "iteration 7: l_pix is nan, the gradient norm of optimizers[0] is nan; "
        "gt_path 0_0.png, 0_1.png, 0_2.png, 0_3.png; lq_path lq_0_0.png, lq_0_1.png, lq_0_2.png, lq_0_3.png; "
        "expected finite losses and gradients: look at these images, lower train.optim_*.lr, or set "
        "train.clip_grad_norm"
    )
    batch = spoilt(batch_at(opts["sr"], 7))
    nameless = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    assert "; files unknown; " in stopped(make(opts["sr"]), nameless)


@pytest.mark.parametrize("key", ["pixel_opt", "perceptual_opt"])
@pytest.mark.parametrize("added", [INF, NAN])
def test_a_bad_loss_with_a_finite_gradient_is_seen(key: str, added: float, opts: dict[str, Options]) -> None:
    opts["sr"]["train"][key] = {"type": "SwitchedLoss", "perceptual": key == "perceptual_opt"}
    model = make(opts["sr"])
    attribute, name = {"pixel_opt": ("cri_pix", "l_pix"), "perceptual_opt": ("cri_perceptual", "l_style")}[key]
    assert step(model, 1, batch_at(opts["sr"], 1))
    getattr(model, attribute).added = added
    said = stopped(model, batch_at(opts["sr"], 2))
    assert f"{name} is {added}" in said
    assert "gradient norm" not in said


@pytest.mark.parametrize("slope", [NAN, INF, 1e30])
def test_a_bad_gradient_of_a_finite_loss_is_seen(slope: float, opts: dict[str, Options]) -> None:
    opts["sr"]["train"] |= {"pixel_opt": {"type": "SteepLoss"}, "clip_grad_norm": 1.0}
    model = make(opts["sr"])
    model.cri_pix.slope = slope
    said = stopped(model, batch_at(opts["sr"], 1))
    assert "the gradient norm of optimizers[0] is " in said
    assert "l_pix" not in said


def test_a_bad_discriminator_ends_the_run(opts: dict[str, Options]) -> None:
    model = make(opts["gan"])
    assert step(model, 1, batch_at(opts["gan"], 1))
    forward = model.cri_gan.forward
    model.cri_gan.forward = lambda *a, **k: forward(*a, **k) + (INF if k["is_disc"] else 0)
    said = stopped(model, batch_at(opts["gan"], 2))
    assert "l_d_real is inf, l_d_fake is inf; gt_path" in said


def test_a_model_that_catches_errors_ends_too_and_its_figures_may_be_infinite(opts: dict[str, Options]) -> None:
    torch.manual_seed(1)
    model = CarefulModel(copy.deepcopy(opts["sr"]))
    assert step(model, 1, batch_at(opts["sr"], 1))
    assert model.log_dict["figure"] == INF
    assert "l_pix is nan" in stopped(model, spoilt(batch_at(opts["sr"], 2)))


def norm_of(gradients: list[Tensor]) -> float:
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clip=st.floats(1e-3, 1e3))
def test_clipping_is_torch_s_and_the_norm_is_that_before(clip: float, opts: dict[str, Options]) -> None:
    options = copy.deepcopy(opts["sr"])
    options["train"] |= {"clip_grad_norm": clip, "log_grad_norm": True}
    batch = {key: value.double() if isinstance(value, Tensor) else value for key, value in batch_at(options, 1).items()}
    model, plain = (make(options) for _ in range(2))
    before: list[float] = []

    def clip_by_hand(*_: object) -> None:
        before.append(norm_of(gradients_of(plain)))
        nn.utils.clip_grad_norm_(plain.net_g.parameters(), clip)

    plain.optimizer_g.register_step_pre_hook(clip_by_hand)
    for each in (model, plain):
        each.net_g.double()
        each.net_g_ema.double()
        each.feed_data(batch)
    watch = StepWatch(model)
    watch.step(1, batch)
    plain.optimize_parameters(1)
    for one, other in zip(gradients_of(model), gradients_of(plain), strict=True):
        assert one.dtype == torch.float64
        assert torch.equal(one, other)
    assert_equal(state_of(model), state_of(plain))
    assert watch.figures() == {"grad_norm": pytest.approx(before[0], rel=1e-12)}
    assert norm_of(gradients_of(model)) == pytest.approx(min(clip, before[0]), rel=1e-4)


def test_figures_are_those_of_the_last_step(opts: dict[str, Options]) -> None:
    opts["gan"]["train"] |= {"net_d_iters": 2, "log_grad_norm": True}
    model = make(opts["gan"])
    watch = StepWatch(model)
    figures = []
    for iteration in (1, 2, 3):
        batch = batch_at(opts["gan"], iteration)
        model.feed_data(batch)
        watch.step(iteration, batch)
        figures.append(watch.figures())
    assert [set(each) for each in figures] == [{"grad_norm_1"}, {"grad_norm_0", "grad_norm_1"}, {"grad_norm_1"}]
    expected = norm_of([parameter.grad for parameter in model.net_d.parameters()])
    assert figures[-1]["grad_norm_1"] == pytest.approx(expected, rel=1e-5)
    assert StepWatch(make(opts["sr"])).figures() == {}


def test_nothing_is_left_on_the_model(opts: dict[str, Options]) -> None:
    model = make(opts["gan"])
    attributes = set(vars(model))
    step(model, 1, batch_at(opts["gan"], 1))
    stopped(model, spoilt(batch_at(opts["gan"], 2)))
    model.feed_data({"lq": torch.rand(1, 1, 4, 4), "gt": torch.rand(1)})
    with pytest.raises(RuntimeError, match="channels"):
        StepWatch(model).step(3, {})
    assert not any(optimiser._optimizer_step_pre_hooks for optimiser in model.optimizers)
    assert set(vars(model)) - attributes <= {"lq", "gt", "output", "log_dict"}
