"""The benchmark of the degradations, at a size that takes no time."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

TINY = ["--size", "96", "--repeats", "1", "--batch", "2", "--views", "1", "--threads", "1"]


@pytest.fixture
def bench(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("bench/degradations")


def test_prints_the_agreement_and_the_times(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["degradations.py", *TINY])
    assert bench.main() == 0
    printed = capsys.readouterr().out
    greatest = re.search(r"Greatest difference: (\S+) grey levels", printed)
    assert greatest is not None, printed
    assert 0 < float(greatest[1]) < 1e-3
    rows = [line for line in printed.splitlines() if re.match(r"\| (one|2×1), .* 1 \|", line)]
    assert len(rows) == 6, printed
    assert all(float(cell) > 0 for row in rows for cell in row.strip("| ").split("|")[3:])
    rows = [line for line in printed.splitlines() if re.match(r"\| (whole|without sharpening) \| 1 ", line)]
    assert len(rows) == 2, printed
    times = [[float(cell) for cell in row.strip("| ").split("|")[2:]] for row in rows]
    assert all(plain > 0 and ours > 0 for plain, ours, _ in times)
    assert all(ratio == pytest.approx(plain / ours, abs=0.1, rel=0.1) for plain, ours, ratio in times)


def test_disagreement_is_a_failure_and_nothing_is_timed(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["degradations.py", *TINY])
    monkeypatch.setattr(bench, "build_kernels", lambda _, like: like.new_full((len(like), 21, 21), 1 / 441))
    assert bench.main() == 1
    printed = capsys.readouterr().out
    assert "Greatest difference" in printed
    assert "plain, ms" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "98"], "--size 98: expected a multiple of 4, at least 84"),
        (["--size", "96", "--scale", "16"], "--size 96: expected a multiple of 16, at least 176"),
        (["--threads", "1", "0"], "argument --threads: 0, expected a whole number at least 1"),
    ],
)
def test_arguments_out_of_range_are_an_error(
    arguments: list[str],
    message: str,
    bench: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["degradations.py", *arguments])
    with pytest.raises(SystemExit):
        bench.main()
    assert message in capsys.readouterr().err
