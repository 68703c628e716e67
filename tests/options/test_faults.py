"""Faults are gathered, each with its file and line, and said at once."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from bsr_plugins.engine import command_line
from bsr_plugins.errors import BadImageError, OptionError
from bsr_plugins.options.faults import Faults, OptionFaults

POSITIONS = {
    ("train",): "a.yml:1",
    ("train", "lr"): "b.yml:2",
    ("datasets",): "a.yml:5",
    ("datasets", "val"): "a.yml:6",
    ("datasets", "val", "gt_size"): "a.yml:7",
    ("datasets", "val", "type"): "a.yml:8",
    ("datasets", "val", "backend"): "a.yml:9",
}


@pytest.fixture
def faults() -> Faults:
    return Faults("a.yml", POSITIONS)


@pytest.mark.parametrize(
    ("message", "block", "line"),
    [
        ("train.lr: 5", (), "b.yml:2: train.lr: 5"),
        ("train.lr.x: 5", (), "b.yml:2: train.lr.x: 5"),
        ("train.optim: missing", (), "a.yml:1: train.optim: missing"),
        ("network_g: missing", (), "a.yml: network_g: missing"),
        ("dataset 'v'.gt_size: 5", ("datasets", "val"), "a.yml:7: dataset 'v'.gt_size: 5"),
        ("dataset 'v'.root: 5", ("datasets", "val"), "a.yml:6: dataset 'v'.root: 5"),
        ("dataset 'v'.backend.type: 5", ("datasets", "val"), "a.yml:9: dataset 'v'.backend.type: 5"),
        ("Loss.gt_size: 5", ("datasets", "val"), "a.yml:7: Loss.gt_size: 5"),
        ("train.lr: 5", ("datasets", "val"), "b.yml:2: train.lr: 5"),
        ("c.png: is small", ("datasets", "val"), "a.yml:6: c.png: is small"),
    ],
)
def test_a_fault_has_the_position_of_its_key(faults: Faults, message: str, block: tuple[str, ...], line: str) -> None:
    faults.add(message, block)
    assert faults.lines == (line,)


def test_what_is_free_of_faults(faults: Faults) -> None:
    faults.at(("datasets", "val", "gt_size"), "5")
    assert faults.free(("train",), ("datasets", "train"), ("datasets", "val", "name"))
    assert not faults.free(("datasets",))
    assert not faults.free(("train",), ("datasets", "val"))
    assert not faults.free(("datasets", "val", "gt_size", "x"))


def test_errors_are_noted_and_go_no_further(faults: Faults) -> None:
    with faults.noted("train"):
        raise OptionError("train.lr: 5")
    with faults.noted("train"):
        raise BadImageError("c.png: is\nbroken")
    with faults.noted("train"):
        raise OptionFaults("train.lr: 6", "train: 7")
    with faults.noted("train", "x"):
        raise KeyError("y")
    with faults.noted("train"):
        raise OptionError("train.lr: 5")
    with pytest.raises(KeyboardInterrupt), faults.noted("train"):
        raise KeyboardInterrupt
    expected = (
        "b.yml:2: train.lr: 5",
        "a.yml:1: c.png: is broken",
        "b.yml:2: train.lr: 6",
        "a.yml:1: train: 7",
        "a.yml:1: train.x: cannot be used (KeyError: 'y')",
    )
    assert faults.lines == expected
    with pytest.raises(OptionFaults) as caught:
        faults.raise_any()
    assert caught.value.lines == expected
    assert str(caught.value).splitlines() == list(expected)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert str(copied) == str(caught.value)


def test_no_faults_raise_nothing(faults: Faults) -> None:
    with faults.noted("train"):
        pass
    faults.raise_any()


def raising(_root: str) -> None:
    raise OptionFaults("a: 1", "b: 2")


def test_every_fault_is_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert command_line.run(raising, tmp_path) == command_line.BAD_INPUT
    assert capfd.readouterr().err == "error: a: 1\nerror: b: 2\n"


@pytest.mark.parametrize(("rank", "output"), [("0", "error: a: 1\nerror: b: 2\n"), ("1", "")])
def test_of_several_processes_one_speaks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rank: str, output: str
) -> None:
    waited: list[float] = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("time.sleep", waited.append)
    assert command_line.run(raising, tmp_path) == command_line.BAD_INPUT
    assert capfd.readouterr().err == output
    assert len(waited) == int(rank)
