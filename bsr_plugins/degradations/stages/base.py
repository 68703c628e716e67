"""What a stage of the classical degradation is: a block of options, what is drawn from it, and what that does."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bsr_plugins.blocks import interval
from bsr_plugins.degradations.base import Params, require
from bsr_plugins.degradations.blur import blur_bicubic, separable_blur_bicubic
from bsr_plugins.degradations.samplers import Range, UniformSampler, build_sampler
from bsr_plugins.registration import Registry

Block = str | Mapping[str, Any]
Interval = float | Sequence[float]
"""A range in an option file: [low, high], or one number."""

_PLACES = 4  # of every parameter that is not measured, over which distances are averaged


class Stage(ABC):
    """A stage of the classical degradation; subclass `Blur`, `SeparableBlur` or `LRStage`.

    An object draws: it has the ranges, one for each of `columns`, and the sampler of a block of options. The class
    applies: it takes parameters alone, so that protocols can use stages that no block describes. It is registered under
    its name in `types`, e.g. `@STAGES.register("noise")`; its block has the same name, for blurs with `blur_` in front.
    Its constructor takes the keys of the block, one of which is `sampler`, and names them alone in errors.

    Attributes:
        columns: The parameters' names. Each is a column of a batch's parameters, float64, shape (B,); where the first
            is 0, the stage is off.
        measured: How many parameters, the first 1 or 2, an adaptive sampler measures. The others are drawn uniformly,
            and distances are averaged over them.
        order: Stages are drawn, and those of LR images applied, by rising order, then by name; noise has 100, JPEG 200.
        measured_ranges: The ranges of the measured parameters.
        sampler: Draws the parameters; where the measured ones are fixed there is nothing to adapt, and it is uniform.
    """

    columns: ClassVar[tuple[str, ...]]
    measured: ClassVar[int] = 1
    order: ClassVar[int]

    def __init__(self, sampler: Block, *ranges: Range) -> None:
        self.ranges, self.measured_ranges = ranges, ranges[: self.measured]
        built = build_sampler(sampler, "sampler")
        self.sampler = UniformSampler() if all(low == high for low, high in self.measured_ranges) else built

    def as_params(self, values: Tensor) -> Params:
        """Sort drawn values, shape (B, parameters), by the names of `columns`."""
        return dict(zip(self.columns, values.unbind(1), strict=True))

    def averaged_over(self, values: Tensor) -> Tensor:
        """Complete the first parameters, shape (N, P), by R evenly spread places of the others: (R, N, parameters)."""
        rows, steps = values[None], (torch.arange(_PLACES, dtype=torch.float64) + 0.5) / _PLACES
        for low, high in self.ranges[values.shape[1] :]:
            places = (low + steps * (high - low)).tolist()
            rows = torch.cat([torch.cat([rows, torch.full_like(rows[..., :1], place)], -1) for place in places])
        return rows

    @classmethod
    def applies(cls, params: Params) -> Tensor:
        """Say which samples the stage changes, bool, shape (B,); by default where the first parameter is above 0."""
        return params[cls.columns[0]] > 0

    @classmethod
    def check(cls, params: Params) -> None:
        """Refuse parameters that are out of range (see `require`); by default a first one below 0."""
        require(params, cls.columns[0], params[cls.columns[0]] >= 0, "a number of at least 0")


STAGES: Registry[type[Stage]] = Registry("stage")
"""All stages by their names in `types`."""


class LRStage(Stage):
    """A stage that changes LR images, after blur and downsampling."""

    order = 150

    @classmethod
    @abstractmethod
    def change(cls, lq: Tensor, params: Params) -> Tensor:
        """Change LR images, shape (B, …, 3, h, w), float32 or float64, neither clamped nor rounded.

        The stage `applies` to all of them. What is random is drawn for each sample by a CPU generator whose seed
        follows from its `noise_seed`.
        """


class Blur(Stage):
    """A stage that blurs HR images; a type has one at most. Its constructor takes the kernels' taps, then the keys."""

    order = 50

    @classmethod
    @abstractmethod
    def kernels(cls, params: Params, size: int) -> Tensor:
        """Return kernels, float64, shape (B, size, size), indexed [y, x], each centred and summing to 1."""

    @classmethod
    def blur_bicubic(cls, x: Tensor, params: Params, size: int, scale: int, border: str) -> Tensor:
        """Blur with kernels of `size` taps, then downsample by the bicubic."""
        return blur_bicubic(x, cls.kernels(params, size).to(x), scale, border)


class SeparableBlur(Blur):
    """A blur whose kernels are outer products of a profile with itself, which is the fast way."""

    @classmethod
    @abstractmethod
    def profiles(cls, params: Params, size: int) -> Tensor:
        """Return profiles, float64, shape (B, size), each centred and summing to 1."""

    @classmethod
    def kernels(cls, params: Params, size: int) -> Tensor:
        profiles = cls.profiles(params, size)
        return profiles[:, :, None] * profiles[:, None, :]

    @classmethod
    def blur_bicubic(cls, x: Tensor, params: Params, size: int, scale: int, border: str) -> Tensor:
        return separable_blur_bicubic(x, cls.profiles(params, size).to(x), scale, border)


def known_stages() -> dict[str, type[Stage]]:
    """Return the stages by name, in the order in which they are drawn and applied."""
    return dict(sorted(STAGES.items(), key=lambda item: (item[1].order, item[0])))


def block_keys() -> dict[str, str]:
    """Return the keys of the stages' blocks by the stages' names, in that order."""
    stages = known_stages().items()
    return {name: f"blur_{name}" if issubclass(stage, Blur) else name for name, stage in stages}


def radians(degrees: Interval, key: str) -> Range:
    """Read a range of angles in degrees, in [-360, 360]."""
    low, high = interval(degrees, key, -360, 360)
    return math.radians(low), math.radians(high)
