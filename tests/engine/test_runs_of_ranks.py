"""Runs of two processes on the CPU, started by torchrun through the train tool."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.ended_runs import differences, last_checkpoints

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


def of_two(project: Project, options: Options, name: str, *arguments: str) -> Outcome:
    """Run with two processes, each with half the batch."""
    options = options | {"name": name}
    train = options["datasets"]["train"] | {"batch_size_per_gpu": BATCH // 2}
    options["datasets"] = options["datasets"] | {"train": train}
    file = project.write(options, f"{name}.yml")
    return project.python(*LAUNCH, "tools/train.py", "-opt", file, "--launcher", "pytorch", *arguments)


def largest_difference(one: Any, other: Any) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def figures(log: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"{name}: ([-+.\de]+)", log)]


def test_two_processes_with_half_the_batch_each_equal_one(project: Project, stock: Options) -> None:
    one = project.tool("train", stock | {"name": "one"})
    assert one.status == 0, one.output
    two = of_two(project, stock, "two")
    assert two.status == 0, two.output

    ends = last_checkpoints(project.root, "one"), last_checkpoints(project.root, "two")
    for key in ("params", "params_ema"):
        assert largest_difference(ends[0]["net_g_20.pth"][key], ends[1]["net_g_20.pth"][key]) < TOLERANCE
    for name in ("l_pix", "# psnr"):
        first, second = (figures(outcome.output, name) for outcome in (one, two))
        assert len(first) == (END if name == "l_pix" else END // STOP)
        assert second == pytest.approx(first, rel=PRINTED)


def test_a_run_of_two_processes_resumes_exactly(project: Project, stock: Options) -> None:
    for name in ("whole", "halves"):
        outcome = of_two(project, stock, name)
        assert outcome.status == 0, outcome.output
    for late in (project.root / "experiments" / "halves").glob("*/*"):
        if late.stem == str(END) or late.stem.endswith((f"_{END}", "_latest")):
            late.unlink()
    resumed = of_two(project, stock, "halves", "--auto_resume")
    assert resumed.status == 0, resumed.output
    assert f"iter: {STOP}." in resumed.output
    assert differences(last_checkpoints(project.root, "whole"), last_checkpoints(project.root, "halves")) == []


def test_bad_options_end_all_processes_with_one_list(project: Project, stock: Options) -> None:
    stock["train"]["ema_deacy"] = 0.5
    outcome = of_two(project, stock, "bad")
    assert outcome.status != 0
    assert outcome.output.count("did you mean 'ema_decay'?") == 1
    assert project.experiments == []
