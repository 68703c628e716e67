"""How degradation parameters are drawn from their ranges.

Uniform draws pile up at degradations that look alike: between σ = 3.5 and 4 little changes, between 0.5 and 1 much.
`ads` (adaptive degradation sampling) draws so that the *degraded distance* D(θ), the mean RMSE between the LR images
degraded by θ and the clean ones, comes out uniform. `power` is a closed form that needs no measuring.

Source: AACL's abstract says that ADS "utilizes non-linear sampling by weighting the parameters of the degradation
process for training uniformly degraded images"; no more is published, so the definition above is ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bsr_plugins.blocks import build_from_block, integer, number
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.registration import Registry

Range = tuple[float, float]
Ranges = Sequence[Range]

_SURFACE_POINTS = 9
_LEAST_CHANGE = 1e-3  # grey levels; less than this is rounding
_CELLS_PER_AXIS = 32 * (_SURFACE_POINTS - 1)  # of a surface; so fine as to be below a bin where D is steep
_DISTANCE_BINS = 40  # resolution at which a surface's distances are levelled


class Sampler(ABC):
    """Draws parameter vectors from a box of ranges, one axis per parameter.

    A class is registered under its name in option files, e.g. `@SAMPLERS.register("power")`; its constructor takes the
    other keys of the block. One that wants measured distances is a subclass of `AdaptiveSampler`.
    """

    needs_calibration = False

    @abstractmethod
    def draw(self, ranges: Ranges, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` vectors; float64, shape (count, len(ranges)), every entry inside its range."""


SAMPLERS: Registry[Callable[..., Sampler]] = Registry("sampler")
"""All samplers by the names that option files give them."""


def spread(units: Tensor, ranges: Ranges) -> Tensor:
    """Map numbers in [0, 1], shape (count, d), onto a box of d ranges."""
    ends = torch.tensor(ranges, dtype=torch.float64)
    return ends[:, 0] + units * (ends[:, 1] - ends[:, 0])


@SAMPLERS.register("uniform")
class UniformSampler(Sampler):
    """Every parameter uniform and independent."""

    def draw(self, ranges: Ranges, count: int, generator: torch.Generator) -> Tensor:
        return spread(torch.rand(count, len(ranges), generator=generator, dtype=torch.float64), ranges)


