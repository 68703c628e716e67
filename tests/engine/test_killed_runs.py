"""Training processes that are killed at random moments, while they write too, and resumed.

Three of the moments in every run of the suite; all of them by `pytest -m slow tests/engine/test_killed_runs.py`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import bsr_plugins
from tests.engine.ended_runs import differences, last_checkpoints

if TYPE_CHECKING:
    from tests.conftest import Options, Project

MOMENTS, QUICK = 20, 2
END, SAVED_EVERY, KEPT = 30, 2, 3
SEED = 5
DEADLINE = 120.0  # seconds that no run here takes
POLL = 0.0005
BEFORE_THE_END = 0.8


def options_of(options: Options) -> Options:
    """A run with all that has a state, which writes checkpoints much of the time."""
    options["degradation"]["sampler"] = {"type": "ads", "grid": 5}
    options["datasets"]["train"] |= {"dataset_enlarge_ratio": 3.5, "num_worker_per_gpu": 1}
    options["train"] |= {"total_iter": END, "encoder_phase": {"iters": 10, "lr": 0.001}}
    options["val"]["val_freq"] = 10
    options["logger"] |= {"save_checkpoint_freq": SAVED_EVERY, "print_freq": 5, "save_last_n": KEPT}
    return options


class Training:
    """A training process, or several that torchrun starts, with the output in a file."""

    def __init__(self, project: Project, file: Path, workers: int, ranks: int = 1) -> None:
        self.output = project.root / f"{file.stem}.txt"
        environment = os.environ | {"PYTHONPATH": str(Path(bsr_plugins.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        command = [sys.executable, *launch, "tools/train.py", "-opt", str(file), "--auto_resume"]
        command += ["--launcher", "pytorch"] if ranks > 1 else []
        command += ["--set", f"datasets:train:num_worker_per_gpu={workers}"]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=project.root, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def wait_for(self, event: Any) -> bool:
        """Wait until something is the case; returns False if the process ends before."""
        deadline = time.monotonic() + DEADLINE
        while not event():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(POLL)
        return True

    def kill(self) -> bool:
        """End the process as a crash of the machine would, with its workers; tell whether it was still running."""
        if self.process.poll() is not None:
            return False
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL

    def finish(self) -> None:
        """Let the process come to its end."""
        assert self.process.wait(DEADLINE) == 0, self.output.read_text()


def kill_and_resume(project: Project, file: Path, number: int, length: float) -> bool:
    """Kill a run at the moment of a number, resume it, and compare it with the undisturbed one.

    Returns:
        Whether the run had not come to its end before.
    """
    draw = random.Random(f"{SEED} {number}")
    name = f"killed{number}"
    folder = project.root / "experiments" / name
    own = project.root / f"{name}.yml"
    own.write_text(file.read_text().replace("name: tiny", f"name: {name}"))
    training = Training(project, own, draw.choice([0, 1, 2]))
    assert training.wait_for(lambda: (folder / "training_states").is_dir())
    moment = time.monotonic() + draw.uniform(0, BEFORE_THE_END * length)
    training.wait_for(lambda: time.monotonic() > moment)
    if number % 2:
        training.wait_for(lambda: any(folder.glob("*/.*.tmp")))  # in the middle of writing
    killed = training.kill()
    Training(project, own, draw.choice([0, 1, 2])).finish()
    assert not list(folder.glob("*/.*.tmp"))
    assert len(list(folder.glob("training_states/*.state"))) <= KEPT
    ends = last_checkpoints(project.root), last_checkpoints(project.root, name)
    assert differences(*ends) == [], (number, training.output.read_text())
    return killed


def kill_runs(project: Project, options: Options, numbers: range) -> None:
    """Make the undisturbed run, then all the others."""
    file = project.write(options_of(options))
    undisturbed = Training(project, file, 1)
    assert undisturbed.wait_for(lambda: (project.root / "experiments" / "tiny" / "training_states").is_dir())
    began = time.monotonic()
    undisturbed.finish()
    length = time.monotonic() - began
    killed = [kill_and_resume(project, file, number, length) for number in numbers]
    assert sum(killed) >= len(killed) / 2


def test_a_run_killed_at_random_moments_ends_as_if_left_alone(project: Project, aacl_options: Options) -> None:
    kill_runs(project, aacl_options, range(QUICK))


@pytest.mark.slow
def test_a_run_killed_at_many_random_moments_ends_as_if_left_alone(project: Project, aacl_options: Options) -> None:
    kill_runs(project, aacl_options, range(MOMENTS))
