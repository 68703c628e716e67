"""The classical degradation, Eq. 1 of the ReDSR paper, with JPEG as the last stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bsr_plugins.blocks import boolean, integer
from bsr_plugins.degradations.base import Degradation, Params
from bsr_plugins.degradations.blur import blur_bicubic, separable_blur_bicubic
from bsr_plugins.degradations.distance import degraded_distance
from bsr_plugins.degradations.jpeg import jpeg as jpeg_coding
from bsr_plugins.degradations.kernels import gaussian_kernels, gaussian_profiles
from bsr_plugins.degradations.noise import GREY_LEVELS, gaussian_noise
from bsr_plugins.degradations.resize import BORDERS, bicubic_resize
from bsr_plugins.degradations.samplers import AdaptiveSampler, build_sampler
from bsr_plugins.degradations.stages import STAGES, Block, build_stage, parse_types
from bsr_plugins.errors import BSRError, OptionError, unknown_name
from bsr_plugins.precision import at_least_float32

_NAMES = ("lambda1", "lambda2", "theta", "noise_level", "jpeg_quality", "noise_seed")
_MAX_SEED = (1 << 63) - 1
_ANGLES = 4  # an anisotropic kernel's distance is averaged over this many angles
_MEASURING_SEED = 0


def classical_params(
    lambda1: float | Sequence[float] = 0.0,
    lambda2: float | Sequence[float] | None = None,
    theta: float | Sequence[float] = 0.0,
    noise_level: float | Sequence[float] = 0.0,
    noise_seed: int | Sequence[int] = 0,
    jpeg_quality: float | Sequence[float] = 0.0,
) -> Params:
    """Write down the parameters of classical degradations, instead of drawing them.

    Args:
        lambda1: Widths (standard deviations in HR pixels) along the kernel's first axis, ≥ 0; 0 means no blur.
        lambda2: Widths along the second axis; left out, the kernels are isotropic.
        theta: Angles of the first axis, in radians.
        noise_level: Noise levels on the 0–255 scale, ≥ 0; 0 means none.
        noise_seed: Seeds of the noise fields in [0, 2^63).
        jpeg_quality: Qualities in [1, 100], whole or not; 0 means no JPEG.

    Returns:
        Params: CPU tensors, float64 but for `noise_seed` (int64), shape (B,), B = 1 where all arguments are single
        numbers.
    """
    reals = [lambda1, lambda1 if lambda2 is None else lambda2, theta, noise_level, jpeg_quality]
    columns = [torch.as_tensor(value, dtype=torch.float64).reshape(-1) for value in reals]
    columns.append(torch.as_tensor(noise_seed, dtype=torch.int64).reshape(-1))
    return dict(zip(_NAMES, (column.clone() for column in torch.broadcast_tensors(*columns)), strict=True))


class ClassicalDegradation(Degradation):
    """`lq = (gt ⊗ k) ↓s + n`, then JPEG, then rounding and clamping to 8 bits (Eq. 1 of the ReDSR paper).

    In this order: blur with reflected borders, MATLAB's bicubic, Gaussian noise on the LR image, JPEG, 8 bits. Each
    stage is an option block with ranges and, if it likes, a `sampler` of its own:

    * `blur_iso: {sigma: [0.2, 4.0]}`: isotropic Gaussian kernels, σ = 0 meaning no blur;
    * `blur_aniso: {sigma: [0.2, 4.0], theta: [0, 180]}`: anisotropic ones, λ1 and λ2 (standard deviations) both from
      `sigma`, θ in degrees;
    * `noise: {level: [0, 25]}`: on the 0–255 scale, drawn once per pixel and channel;
    * `jpeg: {quality: [30, 95]}`: any number in the range, not only whole ones, so that a sampler can be even.

    Args:
        scale: Downsampling factor s.
        kernel_size: Taps per axis of the blur kernels, odd.
        border: Border of the bicubic: `clamp` (the released blind-SR codes) or `mirror` (MATLAB).
        round_to_8bit: Round and clamp the LR image to 8 bits. Without it, and without JPEG, the result is
            differentiable in `gt`.
        blur_iso: Isotropic blur, see above.
        blur_aniso: Anisotropic blur, see above.
        noise: Noise, see above.
        jpeg: JPEG, see above.
        types: Degradation types to draw from with equal weight, e.g. `[bicubic, iso, aniso+noise]`. Without it there is
            one type with all the stages that are described.
        sampler: `uniform`, `ads` or `{type: power, gamma: γ}`, for every stage that names none.

    Raises:
        OptionError: A value is out of range, or a name or key unknown.
    """

    def __init__(
        self,
        scale: int,
        kernel_size: int = 21,
        border: str = "clamp",
        round_to_8bit: bool = True,
        blur_iso: Mapping[str, Any] | None = None,
        blur_aniso: Mapping[str, Any] | None = None,
        noise: Mapping[str, Any] | None = None,
        jpeg: Mapping[str, Any] | None = None,
        types: Sequence[str] | None = None,
        sampler: Block = "uniform",
    ) -> None:
        self.scale = integer(scale, "degradation.scale", 1)
        self.kernel_size: int = integer(kernel_size, "degradation.kernel_size", 1)
        if kernel_size % 2 == 0:
            raise OptionError(f"degradation.kernel_size: {kernel_size!r}, expected an odd number")
        if border not in BORDERS:
            raise unknown_name("degradation.border", border, BORDERS)
        self.border = border
        self.round_to_8bit = boolean(round_to_8bit, "degradation.round_to_8bit")
        build_sampler(sampler, "degradation.sampler")  # so that a mistake in it is not put down to the first stage
        blocks = dict(zip(STAGES, (blur_iso, blur_aniso, noise, jpeg), strict=True))
        stages = {name: build_stage(name, block, self.kernel_size, sampler) for name, block in blocks.items()}
        self.types = parse_types(types, stages)
        used = frozenset[str]().union(*self.types)
        self.stages = {name: stage for name, stage in stages.items() if stage is not None and name in used}

    @property
    def needs_calibration(self) -> bool:
        """Whether some stage's sampler has still to be calibrated."""
        return any(stage.sampler.needs_calibration for stage in self.stages.values())

    def smallest_side(self, params: Params | None = None) -> int:
        """Return the shortest side of images, in HR pixels: blur reflects the border within the kernel's radius."""
        blurs = bool({"iso", "aniso"} & self.stages.keys() if params is None else (params["lambda1"] > 0).any())
        return max(self.scale, self.kernel_size // 2 + 1 if blurs else 1)

    def sample(self, batch_size: int, generator: torch.Generator) -> Params:
        """Draw the parameters of `batch_size` degradations.

        Returns:
            Params: As `classical_params` makes them, and `type`, the index into `types`, int64, shape (B,).
        """
        kind = torch.randint(len(self.types), (batch_size,), generator=generator)
        drawn = {name: stage.sampler.draw(stage.ranges, batch_size, generator) for name, stage in self.stages.items()}
        seeds = torch.randint(_MAX_SEED, (batch_size,), generator=generator)
        params = classical_params(lambda1=[0.0] * batch_size)
        params["noise_seed"] = seeds
        for name, values in drawn.items():
            chosen = torch.tensor([name in stages for stages in self.types])[kind]
            for key, column in self._columns(name, values).items():
                params[key] = torch.where(chosen, column, params[key])
        return {"type": kind, **params}

    @staticmethod
    def _columns(name: str, values: Tensor) -> Params:
        """Sort a stage's drawn values, shape (B, parameters), under the names of `classical_params`."""
        if name == "iso":
            return {"lambda1": values[:, 0], "lambda2": values[:, 0]}
        if name == "aniso":
            return {"lambda1": values[:, 0], "lambda2": values[:, 1], "theta": values[:, 2]}
        if name == "noise":
            return {"noise_level": values[:, 0]}
        return {"jpeg_quality": values[:, 0]}

    def __call__(self, gt: Tensor, params: Params) -> Tensor:
        """Degrade images.

        Args:
            gt: RGB images in [0, 1], shape (B, …, 3, H, W), typically (B, V, 3, H, W) with V views of one degradation
                each; H and W multiples of the scale. Any device. Half precision is computed in float32.
            params: Parameters as `sample` or `classical_params` give them, for B samples, on the CPU.

        Returns:
            Tensor: LR images, shape (B, …, 3, H/s, W/s), dtype and device of `gt`.

        Raises:
            BSRError: Shapes do not fit, or a parameter is out of range.
        """
        self._check(gt, params)
        x = at_least_float32(gt)
        with torch.autocast(gt.device.type, enabled=False):
            return self._corrupt(self._blur_and_downsample(x, params), params).to(gt.dtype)

    def _corrupt(self, lq: Tensor, params: Params) -> Tensor:
        """Add what comes after downsampling: noise, JPEG, 8 bits."""
        lq = gaussian_noise(lq, params["noise_level"], params["noise_seed"])
        coded = params["jpeg_quality"] > 0
        if bool(coded.any()):
            chosen = coded.nonzero().flatten().to(lq.device)
            lq = lq.index_copy(0, chosen, jpeg_coding(lq[chosen], params["jpeg_quality"][coded]))
        if self.round_to_8bit:
            lq = (lq.clamp(0, 1) * GREY_LEVELS).round() / GREY_LEVELS
        return lq

    def kernels(self, params: Params) -> Tensor:
        """Return the blur kernels, shape (B, kernel_size, kernel_size), float32; a unit impulse where there is no blur.

        See `gaussian_kernels`.
        """
        profiles = gaussian_profiles(params["lambda1"], self.kernel_size)
        isotropic = profiles[:, :, None] * profiles[:, None, :]
        equal = (params["lambda1"] == params["lambda2"])[:, None, None]
        lambda1, lambda2 = (torch.where(params["lambda1"] > 0, params[name], 1.0) for name in ("lambda1", "lambda2"))
        any_shape = gaussian_kernels(lambda1, lambda2, params["theta"], self.kernel_size)
        return torch.where(equal, isotropic, any_shape).float()

    def clean(self, gt: Tensor) -> Tensor:
        """Return the clean LR images: bicubic downsampling alone (and 8 bits, if asked for)."""
        return self(gt, classical_params(lambda1=[0.0] * gt.shape[0]))

    def _blur_and_downsample(self, x: Tensor, params: Params) -> Tensor:
        """Take the cheapest exact way for each sample: unblurred, isotropic or any other."""
        widths = zip(params["lambda1"].tolist(), params["lambda2"].tolist(), strict=True)
        ways = [
            self._downsample if a == 0 else self._blur_separably if a == b else self._blur_freely for a, b in widths
        ]
        if len(set(ways)) == 1:  # all go one way: spare the copies
            return ways[0](x, params)
        lq = x.new_empty(*x.shape[:-2], x.shape[-2] // self.scale, x.shape[-1] // self.scale)
        for way in dict.fromkeys(ways):
            members = torch.tensor([index for index, other in enumerate(ways) if other == way])
            chosen = members.to(x.device)
            lq = lq.index_copy(0, chosen, way(x[chosen], {name: value[members] for name, value in params.items()}))
        return lq

    def _downsample(self, x: Tensor, params: Params) -> Tensor:  # noqa: ARG002 (called like its neighbours)
        return bicubic_resize(x, (x.shape[-2] // self.scale, x.shape[-1] // self.scale), self.border)

    def _blur_separably(self, x: Tensor, params: Params) -> Tensor:
        profiles = gaussian_profiles(params["lambda1"], self.kernel_size).to(x)
        return separable_blur_bicubic(x, profiles, self.scale, self.border)

    def _blur_freely(self, x: Tensor, params: Params) -> Tensor:
        kernels = gaussian_kernels(params["lambda1"], params["lambda2"], params["theta"], self.kernel_size).to(x)
        return blur_bicubic(x, kernels, self.scale, self.border)

    def _check(self, gt: Tensor, params: Params) -> None:
        self.check_images(gt)
        for name in _NAMES:
            if name not in params or len(params[name]) != gt.shape[0]:
                raise BSRError(f"degradation: the parameter {name} is missing or not given for {gt.shape[0]} samples")
        widths = zip(params["lambda1"].tolist(), params["lambda2"].tolist(), strict=True)
        if not all(a >= 0 and b >= 0 and (a == 0) == (b == 0) for a, b in widths):
            raise BSRError("degradation: expected widths λ1 and λ2 above 0, or both 0 for no blur")
        if not all(level >= 0 for level in params["noise_level"].tolist()):
            raise BSRError("degradation: expected noise levels of at least 0")
        if not all(quality == 0 or 1 <= quality <= 100 for quality in params["jpeg_quality"].tolist()):
            raise BSRError("degradation: expected JPEG qualities in [1, 100], or 0 for none")

    def measure(self, name: str, values: Tensor, images: Tensor) -> Tensor:
        """Measure the degraded distance D(θ) of a single stage.

        Args:
            name: The stage: `iso`, `aniso`, `noise` or `jpeg`.
            values: Parameters, shape (N, parameters of the stage); a row of two widths without an angle is averaged
                over angles of the stage's range.
            images: HR images in [0, 1], shape (M, 3, P, P), sides multiples of the scale.

        Returns:
            Tensor: Mean RMSE over the images between the degraded and the clean LR image, in grey levels, shape (N,).
        """
        if name == "aniso" and values.shape[1] == 2:
            low, high = self.stages["aniso"].ranges[2]
            steps = (torch.arange(_ANGLES, dtype=torch.float64) + 0.5) / _ANGLES
            turned = [
                torch.cat([values, torch.full_like(values[:, :1], angle)], 1) for angle in low + steps * (high - low)
            ]
            return torch.stack([self.measure(name, rows, images) for rows in turned]).mean(0)
        sharp = classical_params()
        self._check(images[None], sharp)
        downsampled = self._blur_and_downsample(images[None], sharp)
        clean = self._corrupt(downsampled, sharp)
        distances = []
        for row in values:
            params = {**sharp, **self._columns(name, row[None]), "noise_seed": torch.tensor([_MEASURING_SEED])}
            blurred = self._blur_and_downsample(images[None], params) if name in ("iso", "aniso") else downsampled
            distances.append(degraded_distance(self._corrupt(blurred, params), clean).mean())
        return torch.stack(distances)

    def calibrate(self, images: Tensor) -> None:
        """Fit every `ads` sampler that is not fitted yet to HR images, shape (N, 3, P, P) in [0, 1]."""
        with torch.no_grad():
            for name, stage in self.stages.items():
                if isinstance(stage.sampler, AdaptiveSampler) and stage.sampler.needs_calibration:
                    nodes = stage.sampler.nodes(stage.ranges[: stage.measured])
                    distances = self.measure(name, nodes, images)
                    grid = stage.sampler.grid_shape(stage.measured)
                    stage.sampler.fit(distances.view(grid), f"calibration of {name}")

    def calibration(self) -> dict[str, Any]:
        """Return what the `ads` samplers were fitted with: ranges, settings and distances per stage, JSON-ready."""
        return {
            name: {
                "ranges": [list(ends) for ends in stage.ranges[: stage.measured]],
                "settings": self._measuring_settings(name),
                "distances": stage.sampler.distances.tolist(),
            }
            for name, stage in self.stages.items()
            if isinstance(stage.sampler, AdaptiveSampler) and stage.sampler.distances is not None
        }

    def load_calibration(self, state: dict[str, Any]) -> None:
        """Fit the `ads` samplers with what `calibration` returned.

        Raises:
            BSRError: It is no mapping; a stage is missing in it, was calibrated for other ranges or under other
                settings, or does not fit the sampler's grid. What says nothing of settings is taken as it is.
        """
        if not isinstance(state, Mapping):
            raise BSRError(f"calibration: {state!r}, expected a block per stage")
        for name, stage in self.stages.items():
            if isinstance(stage.sampler, AdaptiveSampler):
                where = f"calibration of {name}"
                ranges = [list(ends) for ends in stage.ranges[: stage.measured]]
                saved = state.get(name, {})
                if not isinstance(saved, Mapping) or saved.get("ranges") != ranges:
                    found = saved.get("ranges") if isinstance(saved, Mapping) else saved
                    raise BSRError(f"{where}: found the ranges {found}, expected {ranges}")
                self._check_settings(saved.get("settings", {}), name, where)
                stage.sampler.fit(_distances(saved.get("distances", []), where), where)

    def _measuring_settings(self, name: str) -> dict[str, Any]:
        """Return what a stage's distances depend on besides its ranges, JSON-ready."""
        settings: dict[str, Any] = {"scale": self.scale, "border": self.border, "round_to_8bit": self.round_to_8bit}
        if name in ("iso", "aniso"):
            settings["kernel_size"] = self.kernel_size
        if name == "aniso":
            settings["theta"] = list(self.stages[name].ranges[2])
        return settings

    def _check_settings(self, saved: object, name: str, where: str) -> None:
        if not isinstance(saved, Mapping):
            raise BSRError(f"{where}: found the settings {saved!r}, expected a block")
        for key, value in self._measuring_settings(name).items():
            if key in saved and saved[key] != value:
                raise BSRError(f"{where}: measured with {key} {saved[key]!r}, expected {value!r}")


def _distances(saved: object, where: str) -> Tensor:
    """Read saved distances."""
    try:
        return torch.tensor(saved, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BSRError(f"{where}: found distances that are no numbers, expected a grid of numbers") from error
