"""A run that is stopped and goes on ends with what it ends with when left alone, bit for bit."""

from __future__ import annotations

import copy
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY

from bsr_plugins import engine
from tests.engine.ended_runs import differences, last_checkpoints, load
from tests.options.stock_options import gan, stock

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

Run = Callable[..., "Outcome"]
STOP, END = 4, 8


def prepared(options: Options, total: int = END) -> Options:
    """A run over epochs of three iterations, which is saved in the middle of the second."""
    options["datasets"]["train"] |= {"dataset_enlarge_ratio": 1.5, "num_worker_per_gpu": 0}
    options["train"]["total_iter"] = total
    options["val"]["val_freq"] = STOP
    options["logger"] |= {"save_checkpoint_freq": STOP, "print_freq": 1}
    return options


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of `ended` is kept for all tests."""
    return tmp_path_factory.mktemp("ended") / "experiments"


@pytest.fixture
def ended(project: Project, redsr_options: Options, in_process: Run, kept: Path) -> tuple[Options, Path]:
    """A run that has come to its end, made once and copied: its options, and its folder."""
    options, experiments = prepared(redsr_options), project.root / "experiments"
    if kept.exists():
        shutil.copytree(kept, experiments)
    else:
        assert in_process("train", options).status == 0
        shutil.copytree(experiments, kept)
    return options, experiments / "tiny"


def losses(log: str) -> dict[int, str]:
    """All figures that a log names for every iteration, as they are printed."""
    return {int(n): text for n, text in re.findall(r"iter:\s+(\d+), lr:\(.*?\)\] \[[^\]]*\] (.*)", log)}


def resumes_exactly(
    options: Options, in_process: Run, project: Project, began: int = 0, resumed: tuple[int, ...] = (0,)
) -> Any:
    """Check that a run which goes on from its middle ends as it has ended before.

    Args:
        options: Its options.
        in_process: Runs it.
        project: Its folder.
        began: How many workers load for the whole run.
        resumed: How many load for the runs that go on.

    Returns:
        What the whole run has left.
    """
    options = copy.deepcopy(options)
    options["datasets"]["train"]["num_worker_per_gpu"] = began
    left_alone = in_process("train", options)
    assert left_alone.status == 0, left_alone.output
    figures = losses(left_alone.output)
    assert set(figures) == set(range(1, END + 1))
    whole = last_checkpoints(project.root)
    for workers in resumed:
        for late in (project.root / "experiments" / "tiny").glob("*/*"):
            if late.stem == str(END) or late.stem.endswith((f"_{END}", "_latest")):
                late.unlink()  # so that it seems to have been stopped; others are, in the tests of killed runs
        options["datasets"]["train"]["num_worker_per_gpu"] = workers
        outcome = in_process("train", options, "--auto_resume")
        assert outcome.status == 0, outcome.output
        assert f"iter: {STOP}." in outcome.output
        assert losses(outcome.output) == {n: text for n, text in figures.items() if n > STOP}
        assert differences(whole, last_checkpoints(project.root)) == []
    return whole


def test_aacl_resumes_exactly(project: Project, aacl_options: Options, in_process: Run) -> None:
    """With calibration, encoder phase, EMA, queue, and best metrics."""
    aacl_options["degradation"]["sampler"] = {"type": "ads", "grid": 5}
    aacl_options["train"]["encoder_phase"] = {"iters": 6, "lr": 0.001}
    whole = resumes_exactly(prepared(aacl_options), in_process, project, 0, (0, 2))
    assert {"net_g_8.pth", "net_moco_8.pth", "net_g_latest.pth", "net_moco_latest.pth"} < set(whole)
    assert whole["extras"]["best_metric_results"]["val"]["psnr"]["iter"] in (STOP, END)
    assert differences(whole, resumes_exactly(prepared(aacl_options), in_process, project, 3, (1,))) == []


def test_redsr_resumes_exactly(project: Project, redsr_options: Options, in_process: Run) -> None:
    assert "net_degrader_8.pth" in resumes_exactly(prepared(redsr_options), in_process, project)


def test_a_stock_model_on_a_stock_dataset_resumes_exactly(
    project: Project, redsr_options: Options, in_process: Run, paired: Options
) -> None:
    resumes_exactly(prepared(stock(redsr_options, paired)), in_process, project, 0, (2,))


def test_a_gan_resumes_exactly(project: Project, redsr_options: Options, in_process: Run, paired: Options) -> None:
    """Two optimisers from one block, of which BasicSR's models take out what they read, and spectral norm's buffers."""
    options = prepared(gan(stock(redsr_options, paired)))
    assert "net_d_8.pth" in resumes_exactly(options, in_process, project, 0, (2,))


def test_a_run_whose_checkpoints_are_all_broken_is_not_begun_anew(
    project: Project, in_process: Run, ended: tuple[Options, Path]
) -> None:
    options, folder = ended
    models = folder / "models"
    (models / "net_g_8.pth").write_bytes((models / "net_g_8.pth").read_bytes()[:-100])
    resumed = in_process("train", options, "--auto_resume")
    assert resumed.status == 0
    assert "Passed over models/net_g_8.pth: differs from what the state records" in resumed.output
    assert f"iter: {STOP}." in resumed.output
    for file in models.glob("net_g_?.pth"):
        file.unlink()
    refused = in_process("train", options, "--auto_resume")
    assert refused.status == 2
    assert "no checkpoint is complete" in refused.output
    assert project.experiments == ["tiny"]


def test_a_run_of_basicsr_s_own_trainer_goes_on(redsr_options: Options, in_process: Run, paired: Options) -> None:
    """Not exactly, as its checkpoints hold less, which is said."""
    options = prepared(stock(redsr_options, paired))
    assert in_process("stock train", options | {"train": {**options["train"], "total_iter": STOP + 1}}).status == 0
    resumed = in_process("train", options, "--auto_resume")
    assert resumed.status == 0, resumed.output
    assert f"{STOP}.state is BasicSR's, which keeps less" in resumed.output
    assert set(losses(resumed.output)) == set(range(STOP + 1, END + 1))


def test_going_on_from_an_older_checkpoint_supersedes_the_newer_ones(
    in_process: Run, ended: tuple[Options, Path]
) -> None:
    options, folder = ended
    states = folder / "training_states"
    options["path"]["resume_state"] = str(states / f"{STOP}.state")
    options["logger"]["save_checkpoint_freq"], options["train"]["total_iter"] = 1, STOP + 1
    back = in_process("train", options)
    assert back.status == 0, back.output
    assert sorted(file.name for file in states.iterdir()) == ["4.state", "5.state", "8.state_superseded"]
    (states / f"{STOP}.state").unlink()
    options["train"]["total_iter"] = END
    resumed = in_process("train", options, "--auto_resume")
    assert resumed.status == 0, resumed.output
    assert "iter: 5." in resumed.output, "although the file names a state that has gone"
    assert (states / "8.state_superseded").is_file()
    options["logger"]["save_last_n"], options["train"]["total_iter"] = 2, END + 1
    assert in_process("train", options, "--auto_resume").status == 0
    assert sorted(file.name for file in states.iterdir()) == ["8.state", "9.state"]


def test_a_run_that_began_from_weights_under_another_key_goes_on(
    project: Project, redsr_options: Options, in_process: Run, paired: Options
) -> None:
    options = prepared(stock(redsr_options, paired), STOP)
    options["train"]["ema_decay"] = 0
    state = ARCH_REGISTRY.get("MSRResNet")(
        **{k: v for k, v in options["network_g"].items() if k != "type"}
    ).state_dict()
    torch.save({"model": state}, project.root / "given.pth")
    options["path"] |= {"pretrain_network_g": "given.pth", "param_key_g": "model"}
    assert in_process("train", options).status == 0
    options["train"]["total_iter"] = END
    resumed = in_process("train", options, "--auto_resume")
    assert resumed.status == 0, resumed.output


@pytest.mark.parametrize("strict", [True, False])
def test_other_networks_do_not_go_on_from_a_checkpoint(
    project: Project, in_process: Run, ended: tuple[Options, Path], strict: bool
) -> None:
    options, folder = ended
    options["path"]["strict_load_g"] = strict
    options["network_g"]["num_feat"] *= 2
    options["train"]["total_iter"] += 1
    before = sorted(folder.rglob("*"))
    refused = in_process("train", options, "--auto_resume")
    assert refused.status == 2
    assert "training_states/8.state: its networks are not those of the options (path.pretrain_net" in refused.output
    assert sorted(folder.rglob("*")) == before
    assert project.experiments == ["tiny"]


def test_optimisers_that_do_not_fit_are_named(in_process: Run, ended: tuple[Options, Path]) -> None:
    options, folder = ended
    file = folder / "training_states" / "8.state"
    state = load(file)
    del state["optimizers"][0]["param_groups"][0]["params"][0]
    torch.save(state, file)
    options["train"]["total_iter"] += 1
    refused = in_process("train", options, "--auto_resume")
    assert refused.status == 2
    assert "training_states/8.state: its optimisers and schedules are not those of the options (" in refused.output


def test_a_new_learning_rate_is_not_taken_and_that_is_said(in_process: Run, ended: tuple[Options, Path]) -> None:
    options, _ = ended
    options["train"]["optim_g"]["lr"] /= 4
    options["train"]["total_iter"] += 1
    resumed = in_process("train", options, "--auto_resume")
    assert resumed.status == 0
    assert "8.state was saved with other options of training" in resumed.output
    assert "Optimisers and schedules go on as 8.state has them, learning rates" in resumed.output


def test_auto_resume_finds_the_run_from_any_folder(
    project: Project, ended: tuple[Options, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, folder = ended
    options["train"]["total_iter"] += 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "argv", ["train", "-opt", str(project.write(options)), "--auto_resume"])
    assert engine.run(engine.train_pipeline, project.root) == 0
    assert (folder / "training_states" / f"{END + 1}.state").is_file()
    assert project.experiments == ["tiny"], "nothing was archived"


def test_epochs_with_incomplete_batches_do_not_end_a_run_early(
    project: Project, redsr_options: Options, in_process: Run
) -> None:
    """Eight images in batches of five: BasicSR counts two iterations an epoch, and there is one."""
    redsr_options["datasets"]["train"] |= {"batch_size_per_gpu": 5, "dataset_enlarge_ratio": 1}
    redsr_options["train"]["total_iter"] = END
    redsr_options["val"] |= {"val_freq": 5, "save_img": True}
    outcome = in_process("train", redsr_options)
    assert outcome.status == 0, outcome.output
    assert set(losses(outcome.output)) == set(range(1, END + 1))
    assert re.findall(r"\[epoch:\s+(\d+), iter", outcome.output) == [str(n) for n in range(END)]
    images = (project.root / "experiments" / "tiny" / "visualization").glob("*/*.png")
    validated = sorted({image.stem.rpartition("_")[2] for image in images})
    assert validated == ["5", str(END)], "at the frequency, and at the end, under the iteration's own number"
    assert outcome.output.count("Validation val") == 2


def test_a_drawn_seed_is_kept(redsr_options: Options, in_process: Run) -> None:
    options = prepared(redsr_options, STOP)
    for block in (options, options["datasets"]["train"], options["datasets"]["val"]):
        block.pop("manual_seed", None)
        block.pop("seed", None)
    began = in_process("train", options)
    assert began.status == 0, began.output
    (drawn,) = set(re.findall(r"(?<!\w)manual_seed: (\d+)", began.output))
    options["train"]["total_iter"] = END
    resumed = in_process("train", options, "--auto_resume")
    assert resumed.status == 0, resumed.output
    assert set(re.findall(r"(?<!\w)(?:manual_)?seed: (\d+)", resumed.output)) == {drawn}
    assert "does not go on exactly" not in resumed.output


def test_sets_that_a_killed_run_had_no_time_to_remove_are_removed(in_process: Run, ended: tuple[Options, Path]) -> None:
    options, folder = ended
    options["logger"]["save_last_n"] = 1
    assert in_process("train", options, "--auto_resume").status == 0
    names = ["8.state", "net_degrader_8.pth", "net_degrader_latest.pth", "net_g_8.pth", "net_g_latest.pth"]
    assert sorted(file.name for file in folder.glob("*/*")) == names


def test_a_resumed_run_must_not_be_past_its_end(project: Project, in_process: Run, ended: tuple[Options, Path]) -> None:
    options, _ = ended
    options["train"]["total_iter"] = STOP
    outcome = in_process("train", options, "--auto_resume")
    assert outcome.status == 2
    assert f"train.total_iter: {STOP}, expected at least {END}, the iteration of" in outcome.output
    assert project.experiments == ["tiny"]
