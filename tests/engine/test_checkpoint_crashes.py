"""Whatever ends a run while it saves, what it can be resumed from stays, and nothing else remains in the long run."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bsr_plugins.engine.checkpoint_sets import CheckpointSet, RunFolders, newest_complete
from bsr_plugins.errors import BSRError
from tests.engine.tiny_training import (
    KEY,
    KILLED,
    Options,
    content_of,
    files_in,
    in_child,
    make_model,
    make_store,
    tiny_gan_options,
    train,
)

KILLS = 12
STAGED = 4  # steps to the disk before any file gets its name: three files, and the first renaming


@pytest.fixture
def opt(tmp_path: Path) -> Options:
    return tiny_gan_options(tmp_path)


@pytest.fixture
def model(opt: Options) -> Any:
    return make_model(opt)


def change(model: Any, value: float) -> None:
    """Give a model other weights."""
    model.net_g.conv_last.bias.data.fill_(value)
    model.net_d.conv9.bias.data.fill_(value)


def newest(opt: Options) -> CheckpointSet:
    """Find the newest set, none being broken, and check that it belongs together."""
    search = newest_complete(RunFolders.of(opt["path"]), ["g", "d"])
    found = search.found
    assert found is not None, search.passed_over
    assert search.passed_over == [], "with us there is no broken set at any moment"
    weights = [torch.load(file, weights_only=True) for _, file in sorted(found.networks.items())]
    assert {content[KEY]["iteration"] for content in weights} == {found.iteration}
    values = {float(value) for value in (weights[0]["params"]["conv9.bias"], weights[1]["params"]["conv_last.bias"][0])}
    assert values == {found.extras["value"]}
    return found


def call_sites(monkeypatch: pytest.MonkeyPatch, at: Callable[[int], None]) -> list[str]:
    """Have a function called with its number before every step to the disk; return the names of those done."""
    done: list[str] = []
    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
        stock = getattr(owner, name)

        def step(*args: Any, stock: Any = stock, name: str = name, **kwargs: Any) -> Any:
            done.append(name)
            at(len(done))
            return stock(*args, **kwargs)

        monkeypatch.setattr(owner, name, step)
    return done


def die(number: int) -> Callable[[int], None]:
    """Make a function that kills its process on its so-manieth call."""

    def at(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return at


def killed_at_every_step(work: Callable[[], None]) -> Iterator[int]:
    """Run something over and over in processes that are killed at one step to the disk later each time."""
    for number in range(1, 100):

        def child(number: int = number) -> None:
            with pytest.MonkeyPatch.context() as monkeypatch:
                call_sites(monkeypatch, die(number))
                work()

        status = in_child(child)
        assert status in (KILLED, 0)
        yield number
        if status == 0:
            assert number > 8
            return
    raise AssertionError("it never came to its end")


def test_killed_at_every_step_of_the_next_save(opt: Options, model: Any, tmp_path: Path) -> None:
    change(model, 1.0)
    make_store(opt, keep=1).save(model, 0, 10, {"value": 1.0})
    change(model, 2.0)
    seen = []
    for _ in killed_at_every_step(lambda: make_store(opt, keep=1).save(model, 0, 20, {"value": 2.0})):
        seen.append(newest(opt).iteration)
    assert seen == sorted(seen)
    assert set(seen) == {10, 20}
    make_store(opt, keep=1).save(model, 0, 20, {"value": 2.0})
    assert files_in(tmp_path) == {"net_g_20.pth", "net_d_20.pth", "20.state"}


def test_killed_at_every_step_while_another_set_takes_the_place(opt: Options, model: Any) -> None:
    for value in (1.0, 2.0):
        change(model, value)
        make_store(opt).save(model, 0, 10 * int(value), {"value": value})
    change(model, 3.0)
    seen = []
    for _ in killed_at_every_step(lambda: make_store(opt).save(model, 0, 20, {"value": 3.0})):
        seen.append(newest(opt).extras["value"])
    assert set(seen) <= {1.0, 2.0, 3.0}
    assert (seen[0], seen[-1]) == (2.0, 3.0)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt("No space left on device")]
)
def test_an_error_at_every_step(opt: Options, model: Any, tmp_path: Path, error: BaseException) -> None:
    change(model, 1.0)
    make_store(opt).save(model, 0, 10, {"value": 1.0})
    change(model, 2.0)
    store, before = make_store(opt), content_of(tmp_path)
    met = []
    for number in range(1, 100):
        with pytest.MonkeyPatch.context() as monkeypatch:

            def at(count: int, number: int = number) -> None:
                if count == number:
                    raise error

            done = call_sites(monkeypatch, at)
            try:
                store.save(model, 0, 20, {"value": 2.0})
            except (BSRError, KeyboardInterrupt) as raised:
                met.append(str(raised))
        if number > len(done):
            break
        newest(opt)
        if done[number - 1] != "unlink":  # what cannot be removed stays until the next start
            assert not any(name.endswith(".tmp") for name in files_in(tmp_path)), number
        if number <= STAGED:
            assert content_of(tmp_path) == before
    assert len(met) >= STAGED + 2
    assert all("No space left on device" in message for message in met)
    assert newest(opt).iteration == 20


@pytest.mark.parametrize(("limit", "file"), [(10_000, "net_g_20.pth"), (20_000, "net_d_20.pth"), (40_000, "20.state")])
def test_a_disk_that_takes_no_more(opt: Options, model: Any, tmp_path: Path, limit: int, file: str) -> None:
    train(model, 1, 1)
    change(model, 1.0)
    make_store(opt).save(model, 0, 10, {"value": 1.0})
    before, report = content_of(tmp_path), tmp_path.parent / f"{tmp_path.name}_report"

    def work() -> None:
        store = make_store(opt, keep=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            store.save(model, 0, 20, {"value": 1.0})
        except BSRError as error:
            report.write_text(str(error))

    assert in_child(work) == 0
    assert report.read_text().endswith(f"/{file}: cannot be written (File too large)")
    assert content_of(tmp_path) == before


def test_killed_at_random_moments(opt: Options, model: Any, tmp_path: Path) -> None:
    chance = random.Random(5)
    change(model, 0.0)
    make_store(opt, keep=2).save(model, 0, 1, {"value": 0.0})

    def save_for_ever() -> None:
        iteration = newest(opt).iteration
        store = make_store(opt, keep=2)
        while True:
            iteration += 1
            change(model, float(iteration))
            store.save(model, 0, iteration, {"value": float(iteration)})

    def kill(child: int) -> None:
        time.sleep(chance.uniform(0.05, 0.4))
        os.kill(child, signal.SIGKILL)

    reached = [1]
    for _ in range(KILLS):
        assert in_child(save_for_ever, kill) == KILLED
        reached.append(newest(opt).iteration)
    assert reached == sorted(reached)
    assert reached[-1] > KILLS, "they came to save"
    last = reached[-1] + 1
    change(model, float(last))
    make_store(opt, keep=2).save(model, 0, last, {"value": float(last)})
    iterations = sorted(int(file.stem) for file in (tmp_path / "training_states").iterdir())
    assert len(iterations) == 2
    expected = {f"net_{label}_{n}.pth" for label in "gd" for n in iterations} | {f"{n}.state" for n in iterations}
    assert files_in(tmp_path) == expected
