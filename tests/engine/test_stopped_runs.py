"""Signals: what SIGINT and SIGTERM do to a training process, and what it leaves."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.ended_runs import differences, last_checkpoints
from tests.engine.test_killed_runs import Training

if TYPE_CHECKING:
    from tests.conftest import Options, Project

END = 30
LONG = 100000


def options_of(options: Options, total: int = END) -> Options:
    options["datasets"]["train"] |= {"dataset_enlarge_ratio": 3.5, "num_worker_per_gpu": 1}
    options["train"]["total_iter"] = total
    options["logger"] |= {"save_checkpoint_freq": LONG, "print_freq": 1}
    return options


def started(project: Project, options: Options) -> Training:
    """A run in its first iterations."""
    training = Training(project, project.write(options), 1)
    assert training.wait_for(lambda: "iter:       3," in training.output.read_text())
    return training


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_the_iteration_saved(
    project: Project, redsr_options: Options, number: signal.Signals, status: int
) -> None:
    training = started(project, options_of(redsr_options, LONG))
    training.process.send_signal(number)
    assert training.process.wait(60) == status, training.output.read_text()
    folder = project.root / "experiments" / "tiny"
    (state,) = folder.glob("training_states/*.state")
    assert f"Stopped by {number.name} after iteration {state.stem}; it is saved." in training.output.read_text()
    assert "Traceback" not in training.output.read_text()
    (log,) = folder.glob("*.log")
    assert "it is saved." in log.read_text()


def test_a_stopped_run_ends_as_if_left_alone(project: Project, redsr_options: Options) -> None:
    options = options_of(redsr_options)
    whole = Training(project, project.write(options | {"name": "whole"}, "whole.yml"), 0)
    whole.finish()
    training = started(project, options)
    training.process.send_signal(signal.SIGTERM)
    assert training.process.wait(60) == 143
    Training(project, project.root / "options.yml", 2).finish()
    assert differences(last_checkpoints(project.root, "whole"), last_checkpoints(project.root)) == []


SLOW = """
import sys, time
from pathlib import Path
from bsr_plugins import engine
from bsr_plugins.models import ReDSRModel

step = ReDSRModel.optimize_parameters


def slow_step(self, iteration):
    step(self, iteration)
    if iteration == 2:
        print("asleep", flush=True)
        for _ in range(600):
            time.sleep(0.1)


ReDSRModel.optimize_parameters = slow_step
raise SystemExit(engine.run(engine.train_pipeline, Path.cwd()))
"""


def test_a_second_signal_stops_at_once(project: Project, redsr_options: Options) -> None:
    (project.root / "tools" / "train.py").write_text(SLOW)
    training = Training(project, project.write(options_of(redsr_options)), 1)
    assert training.wait_for(lambda: "asleep" in training.output.read_text())
    training.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert training.process.poll() is None, "it finishes the iteration"
    training.process.send_signal(signal.SIGINT)
    assert training.process.wait(10) == -signal.SIGINT
    assert not list((project.root / "experiments" / "tiny").glob("training_states/*"))


def test_a_launcher_may_pass_a_signal_on(
    project: Project, redsr_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun an interrupt reaches a process twice: from the terminal, and from torchrun."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    training = started(project, options_of(redsr_options, LONG))
    for _ in range(3):
        training.process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert training.process.wait(60) == 130, training.output.read_text()
    assert len(list((project.root / "experiments" / "tiny").glob("training_states/*.state"))) == 1


VALIDATES_SLOWLY = """
import time
from pathlib import Path
from bsr_plugins import engine
from bsr_plugins.models import ReDSRModel

feed_data = ReDSRModel.feed_data


def slow_feed_data(self, data):
    if "lq" in data:
        print("measuring", flush=True)
        time.sleep(2)
    feed_data(self, data)


ReDSRModel.feed_data = slow_feed_data
if __name__ == "__main__":
    raise SystemExit(engine.run(engine.train_pipeline, Path.cwd()))
"""


@pytest.mark.parametrize(("ranks", "last"), [(2, False), (1, True)])
def test_a_signal_breaks_a_validation_off(project: Project, redsr_options: Options, ranks: int, last: bool) -> None:
    """A launcher gives its processes but little time."""
    (project.root / "tools" / "train.py").write_text(VALIDATES_SLOWLY)
    options = options_of(redsr_options, 2 if last else LONG)
    options["val"]["val_freq"] = LONG if last else 2
    options["datasets"]["train"]["batch_size_per_gpu"] = 2
    training = Training(project, project.write(options), 0, ranks)
    assert training.wait_for(lambda: "measuring" in training.output.read_text()), training.output.read_text()
    training.process.send_signal(signal.SIGTERM)
    status = training.process.wait(60)
    assert status == 143 if ranks == 1 else status != 0, "torchrun has one of its own"
    said = training.output.read_text()
    assert "Stopped by SIGTERM after iteration 2; it is saved." in said
    assert said.count("measuring") < photographs_of(options)
    assert "# psnr" not in said
    assert [file.name for file in project.root.glob("experiments/tiny/training_states/*")] == ["2.state"]


def photographs_of(options: Options) -> int:
    return len(list(Path(options["datasets"]["val"]["dataroot_gt"]).iterdir()))