@SAMPLERS.register("power")
class PowerSampler(Sampler):
    """`low + (high − low) · u^γ` for every parameter: γ < 1 favours the upper end, γ > 1 the lower.

    Args:
        gamma: Exponent γ in (0, 100]; 1 is uniform.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = number(gamma, "gamma", 0.0, 100.0)
        if self.gamma == 0:
            raise OptionError(f"gamma: {gamma!r}, expected a number above 0")

    def draw(self, ranges: Ranges, count: int, generator: torch.Generator) -> Tensor:
        units = torch.rand(count, len(ranges), generator=generator, dtype=torch.float64)
        return spread(units**self.gamma, ranges)


@SAMPLERS.register("ads")
class AdaptiveSampler(Sampler):
    """Adaptive degradation sampling: D(θ) uniform, once `fit` has been given D on a grid.

    With one parameter, D is made monotone and inverted. With two (the widths of an anisotropic kernel) many θ share
    a D: small cells of the parameter box are drawn with weights that make D uniform, while cells of equal D stay
    equally likely, as under uniform draws. Parameters beyond these (the angle) are uniform.

    Args:
        grid: Grid points of a curve of D, at least 5; over two parameters it is measured on 9 × 9 points.
    """

    def __init__(self, grid: int = 65) -> None:
        self.grid = integer(grid, "grid", 5)
        self.needs_calibration = True  # by `fit`
        self.distances: Tensor | None = None
        self._cumulative_weights: Tensor | None = None

    def nodes(self, ranges: Ranges) -> Tensor:
        """Return the grid points at which to measure D, shape (points, len(ranges)), the last parameter fastest."""
        points = zip(ranges, self.grid_shape(len(ranges)), strict=True)
        axes = [torch.linspace(*ends, count, dtype=torch.float64) for ends, count in points]
        return torch.cartesian_prod(*axes).view(-1, len(ranges))

    def grid_shape(self, parameters: int) -> tuple[int, ...]:
        """Return the grid points per parameter: D on `nodes`, viewed in this shape, is what `fit` takes."""
        return (self.grid,) if parameters == 1 else (_SURFACE_POINTS,) * parameters

    def fit(self, distances: Tensor, where: str = "ads") -> None:
        """Take D at `nodes`, in `grid_shape`; refuse what is not finite or hardly changes from end to end."""
        distances = distances.to("cpu", torch.float64)
        shapes = [self.grid_shape(parameters) for parameters in (1, 2)]
        if tuple(distances.shape) not in shapes or not bool(distances.isfinite().all()):
            expected = " or ".join("x".join(map(str, shape)) for shape in shapes)
            raise BSRError(f"{where}: distances of shape {tuple(distances.shape)}, expected {expected} finite numbers")
        change = abs(float(distances.flatten()[-1] - distances.flatten()[0]))
        if change < _LEAST_CHANGE:
            found = f"the degraded distance changes by {change:g} grey levels over the range"
            raise BSRError(f"{where}: {found}, expected at least {_LEAST_CHANGE:g}")
        self.distances, self.needs_calibration = distances, False
        self._cumulative_weights = _cell_weights(distances).flatten().cumsum(0) if distances.dim() == 2 else None

    def draw(self, ranges: Ranges, count: int, generator: torch.Generator) -> Tensor:
        if self.distances is None:
            raise BSRError("ads: the sampler has not been calibrated; call calibrate() or load_calibration() first")
        units = torch.rand(count, len(ranges), generator=generator, dtype=torch.float64)
        if self._cumulative_weights is None:
            units[:, 0] = _invert(self.distances, units[:, 0])
        else:
            choice = torch.rand(count, generator=generator, dtype=torch.float64) * self._cumulative_weights[-1]
            cells = torch.searchsorted(self._cumulative_weights, choice).clamp_max(_CELLS_PER_AXIS**2 - 1)
            corners = torch.stack([cells // _CELLS_PER_AXIS, cells % _CELLS_PER_AXIS], dim=1)
            units[:, :2] = (corners + units[:, :2]) / _CELLS_PER_AXIS
        return spread(units, ranges)


def _invert(distances: Tensor, units: Tensor) -> Tensor:
    """Return the places in [0, 1] at which D, made monotone and piecewise linear, has risen by the given parts."""
    falling = bool(distances[0] > distances[-1])
    rising = (distances.flip(0) if falling else distances).cummax(0).values
    steps = len(rising) - 1
    targets = rising[0] + units * (rising[-1] - rising[0])
    upper = torch.searchsorted(rising, targets).clamp(1, steps)
    below, above = rising[upper - 1], rising[upper]
    part = (targets - below) / (above - below).clamp_min(torch.finfo(torch.float64).tiny)
    places = (upper - 1 + part.clamp(0, 1)) / steps
    return 1 - places if falling else places


def _cell_weights(distances: Tensor) -> Tensor:
    """Return one weight per small cell of a surface, shape (n, n): the inverse of how many cells share its distance."""
    fine = F.interpolate(distances[None, None], size=(_CELLS_PER_AXIS + 1,) * 2, mode="bilinear", align_corners=True)
    centres = F.avg_pool2d(fine, kernel_size=2, stride=1)[0, 0]
    low, high = centres.min(), centres.max()
    bins = ((centres - low) / (high - low) * _DISTANCE_BINS).long().clamp_max(_DISTANCE_BINS - 1)
    population = torch.bincount(bins.flatten(), minlength=_DISTANCE_BINS).to(torch.float64)
    return 1 / population[bins]


def build_sampler(block: str | Mapping[str, Any], where: str) -> Sampler:
    """Build a sampler from its name or its block, e.g. `uniform` or `{type: power, gamma: 0.5}`."""
    return build_from_block({"type": block} if isinstance(block, str) else block, SAMPLERS, where)
