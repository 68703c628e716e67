"""The benchmark of the training step, at a size that takes no time."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

import plain_step

TINY = ["--device", "cpu", "--width", "tiny", "--threads", "1", "--repeats", "1"]


@pytest.fixture
def bench(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("bench/train_step")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


@pytest.mark.parametrize("memory", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_prints_the_agreement_and_the_costs(
    memory: bool, bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory is measured in fresh processes, which take long to start."""
    if not memory:
        monkeypatch.setattr(bench, "measure_memory", lambda *_: "300 | 200 | 1.50")
    monkeypatch.setattr("torch.backends.cudnn.benchmark", torch.backends.cudnn.benchmark)  # put back, as it is set
    monkeypatch.setattr(sys, "argv", ["train_step.py", *TINY])
    assert bench.main() == 0
    printed = capsys.readouterr().out
    apart = re.findall(r"^\| cpu \| (l_\w+|gradients).*\| (\S+) \|$", printed, re.MULTILINE)
    assert [name for name, _ in apart] == ["l_representation", "l_redegradation", "l_pix", "gradients"]
    assert all(float(figure) < 1e-3 for _, figure in apart)

    step, *parts = [cells(line) for line in printed.splitlines() if line.startswith("| cpu | 1 |")]
    assert step[2:4] == ["step", "2×24², 8 features, 1×1 blocks"]
    plain, ours, ratio, _, plain_memory, our_memory, memory_ratio = map(float, step[4:])
    assert ratio == pytest.approx(plain / ours, rel=0.02)
    assert memory_ratio == pytest.approx(plain_memory / our_memory, rel=0.05)
    assert 10 < our_memory < 1000
    assert len(parts) == 4
    assert all(float(cell) > 0 for part in parts for cell in part[4:8])


def test_disagreement_is_a_failure_and_nothing_is_timed(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = plain_step.plain_dynamic_conv
    monkeypatch.setattr(sys, "argv", ["train_step.py", *TINY])
    monkeypatch.setattr(plain_step, "plain_dynamic_conv", lambda x, kernels, _: plain(x, kernels, "constant"))
    assert bench.main() == 1
    printed = capsys.readouterr().out
    assert "Allowed: 1e-05 for losses, 1e-03 for gradients" in printed
    assert "plain, s" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "argument --repeats: 0, expected a whole number at least 1"),
        (["--threads", "1", "0"], "argument --threads: 0, expected a whole number at least 1"),
        (["--device", "cuda"], "argument --device: there is no CUDA device here, expected cpu"),
    ],
)
def test_arguments_out_of_range_are_an_error(
    arguments: list[str],
    message: str,
    bench: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["train_step.py", *arguments])
    with pytest.raises(SystemExit):
        bench.main()
    assert message in capsys.readouterr().err
