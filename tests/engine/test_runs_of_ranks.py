"""Runs of two processes on the CPU: forks, and, where tests are slow, the train tool's that torchrun starts."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bsr_plugins import engine
from tests.engine.ended_runs import differences, last_checkpoints
from tests.engine.training_processes import DEADLINE, start_ranks

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

END, STOP, BATCH = 20, 10, 4
TOLERANCE = 1e-5
PRINTED = 2e-4  # logs have five digits
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture
def stock(redsr_options: Options) -> Options:
    """A stock `SRModel` that is validated twice, over epochs of two iterations."""
    options = redsr_options
    del options["network_degrader"]
    options["model_type"] = "SRModel"
    options["network_g"] = {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 2}
    train = options["datasets"]["train"]
    train |= {"degrade_on": "worker", "degradation": options.pop("degradation"), "dataset_enlarge_ratio": 1}
    del train["num_views"]
    for key in ("redegradation_opt", "representation_opt"):
        del options["train"][key]
    options["train"] |= {"total_iter": END, "pixel_opt": {"type": "L1Loss"}}
    options["train"]["optim_g"]["lr"] = 0.0001  # Adam moves weights without a gradient by rounding errors times this
    options["val"]["val_freq"] = STOP
    options["logger"] |= {"save_checkpoint_freq": STOP, "print_freq": 1}
    return options


def of_two(project: Project, options: Options, name: str) -> Path:
    """Write options for two processes, each with half the batch."""
    train = options["datasets"]["train"] | {"batch_size_per_gpu": BATCH // 2}
    options = options | {"name": name, "datasets": options["datasets"] | {"train": train}}
    return project.write(options, f"{name}.yml")


def largest_difference(one: Any, other: Any) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def figures(log: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"{name}: ([-+.\de]+)", log)]


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_with_half_the_batch_each_equal_one(
    project: Project, stock: Options, in_process: Callable[..., Outcome], fresh: bool
) -> None:
    one = in_process("train", stock | {"name": "one"})
    assert one.status == 0, one.output
    file = of_two(project, stock, "two")
    if fresh:
        two = project.python(*LAUNCH, "tools/train.py", "-opt", file, "--launcher", "pytorch")
        assert two.status == 0, two.output
        said = two.output
    else:
        said = train_to_the_end(project, file)

    ends = last_checkpoints(project.root, "one"), last_checkpoints(project.root, "two")
    for key in ("params", "params_ema"):
        assert largest_difference(ends[0]["net_g_20.pth"][key], ends[1]["net_g_20.pth"][key]) < TOLERANCE
    for name in ("l_pix", "# psnr"):
        first, second = (figures(output, name) for output in (one.output, said))
        assert len(first) == (END if name == "l_pix" else END // STOP)
        assert second == pytest.approx(first, rel=PRINTED)


def train_to_the_end(project: Project, file: Path) -> str:
    ranks = start_ranks(project, file, 2)
    for rank in ranks:
        rank.finish()
    return ranks[0].said()


def test_a_run_of_two_processes_resumes_exactly(project: Project, stock: Options) -> None:
    for name in ("whole", "halves"):
        train_to_the_end(project, of_two(project, stock, name))
    for late in (project.root / "experiments" / "halves").glob("*/*"):
        if late.stem == str(END) or late.stem.endswith((f"_{END}", "_latest")):
            late.unlink()
    assert f"iter: {STOP}." in train_to_the_end(project, project.root / "halves.yml")
    assert differences(last_checkpoints(project.root, "whole"), last_checkpoints(project.root, "halves")) == []


def be_impatient() -> None:
    """Shorten the time for which a silent process leaves the one that speaks."""
    sys.modules[engine.run.__module__]._GRACE_S = 1.0  # type: ignore[attr-defined]


def test_a_checkpoint_that_does_not_fit_ends_both_processes(project: Project, stock: Options) -> None:
    stock["train"]["total_iter"], stock["val"] = STOP, None
    train_to_the_end(project, of_two(project, stock, "two"))
    stock["network_g"]["num_feat"] *= 2
    stock["train"]["total_iter"] = END
    ranks = start_ranks(project, of_two(project, stock, "two"), 2, be_impatient)
    assert [rank.process.wait(DEADLINE) for rank in ranks] == [2, 2], ranks[0].said()
    assert "10.state: its networks are not those of the options" in ranks[0].said()
    assert project.experiments == ["two"]


def test_bad_options_end_all_processes_with_one_list(project: Project, stock: Options) -> None:
    stock["train"]["ema_deacy"] = 0.5
    ranks = start_ranks(project, of_two(project, stock, "bad"), 2, be_impatient)
    assert [rank.process.wait(DEADLINE) for rank in ranks] == [2, 2]
    assert ranks[0].said().count("did you mean 'ema_decay'?") == 1
    assert project.experiments == []
