"""Steps whose numbers are not finite are not made and leave no trace; the others are, clipped and logged as asked."""

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

from bsr_plugins.engine.guards import GuardOptions, NonFiniteError, read_guard_options
from bsr_plugins.errors import BSRError, OptionError
from tests.engine.guarded_steps import (
    INF,
    NAN,
    CarefulModel,
    FreezingModel,
    State,
    batch_at,
    gradients_of,
    guarded,
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

KINDS = ("sr", "gan", "aacl", "redsr", "align")


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    register_strangers(monkeypatch.setitem)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_batch_leaves_no_trace(kind: str, opts: dict[str, Options]) -> None:
    model, undisturbed = make(opts[kind]), make(opts[kind])
    guard = guarded(model)
    for iteration in range(1, 6):
        batch, before = batch_at(opts[kind], iteration), state_of(model)
        if iteration in (2, 4):
            assert not step(guard, model, iteration, spoilt(batch))
            assert_equal(state_of(model), before)
            assert gradients_of(model) == [None] * len(gradients_of(model))
            undisturbed.update_learning_rate(iteration)
        else:
            assert step(guard, model, iteration, batch)
            step(None, undisturbed, iteration, batch)
            assert any(not torch.equal(value, before[key]) for key, value in state_of(model).items() if key in before)
    assert_equal(state_of(model), state_of(undisturbed))
    assert dict(model.get_current_log()) == dict(undisturbed.get_current_log())
    assert guard.figures() == {"skipped_steps": 2.0}
    if kind == "aacl":
        assert int(model.bare_moco.queue_filled) == 12, "three steps of four keys"


@pytest.fixture
def log(opts: dict[str, Options]) -> Iterator[list[str]]:
    """The messages of BasicSR's logger that are warnings or worse."""
    make(opts["sr"])  # sets the logger up
    messages: list[str] = []
    collect = partial(keep_message, messages)
    logging.getLogger("basicsr").addFilter(collect)
    yield messages
    logging.getLogger("basicsr").removeFilter(collect)


@pytest.mark.parametrize("key", ["pixel_opt", "perceptual_opt"])
@pytest.mark.parametrize("added", [INF, NAN])
def test_a_bad_loss_with_a_finite_gradient_is_seen(
    key: str, added: float, opts: dict[str, Options], log: list[str]
) -> None:
    opts["sr"]["train"][key] = {"type": "SwitchedLoss", "perceptual": key == "perceptual_opt"}
    model = make(opts["sr"])
    guard, batch = guarded(model), batch_at(opts["sr"], 1)
    name = {"pixel_opt": "cri_pix", "perceptual_opt": "cri_perceptual"}[key]
    getattr(model, name).added = added
    before = state_of(model)
    assert not step(guard, model, 1, batch)
    assert_equal(state_of(model), before)
    (line,) = log
    assert f"{name} is {added}" in line
    assert "gradient" not in line
    assert dict(model.get_current_log()) == {}, "there is a log, if an empty one"
    getattr(model, name).added = 0.0
    assert step(guard, model, 1, batch)


@pytest.mark.parametrize("slope", [NAN, INF, 1e30])
def test_a_bad_gradient_of_a_finite_loss_is_seen(slope: float, opts: dict[str, Options], log: list[str]) -> None:
    opts["sr"]["train"]["pixel_opt"] = {"type": "SteepLoss"}
    model = make(opts["sr"])
    guard, before = guarded(model, clip_grad_norm=1.0), state_of(model)
    model.cri_pix.slope = slope
    assert not step(guard, model, 1, batch_at(opts["sr"], 1))
    assert_equal(state_of(model), before)
    (line,) = log
    assert "the gradient norm of optimizers[0] is " in line
    assert "cri_pix" not in line


def test_a_figure_besides_a_loss_may_be_infinite(opts: dict[str, Options]) -> None:
    opts["sr"]["train"]["perceptual_opt"] = {"type": "FigureLoss"}
    model = make(opts["sr"])
    assert step(guarded(model), model, 1, batch_at(opts["sr"], 1))


def test_a_generator_s_step_stays_when_its_discriminator_s_is_bad(opts: dict[str, Options], log: list[str]) -> None:
    model, generator_alone = make(opts["gan"]), make(opts["gan"])
    guard, other, batch = guarded(model, log_grad_norm=True), guarded(generator_alone), batch_at(opts["gan"], 1)
    for each, guard_of in ((model, guard), (generator_alone, other)):
        assert step(guard_of, each, 1, batch)
    before = state_of(model)
    assert guard.figures().keys() == {"grad_norm_0", "grad_norm_1"}

    forward = model.cri_gan.forward
    model.cri_gan.forward = lambda *a, **k: forward(*a, **k) + (INF if k["is_disc"] else 0)
    at_the_step: list[State] = []
    handle = generator_alone.optimizer_g.register_step_post_hook(
        lambda *_: at_the_step.append(state_of(generator_alone))
    )
    assert not step(guard, model, 2, batch_at(opts["gan"], 2))
    step(None, generator_alone, 2, batch_at(opts["gan"], 2))
    handle.remove()
    (expected,) = at_the_step
    assert_equal(state_of(model), expected)
    changed = {key for key, value in expected.items() if not torch.equal(value, before[key])}
    assert {"net_g.tail.weight", "net_g.norm.running_mean", "net_d.conv1.weight_u"} <= changed
    assert not any(key.startswith(("net_g_ema", "optimiser 1")) or "weight_orig" in key for key in changed)
    assert ": cri_gan is inf; " in log[0]
    assert guard.figures().keys() == {"grad_norm_0", "skipped_steps"}
    assert all(p.requires_grad for p in model.net_d.parameters())


def test_the_line_names_files_and_degradation(opts: dict[str, Options], log: list[str]) -> None:
    model = make(opts["sr"])
    guard = guarded(model)
    assert not step(guard, model, 7, spoilt(batch_at(opts["sr"], 7)))
    model.describe_degradation = lambda: "blur σ 1.5,\n  2.5"
    assert not step(guard, model, 8, spoilt(batch_at(opts["redsr"], 8) | batch_at(opts["sr"], 8)))
    assert log == [
        "Iteration 7: step skipped (1 in a row, 1 in all): cri_pix is nan, the gradient norm of optimizers[0] is nan; "
        "gt_path 0_0.png, 0_1.png, 0_2.png, 0_3.png; lq_path lq_0_0.png, lq_0_1.png, lq_0_2.png, lq_0_3.png",
        "Iteration 8: step skipped (2 in a row, 2 in all): cri_pix is nan, the gradient norm of optimizers[0] is nan; "
        "gt_path 0_0.png, 0_1.png, 0_2.png, 0_3.png; lq_path lq_0_0.png, lq_0_1.png, lq_0_2.png, lq_0_3.png; "
        "degraded by blur σ 1.5, 2.5",
    ]


def test_many_in_a_row_end_the_run_and_a_resumed_one_counts_on(opts: dict[str, Options], log: list[str]) -> None:
    model = make(opts["sr"])
    guard = guarded(model, max_nonfinite_steps=3)
    bad, good = spoilt(batch_at(opts["sr"], 1)), batch_at(opts["sr"], 2)
    for iteration, batch in enumerate((bad, bad, good, bad, bad), 1):
        assert step(guard, model, iteration, batch) == (batch is good)
    resumed = guarded(model, max_nonfinite_steps=3)
    resumed.load_state(guard.state())
    with pytest.raises(NonFiniteError) as caught:
        step(resumed, model, 6, bad)
    message = str(caught.value)
    assert isinstance(caught.value, BSRError)
    assert "\n" not in message
    for part in ("iteration 6", "3 steps in a row", "cri_pix is nan", "train.max_nonfinite_steps", "train.optim_*.lr"):
        assert part in message
    assert "(3 in a row, 5 in all)" in log[-1]
    assert resumed.state() == {"skipped_in_a_row": 3, "skipped_total": 5}


def norm_of(gradients: list[Tensor]) -> float:
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clip=st.floats(1e-3, 1e3))
def test_clipping_is_torch_s_and_the_norm_is_that_before(clip: float, opts: dict[str, Options]) -> None:
    models = [make(opts["sr"]) for _ in range(2)]
    batch = {
        key: value.double() if isinstance(value, Tensor) else value for key, value in batch_at(opts["sr"], 1).items()
    }
    for model in models:
        model.net_g.double()
    model, plain = models
    guard = guarded(model, clip_grad_norm=clip, log_grad_norm=True)
    before: list[float] = []

    def clip_by_hand(*_: object) -> None:
        before.append(norm_of(gradients_of(plain)))
        nn.utils.clip_grad_norm_(plain.net_g.parameters(), clip)

    plain.optimizer_g.register_step_pre_hook(clip_by_hand)
    for each, guard_of in ((model, guard), (plain, None)):
        each.net_g_ema.double()
        assert step(guard_of, each, 1, batch)
    for one, other in zip(gradients_of(model), gradients_of(plain), strict=True):
        assert one.dtype == torch.float64
        assert torch.equal(one, other)
    assert_equal(state_of(model), state_of(plain))
    assert guard.figures() == {"grad_norm": pytest.approx(before[0], rel=1e-12)}
    assert norm_of(gradients_of(model)) == pytest.approx(min(clip, before[0]), rel=1e-4)


