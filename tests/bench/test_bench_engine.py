"""The benchmark of the engine, at a size that takes little time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest

ARGUMENTS = ("--iterations", "12", "--batch-size", "1", "--repeats", "1")


def test_prints_the_ratio_of_runs_in_turn(
    load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, made = load_tool("bench/engine"), []

    def measure(_run: str, pipeline: str, _: object) -> list[float]:
        made.append(pipeline)
        return [10.0, 20.0, 90.0] if pipeline == "stock" else [21.0 + len(made)] * 3

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["engine.py", "--runs", "aacl", "--repeats", "2"])
    bench.main()
    assert made == ["stock", "engine", "engine", "stock"]
    assert capsys.readouterr().out.splitlines()[2:] == ["| aacl | 6 | 20 | 23.5 | 1.175 | 1.150 to 1.200 |"]


@pytest.mark.slow
def test_prints_the_ratio_of_a_run(
    load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["engine.py", "--runs", "sr", *ARGUMENTS])
    load_tool("bench/engine").main()
    printed = capsys.readouterr().out.splitlines()
    (row,) = [[cell.strip() for cell in line.strip("| ").split("|")] for line in printed[2:]]
    name, iterations, stock, own, ratio, of_pairs = row
    assert (name, iterations) == ("sr", "1")
    assert of_pairs == f"{ratio} to {ratio}"
    assert float(ratio) == pytest.approx(float(own) / float(stock), rel=0.01)


def test_bad_arguments_end_in_one_line(
    load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["engine.py", "--iterations", "11"])
    with pytest.raises(SystemExit, match=r"^2$"):
        load_tool("bench/engine").main()
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("argument --iterations: 11, expected a whole number at least 12")
    )
