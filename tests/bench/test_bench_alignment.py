"""The benchmark of alignment, at a size that takes no time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from bsr_plugins.analysis.alignment_study import VARIANTS


def test_prints_a_row_for_every_regulariser(
    load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--size", "tiny", "--threads", "1", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["alignment.py", *arguments])
    load_tool("bench/alignment").main()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[3] for row in rows] == list(reversed(VARIANTS))
    plain = float(rows[0][4])
    for row in rows:
        assert row[2] == "2×128², MSRResNet, 8 features, 1 blocks"
        assert float(row[5]) == pytest.approx(float(row[4]) / plain, rel=0.02)


def test_bad_arguments_end_in_one_line(
    load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["alignment.py", "--repeats", "0"])
    with pytest.raises(SystemExit, match=r"^2$"):
        load_tool("bench/alignment").main()
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith("argument --repeats: 0, expected a whole number at least 1")
    )