def test_figures_are_those_of_the_last_step(opts: dict[str, Options]) -> None:
    opts["gan"]["train"]["net_d_iters"] = 2
    model = make(opts["gan"])
    guard, quiet = guarded(model, log_grad_norm=True), guarded(model)
    assert step(guard, model, 1, batch_at(opts["gan"], 1))
    assert guard.figures().keys() == {"grad_norm_1"}, "the generator has not stepped"
    assert step(guard, model, 2, batch_at(opts["gan"], 2))
    assert guard.figures().keys() == {"grad_norm_0", "grad_norm_1"}
    assert guard.figures()["grad_norm_1"] == pytest.approx(
        norm_of([p.grad for p in model.net_d.parameters()]), rel=1e-5
    )
    assert step(guard, model, 3, batch_at(opts["gan"], 3))
    assert guard.figures().keys() == {"grad_norm_1"}
    assert not step(guard, model, 4, spoilt(batch_at(opts["gan"], 4)))
    assert guard.figures() == {"skipped_steps": 1.0}
    assert step(quiet, model, 5, batch_at(opts["gan"], 5))
    assert quiet.figures() == {}


@pytest.mark.parametrize("model_type", [CarefulModel, FreezingModel])
def test_models_with_habits(model_type: Any, opts: dict[str, Options]) -> None:
    torch.manual_seed(1)
    model = model_type(copy.deepcopy(opts["sr"]))
    guard, before = guarded(model), state_of(model)
    assert not step(guard, model, 1, spoilt(batch_at(opts["sr"], 1)))
    assert_equal(state_of(model), before)
    assert all(p.requires_grad for p in model.net_g.parameters())
    assert step(guard, model, 2, batch_at(opts["sr"], 2))


