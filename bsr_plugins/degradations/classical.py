"""The classical degradation, Eq. 1 of the ReDSR paper, and what else is registered as a stage."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bsr_plugins.blocks import boolean, call_with, integer
from bsr_plugins.degradations.base import (
    DEGRADATIONS,
    MAX_SEED,
    SEED,
    Degradation,
    Params,
    by_group,
    check_columns,
    classical_params,
    replaced,
    rounded,
    select,
)
from bsr_plugins.degradations.distance import degraded_distance
from bsr_plugins.degradations.resize import BORDERS, bicubic_resize
from bsr_plugins.degradations.samplers import AdaptiveSampler, build_sampler
from bsr_plugins.degradations.stages.base import STAGES, Block, Blur, LRStage, Stage, block_keys, known_stages
from bsr_plugins.errors import BSRError, OptionError, unknown_key, unknown_name
from bsr_plugins.precision import at_least_float32

CLEAN = "bicubic"  # the type without any stage


class _Signature:
    """The signature of a class whose constructor takes `**stages`: a key for every stage that is registered by now."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        constructor: Any = getattr(owner, "__init__")  # noqa: B009 (mypy finds the plain form unsound)
        _self, *taken = inspect.signature(constructor).parameters.values()
        if taken and taken[-1].kind is inspect.Parameter.VAR_KEYWORD:
            stages, keyword = taken.pop(), inspect.Parameter.KEYWORD_ONLY
            for name, key in block_keys().items():
                taken.append(stages.replace(name=key, kind=keyword, default=None, annotation=STAGES[name]))
        return inspect.Signature(taken)


