"""What a run does when something breaks in the middle of it: it ends, says why, and keeps what it has."""

from __future__ import annotations

import errno
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from torch.utils.tensorboard import SummaryWriter

from bsr_plugins.engine import train_pipeline
from bsr_plugins.engine.checkpoints import CheckpointStore
from bsr_plugins.errors import BSRError
from bsr_plugins.models import ReDSRModel
from tests.engine.ended_runs import differences, last_checkpoints, load
from tests.engine.training_processes import DEADLINE, Training
from tests.options.stock_options import stock

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

Run = Callable[..., "Outcome"]
END, STOP = 8, 4


def options_of(options: Options) -> Options:
    options["train"]["total_iter"] = END
    options["logger"] |= {"save_checkpoint_freq": STOP, "print_freq": 1}
    return options


def folder_of(project: Project) -> Path:
    return project.root / "experiments" / "tiny"


def test_a_run_that_left_steps_out_says_so_at_its_end(redsr_options: Options, in_process: Run) -> None:
    options = options_of(redsr_options)
    options["train"] |= {"total_iter": 3}
    options["train"]["pixel_opt"]["loss_weight"] = 1e38
    outcome = in_process("train", options)
    assert outcome.status == 0, outcome.output
    assert "3 of 3 steps were skipped." in outcome.output


def test_losses_that_stay_nan_end_the_run(
    project: Project, redsr_options: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(redsr_options)
    options["train"] |= {"max_nonfinite_steps": 3}
    feed = ReDSRModel.feed_data
    fed: list[int] = []

    def feed_data(self: ReDSRModel, data: dict[str, torch.Tensor]) -> None:
        fed.append(1)
        if len(fed) > STOP + 1:
            data = data | {"gt": data["gt"] * float("nan")}
        feed(self, data)

    monkeypatch.setattr(ReDSRModel, "feed_data", feed_data)
    outcome = in_process("train", options)
    assert outcome.status == 2
    assert "net_*_4.pth" in outcome.output
    assert "Traceback" not in outcome.output
    assert sorted(file.name for file in folder_of(project).glob("*/*")) == [
        "4.state",
        "net_degrader_4.pth",
        "net_g_4.pth",
    ]


def test_a_loss_that_is_nan_ends_the_run_of_a_stock_model_at_once(
    project: Project, redsr_options: Options, paired: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = SRModel.feed_data
    fed: list[int] = []

    def feed_data(self: SRModel, data: dict[str, torch.Tensor]) -> None:
        fed.append(1)
        feed(self, data | {"lq": data["lq"] * float("nan")} if len(fed) > STOP + 1 else data)

    monkeypatch.setattr(SRModel, "feed_data", feed_data)
    outcome = in_process("train", options_of(stock(redsr_options, paired)))
    assert outcome.status == 2
    said = outcome.output.splitlines()[-1]
    assert "iteration 6: l_pix is nan, the gradient norm of optimizers[0] is nan; gt_path /" in said
    assert said.endswith("or set train.clip_grad_norm; the last checkpoint is net_*_4.pth of this run")
    assert sorted(file.name for file in folder_of(project).glob("*/*")) == ["4.state", "net_g_4.pth"]


def test_a_few_bad_steps_are_left_out(
    project: Project, redsr_options: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = ReDSRModel.feed_data
    fed: list[int] = []

    def feed_data(self: ReDSRModel, data: dict[str, torch.Tensor]) -> None:
        fed.append(1)
        feed(self, data | {"gt": data["gt"] * float("nan")} if len(fed) in (2, 5) else data)

    monkeypatch.setattr(ReDSRModel, "feed_data", feed_data)
    outcome = in_process("train", options_of(redsr_options))
    assert outcome.status == 0, outcome.output
    assert "skipped_steps: 2.0000e+00" in outcome.output
    assert "astronaut" in outcome.output or "coffee" in outcome.output, "the files are named"
    weights = load(folder_of(project) / "models" / "net_g_latest.pth")["params"]
    assert all(bool(value.isfinite().all()) for value in weights.values())


def fill_the_disk() -> None:
    """Have no file of a process grow beyond some bytes from a save on, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    save = CheckpointStore.save

    def late(self: CheckpointStore, model: Any, epoch: int, iteration: int, extras: Any) -> None:
        if iteration == END:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
        save(self, model, epoch, iteration, extras)

    CheckpointStore.save = late  # type: ignore[method-assign]


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_intact(
    project: Project, redsr_options: Options, in_process: Run
) -> None:
    options = options_of(redsr_options)
    training = Training(project, project.write(options), before=fill_the_disk)
    assert training.process.wait(DEADLINE) == 2, training.said()
    assert "cannot be written" in training.said().splitlines()[-1]
    assert "Just ignore it" not in training.said()
    assert sorted(file.name for file in folder_of(project).glob("*/*")) == [
        "4.state",
        "net_degrader_4.pth",
        "net_g_4.pth",
    ]
    assert in_process("train", options | {"name": "whole"}).status == 0
    assert in_process("train", options, "--auto_resume").status == 0
    assert differences(last_checkpoints(project.root, "whole"), last_checkpoints(project.root)) == []


def test_an_unexpected_error_is_in_the_log(
    project: Project, redsr_options: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReDSRModel, "take_step", Mock(side_effect=RuntimeError("the device has gone")))
    with pytest.raises(RuntimeError, match="the device has gone"):
        in_process("train", options_of(redsr_options))
    (log,) = folder_of(project).glob("*.log")
    assert "RuntimeError: the device has gone" in log.read_text()


def test_a_log_is_kept_whoever_asked_for_the_logger_first(
    project: Project, redsr_options: Options, in_process: Run
) -> None:
    get_root_logger()
    outcome = in_process("train", options_of(redsr_options))
    assert outcome.status == 0
    (log,) = folder_of(project).glob("*.log")
    assert "iter:       8" in log.read_text()
    assert "End of training" in log.read_text()


def test_the_log_says_what_ended_a_run_from_a_script_of_one_s_own(
    project: Project, redsr_options: Options, with_a_truncated_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(redsr_options)
    options["datasets"]["train"]["dataroot_gt"] = str(with_a_truncated_image)
    monkeypatch.setattr(sys, "argv", ["train", "-opt", str(project.write(options))])
    monkeypatch.chdir(project.root)
    with pytest.raises(BSRError):
        train_pipeline(".")
    (log,) = folder_of(project).glob("*.log")
    assert "2.png: cannot be decoded" in log.read_text().splitlines()[-1]


def test_folders_that_cannot_be_made_are_named(project: Project, redsr_options: Options, in_process: Run) -> None:
    (project.root / "experiments").write_text("no folder")
    outcome = in_process("train", options_of(redsr_options))
    assert outcome.status == 2
    assert outcome.output.splitlines()[-1].endswith("expected a folder to write to")


def test_a_disk_that_takes_no_more_events_ends_the_run(
    project: Project, redsr_options: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(redsr_options)
    options["logger"]["use_tb_logger"] = True
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(SummaryWriter, "add_scalar", Mock(side_effect=[None] * 40 + [full] * 40))
    outcome = in_process("train", options)
    assert outcome.status == 2
    assert outcome.output.splitlines()[-1].endswith("tb_logger/tiny: cannot be written (No space left on device)")
    assert "4.state" in {file.name for file in folder_of(project).glob("*/*")}
