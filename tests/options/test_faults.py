"""Faults are gathered, each with its file and line, and said at once."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from bsr_plugins.errors import BadImageError, OptionError
from bsr_plugins.options import command_line
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
    ("message", "line"),
    [
        ("train.lr: 5", "b.yml:2: train.lr: 5"),
        ("train.lr.x: 5", "b.yml:2: train.lr.x: 5"),
        ("train.optim: missing", "a.yml:1: train.optim: missing"),
        ("network_g: missing", "a.yml: network_g: missing"),
        ("datasets.val.gt_size: 5", "a.yml:7: datasets.val.gt_size: 5"),
        ("datasets.val.root: 5", "a.yml:6: datasets.val.root: 5"),
        ("gt_size: 5", "a.yml: gt_size: 5"),
        ("c.png: is small", "a.yml: c.png: is small"),
    ],
)
def test_a_fault_has_the_position_of_its_key(faults: Faults, message: str, line: str) -> None:
    faults.add(message)
    assert faults.lines == (line,)


def test_what_is_clear_of_faults(faults: Faults) -> None:
    faults.at(("datasets", "val", "gt_size"), "5")
    assert faults.clear(("train",), ("datasets", "train"), ("datasets", "val", "name"))
    assert not faults.clear(("datasets",))
    assert not faults.clear(("train",), ("datasets", "val"))
    assert not faults.clear(("datasets", "val", "gt_size", "x"))


def test_errors_are_gathered_and_go_no_further(faults: Faults) -> None:
    def fail() -> None:
        raise KeyError("y")

    with faults.gathered("train"):
        raise OptionError("train.lr: 5", "datasets.val: 6")
    with faults.gathered("train"):
        raise BadImageError("c.png: is\nbroken")
    with faults.gathered("train", "x"):
        fail()
    with faults.gathered("train"):
        raise OptionError("train.lr: 5")
    with pytest.raises(KeyboardInterrupt), faults.gathered("train"):
        raise KeyboardInterrupt
    *expected, foreign = faults.lines
    assert expected == ["b.yml:2: train.lr: 5", "a.yml:6: datasets.val: 6", "a.yml:1: train: c.png: is broken"]
    assert re.fullmatch(r"a.yml:1: train.x: cannot be used \(KeyError: 'y', in test_faults.py:\d+\)", foreign)
    with pytest.raises(OptionFaults) as caught:
        faults.raise_any()
    assert caught.value.lines == faults.lines
    assert str(caught.value).splitlines() == list(faults.lines)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert str(copied) == str(caught.value)


def test_no_faults_raise_nothing(faults: Faults) -> None:
    with faults.gathered("train"):
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