def test_nothing_is_left_on_the_model(opts: dict[str, Options]) -> None:
    model = make(opts["gan"])
    guard = guarded(model)
    attributes = set(vars(model))

    def check() -> None:
        for module in (model.cri_pix, model.cri_gan, model.net_g, model.net_d):
            assert not module._forward_hooks
        for optimiser in model.optimizers:
            assert not optimiser._optimizer_step_pre_hooks

    step(guard, model, 1, batch_at(opts["gan"], 1))
    check()
    step(guard, model, 2, spoilt(batch_at(opts["gan"], 2)))
    check()
    model.feed_data({"lq": torch.rand(1, 1, 4, 4), "gt": torch.rand(1)})
    with pytest.raises(RuntimeError, match="channels"):
        guard.step(3, {})
    check()
    assert set(vars(model)) - attributes <= {"lq", "gt", "output", "log_dict"}


def test_options_are_read() -> None:
    assert read_guard_options({}) == GuardOptions(None, False, 10)
    assert read_guard_options({"clip_grad_norm": None, "log_grad_norm": True}) == GuardOptions(None, True, 10)
    read = read_guard_options({"clip_grad_norm": 2, "max_nonfinite_steps": 1, "total_iter": 5})
    assert read == GuardOptions(2.0, False, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [("clip_grad_norm", value) for value in (0, -1, NAN, INF, "1e-3", True, [1])]
    + [("log_grad_norm", value) for value in (None, 1, "yes")]
    + [("max_nonfinite_steps", value) for value in (0, None, 2.0, True, "3")],
)
def test_unusable_options_are_named(key: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        read_guard_options({key: value})
    assert str(caught.value).startswith(f"train.{key}: {value!r}, expected ")
