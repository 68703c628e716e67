"""The stages of the classical pipeline as option blocks: what each draws, from what ranges, by what sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bsr_plugins.blocks import call_with, interval
from bsr_plugins.degradations.samplers import Sampler, UniformSampler, build_sampler
from bsr_plugins.errors import OptionError, unknown_name

Block = str | Mapping[str, Any]
Range = tuple[float, float]

_MAX_NOISE = 255.0
_MAX_DEGREES = 360.0
_QUALITIES = (1.0, 100.0)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        ranges: A range per parameter, in the order in which `Sampler.draw` returns them.
        measured: How many of the first parameters an adaptive sampler measures; the others stay uniform.
        sampler: Draws the parameters; where the measured ones are fixed there is nothing to adapt, and it is uniform.
    """

    ranges: tuple[Range, ...]
    measured: int
    sampler: Sampler


def _stage(where: str, sampler: Block, measured: int, *ranges: Range) -> Stage:
    built = build_sampler(sampler, f"{where}.sampler")
    fixed = all(low == high for low, high in ranges[:measured])
    return Stage(ranges, measured, UniformSampler() if fixed else built)


def _iso(where: str, kernel_size: int, sampler: Block, sigma: Any) -> Stage:
    return _stage(where, sampler, 1, interval(sigma, f"{where}.sigma", 0.0, kernel_size / 2))


def _aniso(where: str, kernel_size: int, sampler: Block, sigma: Any, theta: Any = (0.0, 180.0)) -> Stage:
    widths = interval(sigma, f"{where}.sigma", 0.0, kernel_size / 2)
    if widths[0] == 0:
        raise OptionError(f"{where}.sigma: {sigma!r}, expected widths above 0 (σ = 0 is for isotropic kernels only)")
    low, high = interval(theta, f"{where}.theta", -_MAX_DEGREES, _MAX_DEGREES)
    angles = (math.radians(low), math.radians(high))
    return _stage(where, sampler, 2, widths, widths, angles)


def _noise(where: str, kernel_size: int, sampler: Block, level: Any) -> Stage:  # noqa: ARG001
    return _stage(where, sampler, 1, interval(level, f"{where}.level", 0.0, _MAX_NOISE))


def _jpeg(where: str, kernel_size: int, sampler: Block, quality: Any) -> Stage:  # noqa: ARG001
    return _stage(where, sampler, 1, interval(quality, f"{where}.quality", *_QUALITIES))


_BUILDERS: dict[str, tuple[str, Callable[..., Stage]]] = {
    "iso": ("blur_iso", _iso),
    "aniso": ("blur_aniso", _aniso),
    "noise": ("noise", _noise),
    "jpeg": ("jpeg", _jpeg),
}
STAGES = tuple(_BUILDERS)
CLEAN = "bicubic"


def build_stage(name: str, block: Mapping[str, Any] | None, kernel_size: int, sampler: Block) -> Stage | None:
    """Build a stage from its option block, or return None where there is none.

    Args:
        name: One of `STAGES`.
        block: The block, e.g. `{sigma: [0.2, 4.0], sampler: ads}`.
        kernel_size: Taps of the blur kernels; widths may go up to half of it.
        sampler: The sampler of blocks that name none.

    Raises:
        OptionError: A key is unknown or missing, or a value out of range.
    """
    key, builder = _BUILDERS[name]
    where = f"degradation.{key}"
    if block is None:
        return None
    if not isinstance(block, Mapping):
        raise OptionError(f"{where}: expected a block of options, got {block!r}")
    return call_with(partial(builder, where, kernel_size), {"sampler": sampler, **block}, where)


def parse_types(types: Sequence[str] | None, stages: Mapping[str, Stage | None]) -> list[frozenset[str]]:
    """Read the degradation types, each a set of stages joined by `+`, e.g. `aniso+noise`; `bicubic` is the empty set.

    Without a list there is one type, of all the stages that are described.

    Raises:
        OptionError: It is no list; a stage is unknown or not described, named twice, or a type has two blurs.
    """
    if types is not None and not isinstance(types, list | tuple):
        raise OptionError(f"degradation.types: {types!r}, expected a list such as [bicubic, iso]")
    present = [name for name, stage in stages.items() if stage is not None]
    parsed = []
    for written in ["+".join(present) or CLEAN] if types is None else types:
        names = [] if written == CLEAN else str(written).split("+")
        for name in names:
            if name not in stages:
                raise unknown_name(f"degradation.types: in {written!r}", name, [*STAGES, CLEAN])
            if stages[name] is None:
                raise OptionError(f"degradation.types: {written!r} needs the block degradation.{_BUILDERS[name][0]}")
        if len(set(names)) < len(names) or {"iso", "aniso"} <= set(names):
            raise OptionError(f"degradation.types: {written!r}, expected each stage once and at most one blur")
        parsed.append(frozenset(names))
    if not parsed:
        raise OptionError("degradation.types: the list is empty, expected at least one type")
    return parsed
