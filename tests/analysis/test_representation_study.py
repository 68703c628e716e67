"""Small training runs that show what ReDSR's losses do: what they share, what differs, and the command line."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage import data
from torch.nn import functional as F

from bsr_plugins.analysis.representation_study import (
    VARIANTS,
    WIDTHS,
    Figures,
    Study,
    run_variant,
    start_degrader,
)
from bsr_plugins.archs import ReDSRDegrader
from bsr_plugins.data.decode import Pixels

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TINY = Study(iters=2, batch_size=2, gt_size=48, num_feat=16)
BOTH = "both (model 4)"


@pytest.fixture(scope="module")
def photographs() -> tuple[list[Pixels], list[Pixels]]:
    """Two photographs to train on, three to measure on."""
    astronaut, coffee = data.astronaut(), data.coffee()
    return [astronaut, coffee], [astronaut[:200, 100:300], coffee[:128, :300], coffee[150:300, 50:200]]


@pytest.fixture(scope="module")
def runs(photographs: tuple[list[Pixels], list[Pixels]]) -> dict[str, tuple[Figures, Figures]]:
    """One run of every variant."""
    return {name: run_variant(variant, TINY, *photographs) for name, variant in VARIANTS.items()}


def test_all_runs_start_from_the_same_network(runs: dict[str, tuple[Figures, Figures]]) -> None:
    for start, _ in runs.values():
        assert start[2:] == runs[BOTH][0][2:]
        assert math.isnan(start.training_redegradation)
        assert -1 <= start.silhouette <= 1
        assert start.calinski_harabasz > 0


def test_what_is_measured_depends_on_the_losses(runs: dict[str, tuple[Figures, Figures]]) -> None:
    for name, (_, figures) in runs.items():
        without = not VARIANTS[name].redegradation
        assert math.isnan(figures.redegradation) == math.isnan(figures.training_redegradation) == without
    measured = {name: (after.mean, after.std, after.silhouette) for name, (_, after) in runs.items()}
    # Where the degrader is fed a constant, the encoder learns nothing from it.
    assert measured.pop("both, degrader fed a constant") == measured["energy distance (model 3)"]
    assert len(set(measured.values())) == len(measured)


def test_a_run_is_repeated_by_its_seed_alone(
    runs: dict[str, tuple[Figures, Figures]], photographs: tuple[list[Pixels], list[Pixels]]
) -> None:
    torch.rand(5)
    again, other = (run_variant(VARIANTS[BOTH], replace(TINY, seed=seed), *photographs)[1] for seed in (0, 1))
    assert again == runs[BOTH][1]
    assert again != other


def test_the_degrader_starts_as_an_average(photographs: tuple[list[Pixels], list[Pixels]]) -> None:
    torch.manual_seed(0)
    degrader = ReDSRDegrader(num_feat=16, scale=2)
    image = torch.from_numpy(photographs[0][0][:32, :48] / 255).float().permute(2, 0, 1)[None]
    far = (degrader(image, torch.randn(1, 64)) - F.avg_pool2d(image, 2)).abs().max()
    start_degrader(degrader)
    near = (degrader(image, torch.randn(1, 64)) - F.avg_pool2d(image, 2)).abs().max()
    assert near < 1e-6 < 0.01 < far


def test_the_degrader_has_a_learning_rate_for_itself(
    runs: dict[str, tuple[Figures, Figures]], photographs: tuple[list[Pixels], list[Pixels]]
) -> None:
    name = "re-degradation (model 2)"
    slow = run_variant(VARIANTS[name], replace(TINY, degrader_lr=1e-9), *photographs)[1]
    assert slow.redegradation != runs[name][1].redegradation


def test_the_widths_are_those_of_the_papers_figure() -> None:
    assert WIDTHS == (0.5, 1.4, 2.3, 3.2, 4.1, 5.0)


def test_command_line_prints_the_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number}.png"), data.astronaut()[40 * number :, 40 * number :][:130, :140])
    monkeypatch.syspath_prepend(str(TOOLS))
    arguments = ["--iters", "1", "--batch-size", "2", "--num-feat", "16", "--processes", "1"]
    monkeypatch.setattr(sys, "argv", ["compare_representations.py", "--dataroot", str(tmp_path), *arguments])
    # Imported by its name, as the other process does that makes the runs.
    assert importlib.import_module("compare_representations").compare() == 0
    printed = capsys.readouterr().out
    rows = [line.split(" | ")[0].removeprefix("| ") for line in printed.splitlines() if line.startswith("| ")]
    redegrading = [name for name, variant in VARIANTS.items() if variant.redegradation]
    target = "(the target of the energy distance)"
    assert rows == ["losses", *redegrading, "losses", target, "(untrained)", *VARIANTS]
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataroot", "nowhere"), "'nowhere' is missing or no folder"),
        (("--dataroot", "small"), "is 100x90, expected both sides at least 128"),
        (("--iters", "0"), "argument --iters: 0, expected a whole number at least 1"),
        (("--num-feat", "4"), "argument --num-feat: 4, expected a whole number at least 16"),
    ],
)
def test_command_line_refuses_in_one_line(
    refusal: Callable[..., str], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "small").mkdir()
    for number in range(10):
        cv2.imwrite(str(tmp_path / "small" / f"small{number}.png"), np.zeros((90, 100, 3), np.uint8))
    assert message in refusal("compare_representations", *arguments)
