"""The second-order pipeline's blocks of options, with the values of its released training, and what is drawn from them.

Source: the supplement of Simple-Align takes the settings of Real-ESRGAN (Wang et al., ICCVW 2021) over; the numbers are
those of its training of ×4 networks. What it fixes in code and not in options (kernel sizes, angles, the three ways of
resizing, the even odds of the two orders at the end) has the code's value here.

A round's factor and mode of resizing, whether it blurs, the kind of its noise, the order of the last steps and the mode
of their resize are drawn once for a batch there (`shared`), everything else for every image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor

from bsr_plugins.degradations.base import MAX_SEED, Params
from bsr_plugins.errors import OptionError, did_you_mean
from bsr_plugins.options.declared import OptionBlock, read_block

MODES = ("area", "bilinear", "bicubic")
Range = tuple[float, float]


def _pair(fits: Callable[[Any], bool], what: str) -> BeforeValidator:
    """Read a value that fits, or a pair of them, the lower end first."""

    def read(value: Any) -> Any:
        ends = tuple(value) if isinstance(value, list | tuple) else (value, value)
        if len(ends) != 2 or not all(map(fits, ends)) or ends[0] > ends[1]:
            raise ValueError(f"expected {what}, or a pair of them, the lower end first")
        return ends

    return BeforeValidator(read)


def _within(low: float, high: float, above: bool = False) -> BeforeValidator:
    """Read a number or a pair of them in [low, high], or in (low, high] if above."""

    def fits(end: Any) -> bool:
        number = isinstance(end, int | float) and not isinstance(end, bool)
        return number and low <= end <= high and not (above and end == low)

    bounds = f"in {'(' if above else '['}{low:g}, {high:g}]" if high < math.inf else f"above {low:g}"
    return _pair(fits, f"a number {bounds}")


def _read_modes(value: Any) -> Any:
    modes = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    unknown = [mode for mode in modes if mode not in MODES]
    if not modes or unknown or len({*modes}) < len(modes):
        nearest = did_you_mean(unknown[0], MODES) if unknown else ""
        raise ValueError(f"expected a list of some of {', '.join(MODES)}, each once{nearest}")
    return modes


def _around_one(scale: Range) -> Range:
    if not scale[0] <= 1 <= scale[1]:
        raise ValueError("expected a pair [low, high] with low ≤ 1 ≤ high")
    return scale


Prob = Annotated[float, Field(ge=0, le=1)]
OddSizes = Annotated[tuple[int, int], _pair(lambda end: type(end) is int and end > 0 and end % 2 == 1, "an odd number")]
Widths = Annotated[Range, _within(0, math.inf, above=True)]
Exponents = Annotated[Range, _within(0, 100, above=True)]
Modes = Annotated[tuple[str, ...], BeforeValidator(_read_modes)]


@dataclass(frozen=True)
class Draws:
    """Draws columns of parameters, shape (batch,), float64 or, where they count, int64."""

    batch: int
    per_sample: bool  # whether what `shared=True` asks for is drawn for every sample, too, instead of once
    generator: torch.Generator  # of the CPU

    def units(self, shared: bool = False) -> Tensor:
        """Draw from U[0, 1)."""
        count = 1 if shared and not self.per_sample else self.batch
        return torch.rand(count, generator=self.generator, dtype=torch.float64).expand(self.batch).clone()

    def uniform(self, low: float | Tensor, high: float) -> Tensor:
        return low + (high - low) * self.units()

    def chance(self, prob: float, shared: bool = False) -> Tensor:
        return self.units(shared) < prob

    def choice(self, weights: Sequence[float], shared: bool = False) -> Tensor:
        """Draw indices with the given probabilities."""
        cumulative = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        return torch.searchsorted(cumulative / cumulative[-1], self.units(shared), right=True)

    def odd(self, sizes: tuple[int, int]) -> Tensor:
        return sizes[0] + 2 * self.choice([1.0] * ((sizes[1] - sizes[0]) // 2 + 1))

    def mode(self, modes: Sequence[str]) -> Tensor:
        """Draw indices into `MODES`."""
        return torch.tensor([MODES.index(mode) for mode in modes])[self.choice([1.0] * len(modes), shared=True)]

    def exponents(self, low: float, high: float) -> Tensor:
        """Draw as many below 1, the Gaussian's, as above it; a range on one side of 1 is drawn from evenly."""
        even, half, below = self.uniform(low, high), self.units(), self.chance(0.5)
        return torch.where(below, low + (1 - low) * half, 1 + (high - 1) * half) if low <= 1 <= high else even


