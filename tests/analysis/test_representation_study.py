"""Small training runs that show what ReDSR's losses do: what they share, what differs, and the command line."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
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
    Variant,
    run_variant,
    start_degrader,
)
from bsr_plugins.archs import ReDSRDegrader
from bsr_plugins.data.decode import Pixels

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compare_representations.py"
TINY = Study(iters=3, batch_size=2, gt_size=48, num_feat=16)
BOTH = VARIANTS["both (model 4)"]


@pytest.fixture(scope="module")
def photographs() -> tuple[list[Pixels], list[Pixels]]:
    """Two photographs to train on, three to measure on."""
    astronaut, coffee = data.astronaut(), data.coffee()
    return [astronaut, coffee], [astronaut[:200, 100:300], coffee[:128, :300], coffee[150:300, 50:200]]


def run(variant: Variant, photographs: tuple[list[Pixels], list[Pixels]], study: Study = TINY) -> tuple[Figures, ...]:
    return run_variant(variant, study, *photographs)


def test_all_runs_start_from_the_same_network(photographs: tuple[list[Pixels], list[Pixels]]) -> None:
    starts = [run(variant, photographs)[0] for variant in VARIANTS.values()]
    for start in starts:
        assert start[2:] == starts[0][2:]
        assert math.isnan(start.training_redegradation)
        assert -1 <= start.silhouette <= 1
        assert start.calinski_harabasz > 0


def test_what_is_measured_depends_on_the_losses(photographs: tuple[list[Pixels], list[Pixels]]) -> None:
    after = {name: run(variant, photographs)[1] for name, variant in VARIANTS.items()}
    for name, figures in after.items():
        without = not VARIANTS[name].redegradation
        assert math.isnan(figures.redegradation) == math.isnan(figures.training_redegradation) == without
    told = {name: (figures.mean, figures.std, figures.silhouette) for name, figures in after.items()}
    # Where the degrader is fed a constant, the encoder learns nothing from it.
    assert told.pop("both, degrader fed a constant") == told["energy distance (model 3)"]
    assert len(set(told.values())) == len(told)


def test_a_run_is_repeated_by_its_seed_alone(photographs: tuple[list[Pixels], list[Pixels]]) -> None:
    first = run(BOTH, photographs)[1]
    torch.rand(5)
    assert run(BOTH, photographs)[1] == first
    assert run(BOTH, photographs, Study(iters=3, batch_size=2, gt_size=48, num_feat=16, seed=1))[1] != first


def test_the_degrader_starts_as_an_average(photographs: tuple[list[Pixels], list[Pixels]]) -> None:
    torch.manual_seed(0)
    degrader = ReDSRDegrader(num_feat=16, scale=2)
    image = torch.from_numpy(photographs[0][0][:32, :48] / 255).float().permute(2, 0, 1)[None]
    far = (degrader(image, torch.randn(1, 64)) - F.avg_pool2d(image, 2)).abs().max()
    start_degrader(degrader)
    near = (degrader(image, torch.randn(1, 64)) - F.avg_pool2d(image, 2)).abs().max()
    assert near < 1e-6 < 0.01 < far


def test_the_degrader_has_a_learning_rate_of_its_own(photographs: tuple[list[Pixels], list[Pixels]]) -> None:
    slow = Study(iters=3, batch_size=2, gt_size=48, num_feat=16, degrader_lr=1e-9)
    variant = VARIANTS["re-degradation (model 2)"]
    assert run(variant, photographs, slow)[1].redegradation != run(variant, photographs)[1].redegradation


def test_the_widths_are_those_of_the_papers_figure() -> None:
    assert WIDTHS == (0.5, 1.4, 2.3, 3.2, 4.1, 5.0)


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(TOOL.parents[1])}
    call = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=False, cwd=folder, env=environment)


def test_command_line_prints_the_tables(tmp_path: Path) -> None:
    done = command("--iters", "1", "--batch-size", "2", "--num-feat", "16", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ")[0].removeprefix("| ") for line in done.stdout.splitlines() if line.startswith("| ")]
    redegrading = [name for name, variant in VARIANTS.items() if variant.redegradation]
    target = "(the target of the energy distance)"
    assert rows == ["losses", *redegrading, "losses", target, "(untrained)", *VARIANTS]
    assert not list(tmp_path.iterdir())


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
