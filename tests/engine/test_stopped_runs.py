"""Signals: what SIGINT and SIGTERM do to a training process, and what it leaves."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bsr_plugins.models import ReDSRModel
from tests.engine.ended_runs import differences, last_checkpoints
from tests.engine.training_processes import Training, start_ranks

if TYPE_CHECKING:
    from tests.conftest import Options, Project

END = 30
LONG = 100000


def options_of(options: Options, total: int = END) -> Options:
    options["datasets"]["train"] |= {"dataset_enlarge_ratio": 3.5, "num_worker_per_gpu": 1}
    options["train"]["total_iter"] = total
    options["logger"] |= {"save_checkpoint_freq": LONG, "print_freq": 1}
    return options


def started(project: Project, options: Options, **settings: Any) -> Training:
    """A run in its first iterations."""
    training = Training(project, project.write(options), 1, **settings)
    assert training.wait_for(lambda: "iter:       3," in training.said()), training.said()
    return training


@pytest.mark.parametrize(("number", "status", "fresh"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)])
def test_a_signal_ends_the_run_after_the_iteration_saved(
    project: Project, redsr_options: Options, number: signal.Signals, status: int, fresh: bool
) -> None:
    training = started(project, options_of(redsr_options, LONG), fresh=fresh)
    training.process.send_signal(number)
    assert training.process.wait(60) == status, training.said()
    folder = project.root / "experiments" / "tiny"
    (state,) = folder.glob("training_states/*.state")
    assert f"Stopped by {number.name} after iteration {state.stem}; it is saved." in training.said()
    assert "Traceback" not in training.said()
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


def sleep_in_a_step() -> None:
    """Have the second step of a process last for a minute."""
    stock = ReDSRModel.optimize_parameters

    def optimize_parameters(self: ReDSRModel, current_iter: int) -> None:
        stock(self, current_iter)
        if current_iter == 2:
            print("asleep", flush=True)
            for _ in range(600):
                time.sleep(0.1)

    ReDSRModel.optimize_parameters = optimize_parameters  # type: ignore[method-assign]


def test_a_second_signal_stops_at_once(project: Project, redsr_options: Options) -> None:
    training = Training(project, project.write(options_of(redsr_options)), 1, sleep_in_a_step)
    assert training.wait_for(lambda: "asleep" in training.said()), training.said()
    training.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert training.process.poll() is None, "it finishes the iteration"
    training.process.send_signal(signal.SIGINT)
    assert training.process.wait(10) == -signal.SIGINT
    assert not list((project.root / "experiments" / "tiny").glob("training_states/*"))


def test_a_launcher_may_pass_a_signal_on(project: Project, redsr_options: Options) -> None:
    """Under torchrun an interrupt reaches a process twice: from the terminal, and from torchrun."""
    training = started(project, options_of(redsr_options, LONG), environment={"TORCHELASTIC_RUN_ID": "1"})
    for _ in range(3):
        training.process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert training.process.wait(60) == 130, training.said()
    assert len(list((project.root / "experiments" / "tiny").glob("training_states/*.state"))) == 1


def validate_slowly() -> None:
    """Have a process take seconds for every image that it validates."""
    stock = ReDSRModel.feed_data

    def feed_data(self: ReDSRModel, data: Any) -> None:
        if "lq" in data:
            print("measuring", flush=True)
            time.sleep(2)
        stock(self, data)

    ReDSRModel.feed_data = feed_data  # type: ignore[method-assign]


@pytest.mark.parametrize(("ranks", "last"), [(2, False), (1, True)])
def test_a_signal_breaks_a_validation_off(project: Project, redsr_options: Options, ranks: int, last: bool) -> None:
    """A launcher gives its processes but little time."""
    options = options_of(redsr_options, 2 if last else LONG)
    options["val"]["val_freq"] = LONG if last else 2
    options["datasets"]["train"]["batch_size_per_gpu"] = 2
    file = project.write(options)
    several = ranks > 1
    trainings = (
        start_ranks(project, file, ranks, validate_slowly) if several else [Training(project, file, 0, validate_slowly)]
    )
    first = trainings[0]
    assert first.wait_for(lambda: first.said().count("measuring") >= ranks), first.said()
    for training in trainings:
        training.process.send_signal(signal.SIGTERM)
    assert [training.process.wait(60) for training in trainings] == [143] * ranks, first.said()
    assert "Stopped by SIGTERM after iteration 2; it is saved." in first.said()
    assert first.said().count("measuring") < len(list(Path(options["datasets"]["val"]["dataroot_gt"]).iterdir()))
    assert "# psnr" not in first.said()
    assert [file.name for file in project.root.glob("experiments/tiny/training_states/*")] == ["2.state"]
