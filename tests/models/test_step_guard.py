"""Steps whose numbers are not finite are not made and leave no trace; the others are, clipped and logged as asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import bsr_plugins  # noqa: F401  # isort: skip  (BasicSR cannot be imported before it, in a spawned process)
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional as F

from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.models.step_guard import NonFiniteError, StepGuardOptions
from bsr_plugins.options.declared import read_block
from tests.models.stepping import assert_equal, batch_at, gradients_of, keep_message, make, spoilt, state_of

if TYPE_CHECKING:
    from tests.conftest import Options

INF, NAN = float("inf"), float("nan")
KINDS = ("aacl", "redsr", "align")
RANKS = 2
PLAN = ("good", "pixels", "good", "loss", "good", "pixels", "pixels", "pixels")


class SwitchedLoss(nn.Module):
    """An L1 loss with a number added, which has no gradient, or with a gradient that is too steep."""

    def __init__(self) -> None:
        super().__init__()
        self.added, self.slope = 0.0, 1.0

    def forward(self, pred: Tensor, target: Tensor) -> Any:
        if pred.requires_grad:
            pred.register_hook(lambda gradient: gradient * self.slope)
        return F.l1_loss(pred, target) + self.added, {"worst": torch.tensor(INF)}


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "SwitchedLoss", SwitchedLoss)


@pytest.fixture
def opts(aacl_options: Options, redsr_options: Options, as_read: Callable[[Options], Options]) -> dict[str, Options]:
    """Options of each method; AACL's first two iterations are the encoder's."""
    align = {key: value for key, value in redsr_options.items() if key != "network_degrader"}
    align |= {"model_type": "SimpleAlignModel", "path": dict(redsr_options["path"])}
    align["datasets"] = {phase: dict(block) for phase, block in redsr_options["datasets"].items()}
    align["network_g"] = {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 2}
    schedule = {key: dict(redsr_options["train"][key]) for key in ("optim_g", "scheduler")}
    align["train"] = {"total_iter": 4, "ema_decay": 0.9, **schedule}
    align["train"] |= {"pixel_opt": {"type": "SwitchedLoss"}, "align_opt": {"type": "AlignmentLoss"}}
    return {kind: as_read(o) for kind, o in (("aacl", aacl_options), ("redsr", redsr_options), ("align", align))}


def step(model: Any, iteration: int, batch: dict[str, Any]) -> bool:
    model.update_learning_rate(iteration)
    model.feed_data(batch)
    model.optimize_parameters(iteration)
    made: bool = model.step_made
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_batch_leaves_no_trace(kind: str, opts: dict[str, Options]) -> None:
    model, undisturbed = make(opts[kind]), make(opts[kind])
    for iteration in range(1, 6):
        batch, before = batch_at(opts[kind], iteration), state_of(model)
        if iteration in (2, 4):
            assert not step(model, iteration, spoilt(batch))
            assert_equal(state_of(model), before)
            assert gradients_of(model) == [None] * len(gradients_of(model))
            undisturbed.update_learning_rate(iteration)
        else:
            assert step(model, iteration, batch)
            assert step(undisturbed, iteration, batch)
            assert any(not torch.equal(value, before[key]) for key, value in state_of(model).items() if key in before)
    assert_equal(state_of(model), state_of(undisturbed))
    assert model.get_current_log() == undisturbed.get_current_log() | {"skipped_steps": 2.0}
    assert model.guard.figures() == {"skipped_steps": 2.0}
    if kind == "aacl":
        assert int(model.bare_moco.queue_filled) == 12, "three steps of four keys"


@pytest.fixture
def log(opts: dict[str, Options]) -> Iterator[list[str]]:
    """The messages of BasicSR's logger that are warnings or worse."""
    make(opts["align"])  # sets the logger up
    messages: list[str] = []
    collect = partial(keep_message, messages)
    logging.getLogger("basicsr").addFilter(collect)
    yield messages
    logging.getLogger("basicsr").removeFilter(collect)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("added", INF, "l_pix is inf"),
        ("added", NAN, "l_pix is nan"),
        ("slope", NAN, "the gradient norm of optimizers[0] is nan"),
        ("slope", INF, "the gradient norm of optimizers[0] is "),
        ("slope", 1e30, "the gradient norm of optimizers[0] is inf"),
    ],
)
def test_a_bad_loss_and_a_bad_gradient_are_seen_alone(
    name: str, value: float, expected: str, opts: dict[str, Options], log: list[str]
) -> None:
    opts["align"]["train"]["clip_grad_norm"] = 1.0
    model, batch = make(opts["align"]), batch_at(opts["align"], 1)
    before = state_of(model)
    setattr(model.losses["pixel_opt"].module, name, value)
    assert not step(model, 1, batch)
    assert_equal(state_of(model), before)
    (line,) = log
    assert expected in line
    assert ("gradient" in line) == (name == "slope")
    assert ("l_pix" in line) == (name == "added")
    assert dict(model.get_current_log()) == {}, "there is a log, if an empty one"
    setattr(model.losses["pixel_opt"].module, name, 0.0 if name == "added" else 1.0)
    assert step(model, 1, batch), "a figure to log may be infinite"