@DEGRADATIONS.register("ClassicalDegradation")
class ClassicalDegradation(Degradation):
    """`lq = (gt ⊗ k) ↓s + n`, then JPEG, then rounding and clamping to 8 bits (Eq. 1 of the ReDSR paper).

    In this order: blur with reflected borders, MATLAB's bicubic, what changes the LR image (of the stages here noise,
    then JPEG), 8 bits. Each stage registered in `STAGES` has an option block with ranges and perhaps a `sampler`, e.g.
    `blur_iso: {sigma: [0.2, 4.0], sampler: ads}`; its class says what the block takes.

    Args:
        scale: Downsampling factor s.
        kernel_size: Taps per axis of the blur kernels, odd.
        border: Border of the bicubic: `clamp` (the released blind-SR codes) or `mirror` (MATLAB).
        round_to_8bit: Round and clamp the LR image to 8 bits. Without it, and without JPEG, the result is
            differentiable in `gt`.
        types: Degradation types to draw from with equal weight, each a set of stages, e.g. `[bicubic, iso,
            aniso+noise]`. Without it there is one type with all the stages that are described.
        sampler: `uniform`, `ads`, `{type: power, gamma: γ}` or another of `SAMPLERS`, for every stage that names none.
        **stages: The stages' blocks: the stage's name, for blurs with `blur_` in front.

    Raises:
        OptionError: A value is out of range, or a name or key unknown.
    """

    __signature__ = _Signature()

    def __init__(
        self,
        scale: int,
        kernel_size: int = 21,
        border: str = "clamp",
        round_to_8bit: bool = True,
        types: Sequence[str] | None = None,
        sampler: Block = "uniform",
        **stages: Mapping[str, Any] | None,
    ) -> None:
        self.scale = integer(scale, "scale", 1)
        self.kernel_size: int = integer(kernel_size, "kernel_size", 1)
        if kernel_size % 2 == 0:
            raise OptionError(f"kernel_size: {kernel_size!r}, expected an odd number")
        if border not in BORDERS:
            raise unknown_name("border", border, BORDERS)
        self.border = border
        self.round_to_8bit = boolean(round_to_8bit, "round_to_8bit")
        build_sampler(sampler, "sampler")  # so that a mistake in it is not put down to the first stage
        described: dict[str, Stage] = {}
        for name, key in block_keys().items():
            if (block := stages.pop(key, None)) is not None:
                taps = (kernel_size,) if issubclass(STAGES[name], Blur) else ()
                build = partial(STAGES[name], *taps, sampler=sampler)  # type: ignore[misc]
                described[name] = call_with(build, block, key)
        if stages:
            raise unknown_key(next(iter(stages)), inspect.signature(type(self)).parameters)
        self.types = _parse_types(types, described)
        self.stages = {name: stage for name, stage in described.items() if any(name in kind for kind in self.types)}

    @property
    def needs_calibration(self) -> bool:
        return any(stage.sampler.needs_calibration for stage in self.stages.values())

    def smallest_side(self, params: Params | None = None) -> int:
        if params is None:
            blurs = any(isinstance(stage, Blur) for stage in self.stages.values())
        else:
            blurs = any(self._blurs(self._checked(params, len(params[SEED]))))
        return max(self.scale, self.kernel_size // 2 + 1 if blurs else 1)

    def sample(self, batch_size: int, generator: torch.Generator) -> Params:
        """Draw those of `classical_params`, columns of further stages in use, and `type`, the index into `types`."""
        kind = torch.randint(len(self.types), (batch_size,), generator=generator)
        params = classical_params([0.0] * batch_size)
        for name, stage in self.stages.items():
            chosen = torch.tensor([name in stages for stages in self.types])[kind]
            drawn = stage.as_params(stage.sampler.draw(stage.ranges, batch_size, generator))
            for key, column in drawn.items():
                params[key] = torch.where(chosen, column, params.get(key, torch.zeros_like(column)))
        params[SEED] = torch.randint(MAX_SEED, (batch_size,), generator=generator)
        return {"type": kind, **params}

    def __call__(self, gt: Tensor, params: Params) -> Tensor:
        """Degrade images by parameters as `sample` or `classical_params` give them; absent columns mean no stage."""
        self.check_images(gt)
        params = self._checked(params, gt.shape[0])
        x = at_least_float32(gt)
        with torch.autocast(gt.device.type, enabled=False):
            return self._corrupt(self._blur_and_downsample(x, params), params).to(gt.dtype)

    def clean(self, gt: Tensor) -> Tensor:
        return self(gt, classical_params([0.0] * gt.shape[0]))

    def kernels(self, params: Params) -> Tensor:
        return self._kernels(self._checked(params, len(params[SEED]))).float()

    def _checked(self, params: Params, count: int) -> Params:
        """Check the parameters of `count` samples; return them with the columns of stages that are off by absence."""
        stages, off = known_stages().values(), torch.zeros(count, dtype=torch.float64)
        whole, columns = dict(params), dict.fromkeys(classical_params())
        for stage in stages:
            if not any(name in params or name in columns for name in stage.columns):
                whole |= dict.fromkeys(stage.columns, off)
            columns |= dict.fromkeys(stage.columns)
        check_columns(whole, columns, count)
        for name in params:
            if name not in columns and name != "type":
                raise unknown_name("degradation: among the parameters", name, columns)
        for stage in stages:
            stage.check(whole)
        return whole

    @staticmethod
    def _blurs(params: Params) -> list[type[Blur] | None]:
        """Find the blur of every sample."""
        found: list[type[Blur] | None] = [None] * len(params[SEED])
        for stage in (stage for stage in known_stages().values() if issubclass(stage, Blur)):
            for index in stage.applies(params).nonzero().flatten().tolist():
                if found[index] is not None:
                    raise BSRError(f"degradation: sample {index} has parameters of two blurs, expected one at most")
                found[index] = stage
        return found

    def _kernels(self, params: Params) -> Tensor:
        """Return the blur kernels in float64; a unit impulse where there is no blur."""
        blurs, size = self._blurs(params), self.kernel_size
        kernels = torch.zeros(len(blurs), size, size, dtype=torch.float64)
        kernels[:, size // 2, size // 2] = 1
        for stage in dict.fromkeys(blurs):
            if stage is not None:
                members = torch.tensor([blur is stage for blur in blurs])
                kernels[members] = stage.kernels(select(params, members), size)
        return kernels

    def _blur_and_downsample(self, x: Tensor, params: Params) -> Tensor:
        """Take each sample's way: the bicubic alone, or that of its blur."""
        size = (x.shape[-2] // self.scale, x.shape[-1] // self.scale)

        def apply(stage: type[Blur] | None, x: Tensor, params: Params) -> Tensor:
            if stage is None:
                return bicubic_resize(x, size, self.border)
            return stage.blur_bicubic(x, params, self.kernel_size, self.scale, self.border)

        return by_group(x, params, self._blurs(params), size, apply)

    def _corrupt(self, lq: Tensor, params: Params) -> Tensor:
        """Change the LR images by the other stages, then round to 8 bits."""
        for stage in (stage for stage in known_stages().values() if issubclass(stage, LRStage)):

            def change(some: Tensor, members: Tensor, stage: type[LRStage] = stage) -> Tensor:
                return stage.change(some, select(params, members))

            lq = replaced(stage.applies(params), lq, change)
        return rounded(lq) if self.round_to_8bit else lq

    def measure(self, name: str, values: Tensor, images: Tensor) -> Tensor:
        """Measure D(θ) of a single stage, in grey levels, shape (N,), as a mean over HR images, shape (M, 3, P, P).

        Its parameters, shape (N, P), may be the measured ones alone: D is then averaged over the others.
        """
        stage = self.stages[name]
        self.check_images(images)
        sharp = self._checked(classical_params(), 1)
        downsampled = self._blur_and_downsample(images[None], sharp)
        clean = self._corrupt(downsampled, sharp)
        rows = stage.averaged_over(values)
        distances = []
        for row in rows.flatten(0, 1):
            params = {**sharp, **stage.as_params(row[None])}
            blurred = self._blur_and_downsample(images[None], params) if isinstance(stage, Blur) else downsampled
            distances.append(degraded_distance(self._corrupt(blurred, params), clean).mean())
        return torch.stack(distances).view(rows.shape[:2]).mean(0)

    def calibrate(self, images: Tensor) -> None:
        with torch.no_grad():
            for name, stage, sampler in self._adaptive():
                if sampler.needs_calibration:
                    distances = self.measure(name, sampler.nodes(stage.measured_ranges), images)
                    sampler.fit(distances.view(sampler.grid_shape(stage.measured)), f"calibration of {name}")

    def calibration(self) -> dict[str, Any]:
        """Return what adaptive samplers were fitted with: ranges, settings and distances per stage."""
        return {
            name: {**self._measured_under(stage), "distances": sampler.distances.tolist()}
            for name, stage, sampler in self._adaptive()
            if sampler.distances is not None
        }

    def load_calibration(self, state: dict[str, Any]) -> None:
        """Fit the adaptive samplers with what `calibration` returned; what says nothing of settings is taken as it is.

        Raises:
            BSRError: It is of another form, or was measured over other ranges, under other settings or on another grid.
        """
        if not isinstance(state, Mapping):
            raise BSRError(f"calibration: {state!r}, expected a block per stage")
        for name, stage, sampler in self._adaptive():
            where = f"calibration of {name}"
            expected, saved = self._measured_under(stage), state.get(name, {})
            found = saved.get("ranges") if isinstance(saved, Mapping) else saved
            if found != expected["ranges"]:
                raise BSRError(f"{where}: found the ranges {found}, expected {expected['ranges']}")
            settings = saved.get("settings", {})
            if not isinstance(settings, Mapping):
                raise BSRError(f"{where}: found the settings {settings!r}, expected a block")
            for key, value in expected["settings"].items():
                if settings.get(key, value) != value:
                    raise BSRError(f"{where}: measured with {key} {settings[key]!r}, expected {value!r}")
            try:
                distances = torch.tensor(saved.get("distances", []), dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError) as error:
                raise BSRError(f"{where}: found distances that are no numbers, expected a grid of numbers") from error
            sampler.fit(distances, where)

    def _adaptive(self) -> list[tuple[str, Stage, AdaptiveSampler]]:
        stages = self.stages.items()
        return [(name, stage, stage.sampler) for name, stage in stages if isinstance(stage.sampler, AdaptiveSampler)]

    def _measured_under(self, stage: Stage) -> dict[str, Any]:
        """Return what a stage's distances depend on: its measured ranges, and settings, JSON-ready."""
        settings: dict[str, Any] = {"scale": self.scale, "border": self.border, "round_to_8bit": self.round_to_8bit}
        if isinstance(stage, Blur):
            settings["kernel_size"] = self.kernel_size
        averaged = zip(stage.columns[stage.measured :], stage.ranges[stage.measured :], strict=False)
        settings |= {name: list(ends) for name, ends in averaged}
        return {"ranges": [list(ends) for ends in stage.measured_ranges], "settings": settings}


def _parse_types(types: Sequence[str] | None, described: Mapping[str, Stage]) -> list[frozenset[str]]:
    """Read the types, each a set of stages joined by `+`; without a list there is one, of all that are described."""
    if types is not None and not isinstance(types, list | tuple):
        raise OptionError(f"types: {types!r}, expected a list such as [bicubic, iso]")
    keys = block_keys()
    parsed = []
    for written in ["+".join(described) or CLEAN] if types is None else types:
        names = [] if written == CLEAN else str(written).split("+")
        for name in names:
            if name not in keys:
                raise unknown_name(f"types: in {written!r}", name, [*keys, CLEAN])
            if name not in described:
                raise OptionError(f"types: {written!r} needs the block {keys[name]}")
        blurs = [name for name in names if issubclass(STAGES[name], Blur)]
        if len(set(names)) < len(names) or len(blurs) > 1:
            raise OptionError(f"types: {written!r}, expected each stage once and at most one blur")
        parsed.append(frozenset(names))
    if not parsed:
        raise OptionError("types: the list is empty, expected at least one type")
    return parsed
