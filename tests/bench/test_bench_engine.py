"""The benchmark of the engine, at a size that takes little time."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Project

ARGUMENTS = ("--iterations", "12", "--batch-size", "1", "--repeats", "1")


def test_prints_the_ratio_of_a_run(project: Project) -> None:
    shutil.copytree(Path(__file__).parents[2] / "options", project.root / "options")
    outcome = project.python("tools/bench/engine.py", "--runs", "sr", *ARGUMENTS)
    assert outcome.status == 0, outcome.output
    (row,) = [[cell.strip() for cell in line.strip("| ").split("|")] for line in outcome.output.splitlines()[2:]]
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
