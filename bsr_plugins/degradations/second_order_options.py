"""The second-order pipeline's ranges and probabilities as option blocks, with those of its released training.

Source: the supplement of Simple-Align takes the settings of Real-ESRGAN (Wang et al., ICCVW 2021) over; the numbers are
those of its training of ×4 networks. What it fixes in code and not in options (kernel sizes, angles, the three ways of
resizing, the even odds of the two orders at the end) has the code's value here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from bsr_plugins.blocks import call_with, integer, interval, number
from bsr_plugins.errors import OptionError, unknown_key, unknown_name

Range = tuple[float, float]
Sizes = tuple[int, int]
Weights = tuple[float, ...]
T = TypeVar("T")

FAMILIES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
DIRECTIONS = ("up", "down", "keep")
MODES = ("area", "bilinear", "bicubic")

_MAX_DEGREES = 360.0
_MAX_EXPONENT = 100.0
_MAX_RESIZE = 8.0
_MAX_NOISE = 255.0
_MAX_POISSON = 100.0
_QUALITIES = (1.0, 100.0)
_ROUNDING = 1e-6  # by which written probabilities may miss 1

FIRST: dict[str, dict[str, Any]] = {
    "blur": {"prob": 1.0, "sigma": (0.2, 3.0)},
    "resize": {"prob": {"up": 0.2, "down": 0.7, "keep": 0.1}, "scale": (0.15, 1.5)},
    "noise": {"gaussian": (1.0, 30.0), "poisson": (0.05, 3.0)},
    "jpeg": {"quality": (30.0, 95.0)},
}
"""The first round's released ranges, where the rounds differ."""

SECOND: dict[str, dict[str, Any]] = {
    "blur": {"prob": 0.8, "sigma": (0.2, 1.5)},
    "resize": {"prob": {"up": 0.3, "down": 0.4, "keep": 0.3}, "scale": (0.3, 1.2)},
    "noise": {"gaussian": (1.0, 25.0), "poisson": (0.05, 2.5)},
    "jpeg": {"quality": (30.0, 95.0)},
}
"""The second round's."""

_FAMILY_PROBS = dict(zip(FAMILIES, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True))


@dataclass(frozen=True)
class BlurOptions:
    """A round's blur.

    Attributes:
        prob: Probability that the round blurs.
        sigma: Widths (standard deviations) in pixels.
        sinc_prob: Probability of a sinc kernel instead of one of the families.
        families: Probability of each of `FAMILIES`.
        theta: Angles in radians.
        betag: Exponents of the generalised Gaussian kernels.
        betap: Exponents of the plateau kernels.
        kernel_size: Fewest and most taps, both odd.
    """

    prob: float
    sigma: Range
    sinc_prob: float
    families: Weights
    theta: Range
    betag: Range
    betap: Range
    kernel_size: Sizes


@dataclass(frozen=True)
class ResizeOptions:
    """A round's resize.

    Attributes:
        prob: Probability of each of `DIRECTIONS`.
        scale: Least and greatest factor, with 1 between them.
        modes: Ways of resizing, indices into `MODES`, equally likely.
    """

    prob: Weights
    scale: Range
    modes: tuple[int, ...]

    @property
    def lowest(self) -> float:
        """The smallest factor that can be drawn."""
        return self.scale[0] if self.prob[DIRECTIONS.index("down")] > 0 else 1.0


@dataclass(frozen=True)
class NoiseOptions:
    """A round's noise.

    Attributes:
        gaussian: Levels of Gaussian noise on the 0–255 scale.
        poisson: Strengths of Poisson noise, 1 being the photon noise itself.
        gaussian_prob: Probability of Gaussian noise; else it is Poisson noise.
        grey_prob: Probability of noise that is equal in all colours.
    """

    gaussian: Range
    poisson: Range
    gaussian_prob: float
    grey_prob: float


@dataclass(frozen=True)
class RoundOptions:
    """A round: blur, resize, noise and JPEG.

    Attributes:
        blur: Its blur.
        resize: Its resize.
        noise: Its noise.
        quality: Its JPEG qualities.
    """

    blur: BlurOptions
    resize: ResizeOptions
    noise: NoiseOptions
    quality: Range


@dataclass(frozen=True)
class FinalOptions:
    """What brings an image to its LR size.

    Attributes:
        sinc_prob: Probability of a sinc filter after the resize.
        kernel_size: Fewest and most taps of it, both odd.
        modes: Ways of resizing, indices into `MODES`, equally likely.
        jpeg_last_prob: Probability that the second round's JPEG comes after the resize and the sinc filter, instead of
            before them.
    """

    sinc_prob: float
    kernel_size: Sizes
    modes: tuple[int, ...]
    jpeg_last_prob: float


def parse_round(block: Mapping[str, Any] | None, defaults: Mapping[str, Mapping[str, Any]], where: str) -> RoundOptions:
    """Read a round's block; what it leaves out is as in `defaults`, i.e. `FIRST` or `SECOND`.

    Raises:
        OptionError: A key is unknown, or a value cannot be used.
    """
    return _parse(partial(_round, where, defaults), block, {}, where)


def parse_final(block: Mapping[str, Any] | None, where: str) -> FinalOptions:
    """Read the block of the last steps.

    Raises:
        OptionError: A key is unknown, or a value cannot be used.
    """
    return _parse(partial(_final, where), block, {}, where)


