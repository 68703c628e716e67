"""How evenly a sampler spreads degraded images: histograms of the degraded distance and how much they vary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from bsr_plugins.degradations import ClassicalDegradation
from bsr_plugins.degradations.samplers import AdaptiveSampler
from bsr_plugins.degradations.stages import Stage
from bsr_plugins.seeding import generator_at

HISTOGRAM_BINS = 10
_CURVE_POINTS = 65
_PANEL_INCHES = 3.2


class Spread(NamedTuple):
    """How a sampler spreads the degraded distances of one stage.

    Attributes:
        counts: Draws per bin, shape (10,); the bins divide the range of D on the held-out images equally.
        edges: Their edges in grey levels, shape (11,).
    """

    sampler: str
    stage: str
    counts: NDArray[np.float64]
    edges: NDArray[np.float64]

    @property
    def coefficient_of_variation(self) -> float:
        """Standard deviation of the counts over their mean: 0 for a perfectly even spread."""
        return float(self.counts.std() / self.counts.mean())


class DistanceCurve:
    """D(θ) of a degradation's stage on HR images (M, 3, P, P) in [0, 1], measured on a grid and interpolated."""

    def __init__(self, degradation: ClassicalDegradation, name: str, images: Tensor) -> None:
        self.name = name
        self.stage: Stage = degradation.stages[name]
        ranges = self.stage.ranges[: self.stage.measured]
        nodes = AdaptiveSampler(_CURVE_POINTS).nodes(ranges)
        with torch.no_grad():
            self.distances = degradation.measure(name, nodes, images).cpu().double().numpy()
        points = round(len(nodes) ** (1 / len(ranges)))
        self.axes = [np.linspace(low, high, points) for low, high in ranges]
        self._interpolator = RegularGridInterpolator(self.axes, self.distances.reshape([points] * len(ranges)))

    def __call__(self, values: Tensor) -> NDArray[np.float64]:
        """Look up D at drawn parameters, shape (N, parameters)."""
        looked_up: NDArray[np.float64] = self._interpolator(values[:, : self.stage.measured].numpy())
        return looked_up


def measure_spreads(
    options: Mapping[str, Any],
    samplers: Mapping[str, str | Mapping[str, Any]],
    calibration_images: Tensor,
    held_out_images: Tensor,
    draws: int,
    seed: int = 0,
) -> tuple[list[Spread], list[DistanceCurve]]:
    """Draw parameters with several samplers and look up their degraded distances on images not calibrated on.

    `options` are the arguments of `ClassicalDegradation` but for its sampler, `samplers` the samplers' blocks by name.
    Images are HR, (N, 3, P, P). All samplers share the seed and make so many draws of every stage.
    """
    curves: dict[str, DistanceCurve] = {}
    spreads = []
    for sampler, block in samplers.items():
        degradation = ClassicalDegradation(**options, sampler=block)
        degradation.calibrate(calibration_images)
        for name, stage in degradation.stages.items():
            if name not in curves:
                curves[name] = DistanceCurve(degradation, name, held_out_images)
            curve = curves[name]
            values = stage.sampler.draw(stage.ranges, draws, generator_at(seed, "spread", name))
            ends = (float(curve.distances.min()), float(curve.distances.max()))
            counts, edges = np.histogram(curve(values), bins=HISTOGRAM_BINS, range=ends)
            spreads.append(Spread(sampler, name, counts.astype(np.float64), edges))
    return spreads, list(curves.values())


def plot_spreads(spreads: Sequence[Spread], curves: Sequence[DistanceCurve], file: Path) -> None:
    """Plot D of every stage, and below it the histogram of D under every sampler."""
    samplers = list(dict.fromkeys(spread.sampler for spread in spreads))
    shape = (1 + len(samplers), len(curves))
    figure = Figure(figsize=(_PANEL_INCHES * shape[1], _PANEL_INCHES * 0.75 * shape[0]), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    for column, curve in enumerate(curves):
        _plot_curve(axes[0, column], curve)
        of_stage = [spread for spread in spreads if spread.stage == curve.name]
        top = max(spread.counts.max() for spread in of_stage)
        for axis, spread in zip(axes[1:, column], of_stage, strict=True):
            axis.stairs(spread.counts, spread.edges, fill=True, alpha=0.7)
            axis.axhline(spread.counts.mean(), color="black", linewidth=0.8, linestyle="--")
            axis.set_ylim(0, 1.05 * top)
            axis.set_title(f"{spread.sampler}: CV {spread.coefficient_of_variation:.3f}", fontsize="medium")
            axis.set_xlabel("degraded distance D / grey levels")
    for axis in axes[1:, 0]:
        axis.set_ylabel("draws")
    figure.savefig(file)


_LABELS = {
    "iso": ("isotropic blur", "σ / HR pixels"),
    "aniso": ("anisotropic blur", "λ1 / HR pixels"),
    "noise": ("noise", "level"),
    "jpeg": ("JPEG", "quality"),
}


def _plot_curve(axis: Any, curve: DistanceCurve) -> None:
    title, label = _LABELS.get(curve.name, (curve.name, curve.stage.columns[0]))
    axis.set_title(title)
    axis.set_xlabel(label)
    axis.set_ylabel("D(θ) / grey levels")
    if len(curve.axes) == 1:
        axis.plot(curve.axes[0], curve.distances)
        return
    shades = axis.pcolormesh(*curve.axes, curve.distances.reshape(len(curve.axes[0]), -1), shading="gouraud")
    axis.set_ylabel("λ2 / HR pixels")
    axis.figure.colorbar(shades, ax=axis, label="D(θ) / grey levels")