class Probabilities(OptionBlock):
    """Probabilities that sum to 1."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Probabilities:
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError("expected probabilities that sum to 1")
        return self

    @property
    def weights(self) -> tuple[float, ...]:
        """The probabilities in the order of the fields."""
        return tuple(self.model_dump().values())


class Families(Probabilities):
    """The families of kernels that are not sinc kernels."""

    iso: Prob = Field(0.0, description="isotropic Gaussian")
    aniso: Prob = Field(0.0, description="anisotropic Gaussian")
    generalized_iso: Prob = Field(0.0, description="isotropic generalised Gaussian")
    generalized_aniso: Prob = Field(0.0, description="anisotropic generalised Gaussian")
    plateau_iso: Prob = Field(0.0, description="isotropic plateau")
    plateau_aniso: Prob = Field(0.0, description="anisotropic plateau")


class Directions(Probabilities):
    """The directions of a resize."""

    up: Prob = Field(0.0, description="the factor is drawn from 1 to the scale's upper end")
    down: Prob = Field(0.0, description="the factor is drawn from the scale's lower end to 1")
    keep: Prob = Field(0.0, description="the factor is 1")


FAMILIES, DIRECTIONS = tuple(Families.model_fields), tuple(Directions.model_fields)
KERNELS = ("none", *FAMILIES, "sinc")
"""What a parameter `…_kernel` counts."""

NONE, GAUSSIAN, PLATEAU, SINC = 0, (1, 2, 3, 4), (5, 6), 7
_GENERALIZED, _ANISOTROPIC = (3, 4), (2, 4, 6)
_FAMILIES = Families(**dict(zip(FAMILIES, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True)))


class BlurOptions(OptionBlock):
    """A round's blur."""

    prob: Prob = Field(description="that the round blurs")
    sigma: Widths = Field(description="standard deviations in pixels, up to half the most taps, both drawn for aniso")
    sinc_prob: Prob = Field(0.1, description="of a sinc kernel (cut-off from π/3, from 13 taps on π/5, to π)")
    families: Families = Field(_FAMILIES, description="of each family otherwise; those left out have 0")
    theta: Annotated[Range, _within(-360, 360)] = Field((-180.0, 180.0), description="angles in degrees")
    betag: Exponents = Field((0.5, 4.0), description="exponents of generalised Gaussians; half are drawn below 1")
    betap: Exponents = Field((1.0, 2.0), description="exponents of plateaus, drawn likewise: by default half are 1")
    kernel_size: OddSizes = Field((7, 21), description="fewest and most taps, odd")

    @model_validator(mode="after")
    def _sigma_fits(self) -> BlurOptions:
        if self.sigma[1] > (limit := self.kernel_size[1] / 2):
            raise OptionError(f"sigma: {list(self.sigma)!r}, expected at most {limit:g}, half of kernel_size")
        return self

    def draw(self, draws: Draws) -> Params:
        taps = draws.odd(self.kernel_size)
        family = draws.choice(self.families.weights) + 1
        kernel = torch.where(draws.chance(self.sinc_prob), SINC, family)
        kernel = kernel.where(draws.chance(self.prob, shared=True), NONE)
        shaped, turned = is_among(kernel, GAUSSIAN + PLATEAU), is_among(kernel, _ANISOTROPIC)
        lambda1, lambda2 = draws.uniform(*self.sigma), draws.uniform(*self.sigma)
        betag, betap = draws.exponents(*self.betag), draws.exponents(*self.betap)
        beta = betag.where(is_among(kernel, _GENERALIZED), betap.where(is_among(kernel, PLATEAU), 1.0))
        theta = draws.uniform(math.radians(self.theta[0]), math.radians(self.theta[1]))
        lowest = torch.where(taps < 13, math.pi / 3, math.pi / 5)  # large kernels can hold lower frequencies
        return {
            "kernel": kernel,
            "taps": taps.where(kernel != NONE, 0),
            "lambda1": lambda1.where(shaped, 0.0),
            "lambda2": lambda2.where(turned, lambda1).where(shaped, 0.0),
            "theta": theta.where(turned, 0.0),
            "beta": beta.where(shaped, 0.0),
            "cutoff": draws.uniform(lowest, math.pi).where(kernel == SINC, 0.0),
        }


class ResizeOptions(OptionBlock):
    """A round's resize."""

    prob: Directions = Field(description="of each direction")
    scale: Annotated[Range, _within(0, 8, above=True), AfterValidator(_around_one)] = Field(
        description="least and greatest factor, in the second round relative to the LR size, with 1 between them"
    )
    modes: Modes = Field(MODES, description="ways of `interpolate`, not antialiased, equally likely")

    @property
    def lowest(self) -> float:
        """The smallest factor that can be drawn."""
        return self.scale[0] if self.prob.down > 0 else 1.0

    def draw(self, draws: Draws) -> Params:
        low, high = self.scale
        direction, part = draws.choice(self.prob.weights, shared=True), draws.units(shared=True)
        up, down = 1 + (high - 1) * part, low + (1 - low) * part
        scale = up.where(direction == DIRECTIONS.index("up"), down.where(direction == DIRECTIONS.index("down"), 1.0))
        return {"resize": scale, "mode": draws.mode(self.modes)}