def _parse(build: Callable[..., T], block: object, defaults: Mapping[str, Any], where: str) -> T:
    if block is None:
        block = {}
    if not isinstance(block, Mapping):
        raise OptionError(f"{where}: {block!r}, expected a block of keys and values")
    return call_with(build, {**defaults, **block}, where)


def _round(
    where: str,
    defaults: Mapping[str, Mapping[str, Any]],
    blur: Any = None,
    resize: Any = None,
    noise: Any = None,
    jpeg: Any = None,
) -> RoundOptions:
    return RoundOptions(
        _parse(partial(_blur, f"{where}.blur"), blur, defaults["blur"], f"{where}.blur"),
        _parse(partial(_resize, f"{where}.resize"), resize, defaults["resize"], f"{where}.resize"),
        _parse(partial(_noise, f"{where}.noise"), noise, defaults["noise"], f"{where}.noise"),
        _parse(partial(_jpeg, f"{where}.jpeg"), jpeg, defaults["jpeg"], f"{where}.jpeg"),
    )


def _blur(
    where: str,
    prob: Any,
    sigma: Any,
    sinc_prob: Any = 0.1,
    families: Any = _FAMILY_PROBS,
    theta: Any = (-180.0, 180.0),
    betag: Any = (0.5, 4.0),
    betap: Any = (1.0, 2.0),
    kernel_size: Any = (7, 21),
) -> BlurOptions:
    sizes = _odd(kernel_size, f"{where}.kernel_size")
    low, high = interval(theta, f"{where}.theta", -_MAX_DEGREES, _MAX_DEGREES)
    return BlurOptions(
        prob=number(prob, f"{where}.prob", 0, 1),
        sigma=_above_zero(sigma, f"{where}.sigma", sizes[1] / 2),
        sinc_prob=number(sinc_prob, f"{where}.sinc_prob", 0, 1),
        families=_weights(families, FAMILIES, f"{where}.families"),
        theta=(math.radians(low), math.radians(high)),
        betag=_above_zero(betag, f"{where}.betag", _MAX_EXPONENT),
        betap=_above_zero(betap, f"{where}.betap", _MAX_EXPONENT),
        kernel_size=sizes,
    )


def _resize(where: str, prob: Any, scale: Any, modes: Any = MODES) -> ResizeOptions:
    low, high = _above_zero(scale, f"{where}.scale", _MAX_RESIZE)
    if not low <= 1 <= high:
        raise OptionError(f"{where}.scale: {scale!r}, expected a pair [low, high] with low ≤ 1 ≤ high")
    return ResizeOptions(_weights(prob, DIRECTIONS, f"{where}.prob"), (low, high), _modes(modes, f"{where}.modes"))


def _noise(where: str, gaussian: Any, poisson: Any, gaussian_prob: Any = 0.5, grey_prob: Any = 0.4) -> NoiseOptions:
    return NoiseOptions(
        gaussian=interval(gaussian, f"{where}.gaussian", 0, _MAX_NOISE),
        poisson=interval(poisson, f"{where}.poisson", 0, _MAX_POISSON),
        gaussian_prob=number(gaussian_prob, f"{where}.gaussian_prob", 0, 1),
        grey_prob=number(grey_prob, f"{where}.grey_prob", 0, 1),
    )


def _jpeg(where: str, quality: Any) -> Range:
    return interval(quality, f"{where}.quality", *_QUALITIES)


def _final(
    where: str, sinc_prob: Any = 0.8, kernel_size: Any = (7, 21), modes: Any = MODES, jpeg_last_prob: Any = 0.5
) -> FinalOptions:
    return FinalOptions(
        sinc_prob=number(sinc_prob, f"{where}.sinc_prob", 0, 1),
        kernel_size=_odd(kernel_size, f"{where}.kernel_size"),
        modes=_modes(modes, f"{where}.modes"),
        jpeg_last_prob=number(jpeg_last_prob, f"{where}.jpeg_last_prob", 0, 1),
    )


def _above_zero(value: object, where: str, high: float) -> Range:
    pair = interval(value, where, 0, high)
    if pair[0] == 0:
        raise OptionError(f"{where}: {value!r}, expected numbers above 0")
    return pair


def _odd(value: object, where: str) -> Sizes:
    ends = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(ends) != 2:
        raise OptionError(f"{where}: {value!r}, expected an odd number or a pair [low, high] of them")
    low, high = (integer(end, where, 1) for end in ends)
    if low > high or low % 2 == 0 or high % 2 == 0:
        raise OptionError(f"{where}: {value!r}, expected odd numbers, the lower end first")
    return low, high


def _weights(block: object, names: Sequence[str], where: str) -> Weights:
    """Read a probability per name; names that are left out have none."""
    if not isinstance(block, Mapping):
        raise OptionError(f"{where}: {block!r}, expected a block with a probability for each of {', '.join(names)}")
    for name in block:
        if name not in names:
            raise unknown_key(f"{where}.{name}", names)
    weights = tuple(number(block.get(name, 0.0), f"{where}.{name}", 0, 1) for name in names)
    if abs(sum(weights) - 1) > _ROUNDING:
        raise OptionError(f"{where}: the probabilities sum to {sum(weights):g}, expected 1")
    return weights


def _modes(value: object, where: str) -> tuple[int, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise OptionError(f"{where}: {value!r}, expected a list of some of {', '.join(MODES)}")
    for name in names:
        if name not in MODES:
            raise unknown_name(where, name, MODES)
    if len(set(names)) < len(names):
        raise OptionError(f"{where}: {value!r}, expected each name once")
    return tuple(MODES.index(name) for name in names)
