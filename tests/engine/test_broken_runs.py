"""What a run does when something breaks in the middle of it: it ends, says why, and keeps what it has."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
import torch
from basicsr.utils import get_root_logger
from torch.utils.tensorboard import SummaryWriter

from bsr_plugins.models import ReDSRModel
from tests.engine.ended_runs import differences, last_checkpoints, load

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
    stock = ReDSRModel.feed_data
    fed: list[int] = []

    def feed_data(self: ReDSRModel, data: dict[str, torch.Tensor]) -> None:
        fed.append(1)
        if len(fed) > STOP + 1:
            data = data | {"gt": data["gt"] * float("nan")}
        stock(self, data)

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


def test_a_few_bad_steps_are_left_out(
    project: Project, redsr_options: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = ReDSRModel.feed_data
    fed: list[int] = []

    def feed_data(self: ReDSRModel, data: dict[str, torch.Tensor]) -> None:
        fed.append(1)
        stock(self, data | {"gt": data["gt"] * float("nan")} if len(fed) in (2, 5) else data)

    monkeypatch.setattr(ReDSRModel, "feed_data", feed_data)
    outcome = in_process("train", options_of(redsr_options))
    assert outcome.status == 0, outcome.output
    assert "skipped_steps: 2.0000e+00" in outcome.output
    assert "astronaut" in outcome.output or "coffee" in outcome.output, "the files are named"
    weights = load(folder_of(project) / "models" / "net_g_latest.pth")["params"]
    assert all(bool(value.isfinite().all()) for value in weights.values())


FULL = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from bsr_plugins import engine
from bsr_plugins.engine.checkpoints import CheckpointStore
save = CheckpointStore.save


def late(self, model, epoch, iteration, extras):
    if iteration == 8:  # from here on a file cannot grow beyond some bytes, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
    save(self, model, epoch, iteration, extras)


CheckpointStore.save = late
raise SystemExit(engine.run(engine.train_pipeline, Path.cwd()))
"""


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_intact(project: Project, redsr_options: Options) -> None:
    (project.root / "tools" / "train.py").write_text(FULL)
    outcome = project.tool("train", options_of(redsr_options))
    assert outcome.status == 2, outcome.output
    assert "cannot be written" in outcome.output.splitlines()[-1]
    assert "Just ignore it" not in outcome.output
    assert sorted(file.name for file in folder_of(project).glob("*/*")) == [
        "4.state",
        "net_degrader_4.pth",
        "net_g_4.pth",
    ]
    whole = project.write(options_of(redsr_options) | {"name": "whole"}, "whole.yml")
    resume = (
        "-c",
        "from bsr_plugins import engine\nfrom pathlib import Path\n"
        "raise SystemExit(engine.run(engine.train_pipeline, Path.cwd()))",
    )
    assert project.python(*resume, "-opt", whole).status == 0
    assert project.python(*resume, "-opt", "train.yml", "--auto_resume").status == 0
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


SCRIPT = "from bsr_plugins.engine import train_pipeline\ntrain_pipeline('.')"


def test_the_log_says_what_ended_a_run_from_a_script_of_one_s_own(
    project: Project, redsr_options: Options, with_a_truncated_image: Path
) -> None:
    options = options_of(redsr_options)
    options["datasets"]["train"]["dataroot_gt"] = str(with_a_truncated_image)
    outcome = project.python("-c", SCRIPT, "-opt", project.write(options))
    assert outcome.status == 1
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