class NoiseOptions(OptionBlock):
    """A round's noise, Gaussian or Poisson."""

    gaussian: Annotated[Range, _within(0, 255)] = Field(description="levels on the 0–255 scale")
    poisson: Annotated[Range, _within(0, 100)] = Field(description="strengths, 1 being photon noise")
    gaussian_prob: Prob = Field(0.5, description="of Gaussian noise; else it is Poisson noise")
    grey_prob: Prob = Field(0.4, description="of noise that all colours share")

    def draw(self, draws: Draws) -> Params:
        gaussian = draws.chance(self.gaussian_prob, shared=True)
        return {
            "gaussian": draws.uniform(*self.gaussian).where(gaussian, 0.0),
            "poisson": draws.uniform(*self.poisson).where(~gaussian, 0.0),
            "grey": draws.chance(self.grey_prob),
            "noise_seed": torch.randint(MAX_SEED, (draws.batch,), generator=draws.generator),
        }


class JPEGOptions(OptionBlock):
    """A round's JPEG."""

    quality: Annotated[Range, _within(1, 100)] = Field(default=(30.0, 95.0), description="any numbers, whole or not")


class RoundOptions(OptionBlock):
    """A round; what its blocks leave out is as in the released training."""

    blur: BlurOptions = Field(description="the blur")
    resize: ResizeOptions = Field(description="the resize")
    noise: NoiseOptions = Field(description="the noise")
    jpeg: JPEGOptions = Field(JPEGOptions(), description="the JPEG")

    def draw(self, name: str, draws: Draws) -> Params:
        """Draw a round's parameters, under names that begin with the round's."""
        columns = self.blur.draw(draws) | self.resize.draw(draws) | self.noise.draw(draws)
        columns["quality"] = draws.uniform(*self.jpeg.quality)
        return {f"{name}_{key}": column for key, column in columns.items()}


class FinalOptions(OptionBlock):
    """What brings an image to its LR size."""

    sinc_prob: Prob = Field(0.8, description="of a sinc filter after the resize (cut-off from π/3 to π)")
    kernel_size: OddSizes = Field((7, 21), description="fewest and most taps of it, odd")
    modes: Modes = Field(MODES, description="ways of `interpolate` to the LR size, equally likely")
    jpeg_last_prob: Prob = Field(0.5, description="that the second round's JPEG comes after these, and not before")

    def draw(self, draws: Draws) -> Params:
        """Draw the parameters of the last steps, under names that begin with `final_`."""
        filtered, taps = draws.chance(self.sinc_prob), draws.odd(self.kernel_size)
        cutoff = draws.uniform(math.pi / 3, math.pi)
        return {
            "final_kernel": torch.where(filtered, SINC, NONE),
            "final_taps": taps.where(filtered, 0),
            "final_cutoff": cutoff.where(filtered, 0.0),
            "final_mode": draws.mode(self.modes),
            "final_jpeg_last": draws.chance(self.jpeg_last_prob, shared=True),
        }


def is_among(kinds: Tensor, some: Sequence[int]) -> Tensor:
    return torch.isin(kinds, torch.tensor(some))


_ROUNDS: dict[str, dict[str, dict[str, Any]]] = {
    "first": {
        "blur": {"prob": 1.0, "sigma": (0.2, 3.0)},
        "resize": {"prob": {"up": 0.2, "down": 0.7, "keep": 0.1}, "scale": (0.15, 1.5)},
        "noise": {"gaussian": (1.0, 30.0), "poisson": (0.05, 3.0)},
    },
    "second": {
        "blur": {"prob": 0.8, "sigma": (0.2, 1.5)},
        "resize": {"prob": {"up": 0.3, "down": 0.4, "keep": 0.3}, "scale": (0.3, 1.2)},
        "noise": {"gaussian": (1.0, 25.0), "poisson": (0.05, 2.5)},
    },
}


def read_round(name: str, block: Mapping[str, Any] | None) -> RoundOptions:
    """Read the block of the `first` or `second` round; what it leaves out is as in the released training."""
    whole: Any = {} if block is None else block
    if isinstance(whole, Mapping):
        whole = {key: part for key, part in whole.items() if part is not None}
        for key, defaults in _ROUNDS[name].items():
            part = whole.get(key, {})
            whole[key] = {**defaults, **part} if isinstance(part, Mapping) else part
    return read_block(RoundOptions, whole, name)
