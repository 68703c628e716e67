"""The evenness of samplers as it is measured for the plot, and the command line that draws it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

from bsr_plugins.analysis.sampling import DistanceCurve, Spread, measure_spreads
from bsr_plugins.data.decode import decode, to_tensor
from bsr_plugins.data.image_files import demo_photographs
from bsr_plugins.degradations import ClassicalDegradation


def photographs(phase: str) -> torch.Tensor:
    """Cut two 64-pixel squares out of each photograph of a split."""
    images = [to_tensor(decode(file.read_bytes(), str(file))) for file in demo_photographs(phase, "test")]
    return torch.stack([image[:, y : y + 64, y : y + 64] for image in images for y in (100, 180)])


def test_coefficient_of_variation() -> None:
    edges = np.linspace(0, 1, 11)
    assert Spread("uniform", "iso", np.full(10, 7.0), edges).coefficient_of_variation == 0
    one_bin = np.zeros(10)
    one_bin[3] = 50
    assert Spread("uniform", "iso", one_bin, edges).coefficient_of_variation == pytest.approx(3)  # sqrt(10 - 1)


def test_curve_meets_what_the_degradation_measures() -> None:
    images = photographs("val")
    degradation = ClassicalDegradation(4, blur_iso={"sigma": [0.2, 4.0]}, jpeg={"quality": [30, 95]})
    iso = DistanceCurve(degradation, "iso", images)
    values = torch.tensor([[0.2], [1.05], [2.7], [4.0]], dtype=torch.float64)
    np.testing.assert_allclose(iso(values), degradation.measure("iso", values, images).numpy(), rtol=5e-3, atol=0.01)
    jpeg = DistanceCurve(degradation, "jpeg", images)
    values = torch.tensor([[30.0], [49.6], [95.0]], dtype=torch.float64)
    np.testing.assert_allclose(jpeg(values), degradation.measure("jpeg", values, images).numpy(), rtol=2e-2)


def test_samplers_share_the_draws_and_ads_is_the_more_even() -> None:
    options = {"scale": 4, "blur_iso": {"sigma": [0.2, 4.0]}}
    samplers = {"uniform": "uniform", "again": "uniform", "ads": "ads"}
    spreads, curves = measure_spreads(options, samplers, photographs("train"), photographs("val"), 4000)
    uniform, again, ads = spreads
    assert [curve.name for curve in curves] == ["iso"]
    assert uniform.counts.sum() == 4000
    np.testing.assert_array_equal(uniform.counts, again.counts)
    assert ads.coefficient_of_variation < 0.6 * uniform.coefficient_of_variation


def test_command_line_prints_the_table_and_draws_the_plot(
    load_tool: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    plot = tmp_path / "sampling.png"
    monkeypatch.setattr(sys, "argv", ["plot_sampling.py", "--patches", "2", "--draws", "500", "--out", str(plot)])
    assert load_tool("plot_sampling").plot() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == ["| CV of D over 10 bins", "| uniform", "| power 0.5", "| ads"]
    drawn = cv2.imread(str(plot))
    assert drawn is not None
    assert drawn.std() > 10


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--held-out", "nowhere", "'nowhere' is missing or no folder"),
        ("--held-out", "small", "small.png: is 100x90, expected both sides at least 128"),
        ("--out", "nowhere/plot.png", "--out nowhere/plot.png: there is no folder nowhere"),
    ],
)
def test_command_line_refuses_in_one_line(
    refusal: Callable[..., str], tmp_path: Path, option: str, value: str, message: str
) -> None:
    (tmp_path / "small").mkdir()
    cv2.imwrite(str(tmp_path / "small" / "small.png"), np.zeros((90, 100, 3), np.uint8))
    assert message in refusal("plot_sampling", option, value)