def test_the_line_names_files_and_degradation(opts: dict[str, Options], log: list[str]) -> None:
    model = make(opts["align"])
    assert not step(model, 7, spoilt(batch_at(opts["align"], 7)))
    drawn = model.describe_degradation()
    assert drawn.count("#") == 12, "four samples, and every view again"
    files = "0_0.png, 0_1.png, 0_2.png, 0_3.png"
    assert log == [
        "Iteration 7: step skipped (1 in a row, 1 in all): l_pix is nan, l_align is nan, the gradient norm of "
        f"optimizers[0] is nan; gt_path {files}; degraded by {drawn}"
    ]
    del opts["align"]["degradation"], opts["align"]["train"]["align_opt"]
    opts["align"]["datasets"]["train"]["degrade_on"] = "worker"
    model = make(opts["align"])
    assert not step(model, 8, spoilt(batch_at(opts["align"], 8)))
    assert log[1].endswith(f"; gt_path {files}; lq_path {', '.join(f'lq_0_{n}.png' for n in range(4))}")


def test_many_in_a_row_end_the_run_and_a_resumed_one_counts_on(opts: dict[str, Options], log: list[str]) -> None:
    opts["redsr"]["train"]["max_nonfinite_steps"] = 3
    model, resumed = make(opts["redsr"]), make(opts["redsr"])
    bad, good = spoilt(batch_at(opts["redsr"], 1)), batch_at(opts["redsr"], 2)
    for iteration, batch in enumerate((bad, bad, good, bad, bad), 1):
        assert step(model, iteration, batch) == (batch is good)
    resumed.guard.load_state(model.guard.state())
    with pytest.raises(NonFiniteError) as caught:
        step(resumed, 6, bad)
    message = str(caught.value)
    assert isinstance(caught.value, BSRError)
    assert "\n" not in message
    for part in ("iteration 6", "3 steps in a row", "l_pix is nan", "train.max_nonfinite_steps", "train.optim_*.lr"):
        assert part in message
    assert "(3 in a row, 5 in all)" in log[-1]
    assert resumed.guard.state() == {"skipped_in_a_row": 3, "skipped_total": 5}
    assert resumed.guard.skipped_total == 5
    assert not resumed.step_made


@pytest.mark.parametrize("clip", [1e-3, 0.3, 1e3])
def test_clipping_is_torch_s_and_the_norm_is_that_before(clip: float, opts: dict[str, Options]) -> None:
    plain = make(opts["redsr"])
    opts["redsr"]["train"] |= {"clip_grad_norm": clip, "log_grad_norm": True}
    model, before = make(opts["redsr"]), list[float]()

    def clip_by_hand(*_: object) -> None:
        parameters = [p for group in plain.optimizer_g.param_groups for p in group["params"]]
        before.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
        nn.utils.clip_grad_norm_(parameters, clip)

    plain.optimizer_g.register_step_pre_hook(clip_by_hand)
    for each in (model, plain):
        assert step(each, 1, batch_at(opts["redsr"], 1))
    for one, other in zip(gradients_of(model), gradients_of(plain), strict=True):
        assert torch.equal(one, other)
    assert_equal(state_of(model), state_of(plain))
    assert model.guard.figures() == {"grad_norm": pytest.approx(before[0], rel=1e-5)}
    assert model.get_current_log()["grad_norm"] == model.guard.figures()["grad_norm"]
    assert not step(model, 2, spoilt(batch_at(opts["redsr"], 2)))
    assert model.guard.figures() == {"skipped_steps": 1.0}


