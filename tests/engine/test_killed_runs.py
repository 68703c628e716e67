"""Training processes that are killed at random moments, while they write too, and resumed.

Two of the moments in every run of the suite; all of them, by the train tool's command line, by
`pytest -m slow tests/engine/test_killed_runs.py`.
"""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.ended_runs import differences, last_checkpoints
from tests.engine.training_processes import Training

if TYPE_CHECKING:
    from tests.conftest import Options, Project

MOMENTS, QUICK = 20, 2
END, SAVED_EVERY, KEPT = 30, 2, 3
SEED = 5
BEFORE_THE_END = 0.8


def options_of(options: Options) -> Options:
    """A run with all that has a state, which writes checkpoints much of the time."""
    options["degradation"]["sampler"] = {"type": "ads", "grid": 5}
    options["datasets"]["train"] |= {"dataset_enlarge_ratio": 3.5, "num_worker_per_gpu": 1}
    options["train"] |= {"total_iter": END, "encoder_phase": {"iters": 10, "lr": 0.001}}
    options["val"]["val_freq"] = 10
    options["logger"] |= {"save_checkpoint_freq": SAVED_EVERY, "print_freq": 5, "save_last_n": KEPT}
    return options


def kill_and_resume(project: Project, file: Path, number: int, length: float, fresh: bool) -> bool:
    """Kill a run at the moment of a number, resume it, and compare it with the undisturbed one.

    Returns:
        Whether the run had not come to its end before.
    """
    draw = random.Random(f"{SEED} {number}")
    name = f"killed{number}"
    folder = project.root / "experiments" / name
    changed = project.root / f"{name}.yml"
    changed.write_text(file.read_text().replace("name: tiny", f"name: {name}"))
    start = partial(Training, project, changed, fresh=fresh)
    training = start(workers=draw.choice([0, 1, 2]))
    assert training.wait_for(lambda: (folder / "training_states").is_dir()), training.said()
    moment = time.monotonic() + draw.uniform(0, BEFORE_THE_END * length)
    training.wait_for(lambda: time.monotonic() > moment)
    if number % 2:
        training.wait_for(lambda: any(folder.glob("*/.*.tmp")))  # in the middle of writing
    killed = training.kill()
    start(workers=draw.choice([0, 1, 2])).finish()
    assert not list(folder.glob("*/.*.tmp"))
    assert len(list(folder.glob("training_states/*.state"))) <= KEPT
    ends = last_checkpoints(project.root), last_checkpoints(project.root, name)
    assert differences(*ends) == [], (number, training.said())
    return killed


def kill_runs(project: Project, options: Options, numbers: range, fresh: bool) -> None:
    """Make the undisturbed run, then all the others."""
    file = project.write(options_of(options))
    undisturbed = Training(project, file, 1, fresh=fresh)
    assert undisturbed.wait_for(lambda: (project.root / "experiments" / "tiny" / "training_states").is_dir())
    began = time.monotonic()
    undisturbed.finish()
    length = time.monotonic() - began
    killed = [kill_and_resume(project, file, number, length, fresh) for number in numbers]
    assert sum(killed) >= len(killed) / 2


def test_a_run_killed_at_random_moments_ends_as_if_left_alone(project: Project, aacl_options: Options) -> None:
    kill_runs(project, aacl_options, range(QUICK), fresh=False)


@pytest.mark.slow
def test_a_run_killed_at_many_random_moments_ends_as_if_left_alone(project: Project, aacl_options: Options) -> None:
    kill_runs(project, aacl_options, range(MOMENTS), fresh=True)
