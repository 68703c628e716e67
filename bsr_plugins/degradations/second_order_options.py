"""The second-order pipeline's ranges and probabilities as blocks of options, with those of its released training.

Source: the supplement of Simple-Align takes the settings of Real-ESRGAN (Wang et al., ICCVW 2021) over; the numbers are
those of its training of ×4 networks. What it fixes in code and not in options (kernel sizes, angles, the three ways of
resizing, the even odds of the two orders at the end) has the code's value here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bsr_plugins.errors import OptionError, did_you_mean
from bsr_plugins.options.declared import OptionBlock, read_block

Range = tuple[float, float]
Sizes = tuple[int, int]
Mode = Literal["area", "bilinear", "bicubic"]
MODES: tuple[Mode, ...] = get_args(Mode)

_ROUNDING = 1e-6  # by which written probabilities may miss 1


def _within(low: float, high: float, above: bool = False) -> BeforeValidator:
    """Read a number or a pair of them, the lower end first, in [low, high], or in (low, high] if above."""

    def read(value: Any) -> Any:
        ends = tuple(value) if isinstance(value, list | tuple) else (value, value)
        numbers = len(ends) == 2 and all(isinstance(e, int | float) and not isinstance(e, bool) for e in ends)
        if not numbers or not low <= ends[0] <= ends[1] <= high or (above and ends[0] == low):
            bounds = f"in {'(' if above else '['}{low:g}, {high:g}]" if high < math.inf else f"above {low:g}"
            raise ValueError(f"expected a number {bounds}, or a pair of them, the lower end first")
        return ends

    return BeforeValidator(read)


def _read_sizes(value: Any) -> Any:
    ends = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(ends) != 2 or not all(type(end) is int and end % 2 for end in ends) or not 1 <= ends[0] <= ends[1]:
        raise ValueError("expected an odd number, or a pair of them, the lower end first")
    return ends


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
OddSizes = Annotated[Sizes, BeforeValidator(_read_sizes)]
Modes = Annotated[tuple[Mode, ...], BeforeValidator(_read_modes)]


class Probabilities(OptionBlock):
    """Probabilities that sum to 1."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Probabilities:
        if abs(sum(self.weights) - 1) > _ROUNDING:
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
_FAMILIES = Families(**dict(zip(FAMILIES, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True)))


class BlurOptions(OptionBlock):
    """A round's blur."""

    prob: Prob = Field(description="that the round blurs; by default 1, in the second round 0.8")
    sigma: Annotated[Range, _within(0, math.inf, above=True)] = Field(
        description="widths (standard deviations) in pixels, up to half the most taps, both drawn for anisotropic "
        "kernels; by default [0.2, 3], in the second round [0.2, 1.5]"
    )
    sinc_prob: Prob = Field(0.1, description="of a sinc kernel (cut-off from π/3, from 13 taps on π/5, to π)")
    families: Families = Field(_FAMILIES, description="of each family otherwise; those left out have 0")
    theta: Annotated[Range, _within(-360, 360)] = Field((-180.0, 180.0), description="angles in degrees")
    betag: Annotated[Range, _within(0, 100, above=True)] = Field(
        (0.5, 4.0), description="exponents of generalised Gaussians; around 1 half are drawn below it and half above"
    )
    betap: Annotated[Range, _within(0, 100, above=True)] = Field(
        (1.0, 2.0), description="exponents of plateaus, drawn likewise: of the default range half are 1"
    )
    kernel_size: OddSizes = Field((7, 21), description="fewest and most taps, odd")

    @model_validator(mode="after")
    def _sigma_fits(self) -> BlurOptions:
        if self.sigma[1] > self.kernel_size[1] / 2:
            limit = self.kernel_size[1] / 2
            raise OptionError(f"sigma: {list(self.sigma)!r}, expected at most {limit:g}, half of kernel_size")
        return self


class ResizeOptions(OptionBlock):
    """A round's resize."""

    prob: Directions = Field(
        description="of each direction; by default 0.2, 0.7, 0.1, in the second round 0.3, 0.4, 0.3"
    )
    scale: Annotated[Range, _within(0, 8, above=True), AfterValidator(_around_one)] = Field(
        description="least and greatest factor, in the second round relative to the LR size, with 1 between them; "
        "by default [0.15, 1.5], in the second round [0.3, 1.2]"
    )
    modes: Modes = Field(MODES, description="ways of `interpolate`, not antialiased, equally likely")

    @property
    def lowest(self) -> float:
        """The smallest factor that can be drawn."""
        return self.scale[0] if self.prob.down > 0 else 1.0


class NoiseOptions(OptionBlock):
    """A round's noise, Gaussian or Poisson."""

    gaussian: Annotated[Range, _within(0, 255)] = Field(
        description="levels on the 0–255 scale; by default [1, 30], in the second round [1, 25]"
    )
    poisson: Annotated[Range, _within(0, 100)] = Field(
        description="strengths, 1 being photon noise; by default [0.05, 3], in the second round [0.05, 2.5]"
    )
    gaussian_prob: Prob = Field(0.5, description="of Gaussian noise; else it is Poisson noise")
    grey_prob: Prob = Field(0.4, description="of noise that all colours share")


class JPEGOptions(OptionBlock):
    """A round's JPEG."""

    quality: Annotated[Range, _within(1, 100)] = Field((30.0, 95.0), description="any numbers, not whole ones alone")


class RoundOptions(OptionBlock):
    """A round; what its blocks leave out is as in the released training."""

    blur: BlurOptions = Field(description="the blur")
    resize: ResizeOptions = Field(description="the resize")
    noise: NoiseOptions = Field(description="the noise")
    jpeg: JPEGOptions = Field(description="the JPEG")


class FinalOptions(OptionBlock):
    """What brings an image to its LR size."""

    sinc_prob: Prob = Field(0.8, description="of a sinc filter after the resize (cut-off from π/3 to π)")
    kernel_size: OddSizes = Field((7, 21), description="fewest and most taps of it, odd")
    modes: Modes = Field(MODES, description="ways of `interpolate` to the LR size, equally likely")
    jpeg_last_prob: Prob = Field(0.5, description="that the second round's JPEG comes after these, and not before")


_ROUNDS: dict[str, dict[str, dict[str, Any]]] = {
    "first": {
        "blur": {"prob": 1.0, "sigma": (0.2, 3.0)},
        "resize": {"prob": {"up": 0.2, "down": 0.7, "keep": 0.1}, "scale": (0.15, 1.5)},
        "noise": {"gaussian": (1.0, 30.0), "poisson": (0.05, 3.0)},
        "jpeg": {},
    },
    "second": {
        "blur": {"prob": 0.8, "sigma": (0.2, 1.5)},
        "resize": {"prob": {"up": 0.3, "down": 0.4, "keep": 0.3}, "scale": (0.3, 1.2)},
        "noise": {"gaussian": (1.0, 25.0), "poisson": (0.05, 2.5)},
        "jpeg": {},
    },
}


def read_round(name: str, block: Mapping[str, Any] | None) -> RoundOptions:
    """Read the block of the `first` or `second` round; what it leaves out is as in the released training.

    Raises:
        OptionError: A key is unknown, or a value cannot be used.
    """
    whole: Any = {} if block is None else block
    if isinstance(whole, Mapping):
        defaults, given = _ROUNDS[name], {key: value for key, value in whole.items() if value is not None}
        merged = {k: {**defaults.get(k, {}), **v} if isinstance(v, Mapping) else v for k, v in given.items()}
        whole = {**defaults, **merged}
    return read_block(RoundOptions, whole, name)