def test_options_are_read() -> None:
    assert read_block(StepGuardOptions, {}).max_nonfinite_steps == 10
    read = read_block(StepGuardOptions, {"clip_grad_norm": 2, "log_grad_norm": True, "max_nonfinite_steps": 1e0})
    assert (read.clip_grad_norm, read.log_grad_norm, read.max_nonfinite_steps) == (2.0, True, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [("clip_grad_norm", value) for value in (0, -1, NAN, INF, "1e-3", True, [1])]
    + [("log_grad_norm", value) for value in (None, 1, "yes")]
    + [("max_nonfinite_steps", value) for value in (0, None, 2.5, True, "3")],
)
def test_unusable_options_are_named(key: str, value: object, opts: dict[str, Options]) -> None:
    opts["align"]["train"][key] = value
    with pytest.raises(OptionError) as caught:
        make(opts["align"])
    assert str(caught.value).startswith(f"train.{key}: {value!r}, expected ")


def run_rank(rank: int, options: Options, folder: str) -> None:
    """One rank, of which the second meets what is bad; saves what it did and what it ended with."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    LOSS_REGISTRY._obj_map["SwitchedLoss"] = SwitchedLoss
    options |= {"dist": True, "rank": rank, "world_size": RANKS}
    model, undisturbed = make(options), make(options)
    lines: list[str] = []
    collect = partial(keep_message, lines)
    logging.getLogger("basicsr").addFilter(collect)
    made, error = [], ""
    for iteration, what in enumerate(PLAN, 1):
        batch = batch_at(options, iteration, rank)
        model.losses["pixel_opt"].module.added = INF if what == "loss" and rank == 1 else 0.0
        try:
            made.append(step(model, iteration, spoilt(batch) if what == "pixels" and rank == 1 else batch))
        except NonFiniteError as caught:
            error = str(caught)
        if what == "good":
            step(undisturbed, iteration, batch)
        else:
            undisturbed.update_learning_rate(iteration)
    outcome = {"made": made, "error": error, "lines": lines, "counts": model.guard.state()}
    outcome |= {"state": state_of(model), "undisturbed": state_of(undisturbed)}
    torch.save(outcome, f"{folder}/rank{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["aacl", "align"])
def test_ranks_skip_alike_where_one_has_a_bad_batch(kind: str, opts: dict[str, Options], tmp_path: Path) -> None:
    options = opts[kind]
    options["train"] |= {"pixel_opt": {"type": "SwitchedLoss"}, "max_nonfinite_steps": 3}
    if kind == "aacl":
        options["train"]["encoder_phase"]["iters"] = 3
    start_processes(run_rank, (options, str(tmp_path)), nprocs=RANKS, start_method="fork")
    outcomes = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS)]
    for outcome in outcomes:
        assert outcome["made"] == [what == "good" for what in PLAN[:-1]]
        assert outcome["counts"] == {"skipped_in_a_row": 3, "skipped_total": 5}
        assert outcome["error"].startswith("iteration 8: 3 steps in a row were skipped (")
        assert_equal(outcome["state"], outcome["undisturbed"])
    lines = outcomes[0]["lines"]
    assert len(lines) == 5
    assert all("rank 1: " in line and "gt_path 1_0.png, 1_1.png" in line for line in lines)
    assert lines[1].startswith("Iteration 4: step skipped (1 in a row, 2 in all): rank 1: l_pix is inf; gt_path")
    # AACL's batch normalisation is over all ranks, so a bad batch of one makes the losses of all bad.
    assert kind == "aacl" or not any("0_0.png" in line for line in lines)
    assert outcomes[1]["lines"] == [], "rank 0 logs"
