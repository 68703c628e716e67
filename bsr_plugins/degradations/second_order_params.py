"""How the parameters of the second-order pipeline are drawn, after the released code of Real-ESRGAN.

A round's factor and mode of resizing, whether it blurs, the kind of its noise, the order of the last steps and the mode
of their resize are drawn once for a batch there, everything else for every image. `per_sample` draws these for every
image, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bsr_plugins.degradations.params import MAX_SEED, Params, check_quality, require
from bsr_plugins.degradations.second_order_options import (
    DIRECTIONS,
    FAMILIES,
    MODES,
    BlurOptions,
    FinalOptions,
    NoiseOptions,
    Range,
    ResizeOptions,
    RoundOptions,
    Sizes,
)

KERNELS = ("none", *FAMILIES, "sinc")
"""What a parameter `…_kernel` counts."""

NONE, SINC = KERNELS.index("none"), KERNELS.index("sinc")
GAUSSIAN = tuple(KERNELS.index(name) for name in ("iso", "aniso", "generalized_iso", "generalized_aniso"))
PLATEAU = tuple(KERNELS.index(name) for name in ("plateau_iso", "plateau_aniso"))
_GENERALIZED = tuple(KERNELS.index(name) for name in ("generalized_iso", "generalized_aniso"))
_ANISOTROPIC = tuple(KERNELS.index(name) for name in ("aniso", "generalized_aniso", "plateau_aniso"))

_LARGE_TAPS = 13  # sinc kernels with at least so many taps can hold lower frequencies
_LOWEST, _LOWEST_OF_LARGE = math.pi / 3, math.pi / 5  # cut-off
_GAUSSIAN_BETA = 1.0


@dataclass(frozen=True)
class Draws:
    """Draws columns of parameters, shape (batch,)."""

    batch: int
    per_sample: bool  # whether what `shared=True` asks for is drawn for every sample, too, instead of once
    generator: torch.Generator  # of the CPU

    def units(self, shared: bool = False) -> Tensor:
        """Draw from U[0, 1), float64."""
        count = 1 if shared and not self.per_sample else self.batch
        return torch.rand(count, generator=self.generator, dtype=torch.float64).expand(self.batch).clone()

    def uniform(self, low: float | Tensor, high: float | Tensor, shared: bool = False) -> Tensor:
        """Draw from U[low, high)."""
        return low + (high - low) * self.units(shared)

    def chance(self, prob: float, shared: bool = False) -> Tensor:
        """Draw what is true with a probability."""
        return self.units(shared) < prob

    def choice(self, weights: Sequence[float], shared: bool = False) -> Tensor:
        """Draw indices with the given probabilities, int64."""
        cumulative = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        return torch.searchsorted(cumulative / cumulative[-1], self.units(shared), right=True)

    def one_of(self, values: Sequence[int], shared: bool = False) -> Tensor:
        """Draw out of equally likely values, int64."""
        return torch.tensor(values)[self.choice([1.0] * len(values), shared)]

    def odd(self, sizes: Sizes) -> Tensor:
        """Draw odd numbers between two of them, int64."""
        return self.one_of(range(sizes[0], sizes[1] + 1, 2))

    def mode(self, names: Sequence[str]) -> Tensor:
        """Draw the numbers of ways of resizing, int64."""
        return self.one_of([MODES.index(name) for name in names], shared=True)

    def seeds(self) -> Tensor:
        """Draw seeds in [0, 2^63), int64."""
        return torch.randint(MAX_SEED, (self.batch,), generator=self.generator)


def draw_round(name: str, options: RoundOptions, draws: Draws) -> Params:
    """Draw a round's parameters, under names that begin with the round's."""
    columns = {
        **_draw_blur(options.blur, draws),
        **_draw_resize(options.resize, draws),
        **_draw_noise(options.noise, draws),
        "quality": draws.uniform(*options.jpeg.quality),
    }
    return {f"{name}_{key}": column for key, column in columns.items()}


def draw_final(options: FinalOptions, draws: Draws) -> Params:
    """Draw the parameters of the last steps, under names that begin with `final_`."""
    filtered = draws.chance(options.sinc_prob)
    taps = draws.odd(options.kernel_size)
    cutoff = draws.uniform(_LOWEST, math.pi)
    return {
        "final_kernel": torch.where(filtered, SINC, NONE),
        "final_taps": taps.where(filtered, 0),
        "final_cutoff": cutoff.where(filtered, 0.0),
        "final_mode": draws.mode(options.modes),
        "final_jpeg_last": draws.chance(options.jpeg_last_prob, shared=True),
    }


def is_among(kinds: Tensor, some: Sequence[int]) -> Tensor:
    """Say which of the kernels counted by `kinds` are among some."""
    return torch.isin(kinds, torch.tensor(some))


def check_params(params: Params) -> None:
    """Check that parameters can be applied.

    Raises:
        BSRError: One is out of range.
    """
    for name in ("first", "second", "final"):
        kinds, taps, cutoff, mode = (params[f"{name}_{key}"] for key in ("kernel", "taps", "cutoff", "mode"))
        known = is_among(kinds, (NONE, SINC) if name == "final" else range(len(KERNELS)))
        require(params, f"{name}_kernel", known, "the number of a kernel")
        require(params, f"{name}_taps", (kinds == NONE) | (taps % 2 == 1) & (taps > 0), "an odd number")
        require(params, f"{name}_cutoff", (kinds != SINC) | (cutoff > 0) & (cutoff <= math.pi), "a number in (0, π]")
        require(params, f"{name}_mode", (mode >= 0) & (mode < len(MODES)), "the number of a mode")
    for name in ("first", "second"):
        unshaped = ~is_among(params[f"{name}_kernel"], GAUSSIAN + PLATEAU)
        for key in ("lambda1", "lambda2", "beta"):
            require(params, f"{name}_{key}", unshaped | (params[f"{name}_{key}"] > 0), "a number above 0")
        require(params, f"{name}_resize", params[f"{name}_resize"] > 0, "a number above 0")
        for key in ("gaussian", "poisson"):
            require(params, f"{name}_{key}", params[f"{name}_{key}"] >= 0, "a number of at least 0")
        check_quality(params, f"{name}_quality")


def _draw_blur(options: BlurOptions, draws: Draws) -> Params:
    taps = draws.odd(options.kernel_size)
    family = draws.choice(options.families.weights) + KERNELS.index(FAMILIES[0])
    kernel = torch.where(draws.chance(options.sinc_prob), SINC, family)
    kernel = kernel.where(draws.chance(options.prob, shared=True), NONE)
    shaped, turned = is_among(kernel, GAUSSIAN + PLATEAU), is_among(kernel, _ANISOTROPIC)
    angles = (math.radians(options.theta[0]), math.radians(options.theta[1]))
    lambda1, lambda2 = draws.uniform(*options.sigma), draws.uniform(*options.sigma)
    betag, betap = (_draw_exponents(exponents, draws) for exponents in (options.betag, options.betap))
    beta = betag.where(is_among(kernel, _GENERALIZED), betap.where(is_among(kernel, PLATEAU), _GAUSSIAN_BETA))
    lowest = torch.where(taps < _LARGE_TAPS, _LOWEST, _LOWEST_OF_LARGE)
    return {
        "kernel": kernel,
        "taps": taps.where(kernel != NONE, 0),
        "lambda1": lambda1.where(shaped, 0.0),
        "lambda2": lambda2.where(turned, lambda1).where(shaped, 0.0),
        "theta": draws.uniform(*angles).where(turned, 0.0),
        "beta": beta.where(shaped, 0.0),
        "cutoff": draws.uniform(lowest, math.pi).where(kernel == SINC, 0.0),
    }


def _draw_exponents(exponents: Range, draws: Draws) -> Tensor:
    """Draw as many exponents below 1, the Gaussian's, as above it; a range on one side of 1 is drawn from evenly."""
    low, high = exponents
    even, half, below = draws.uniform(low, high), draws.units(), draws.chance(0.5)
    if not low <= _GAUSSIAN_BETA <= high:
        return even
    return torch.where(below, low + (_GAUSSIAN_BETA - low) * half, _GAUSSIAN_BETA + (high - _GAUSSIAN_BETA) * half)


def _draw_resize(options: ResizeOptions, draws: Draws) -> Params:
    low, high = options.scale
    direction, part = draws.choice(options.prob.weights, shared=True), draws.units(shared=True)
    up, down = 1 + (high - 1) * part, low + (1 - low) * part
    scale = up.where(direction == DIRECTIONS.index("up"), down.where(direction == DIRECTIONS.index("down"), 1.0))
    return {"resize": scale, "mode": draws.mode(options.modes)}


def _draw_noise(options: NoiseOptions, draws: Draws) -> Params:
    gaussian = draws.chance(options.gaussian_prob, shared=True)
    return {
        "gaussian": draws.uniform(*options.gaussian).where(gaussian, 0.0),
        "poisson": draws.uniform(*options.poisson).where(~gaussian, 0.0),
        "grey": draws.chance(options.grey_prob),
        "noise_seed": draws.seeds(),
    }
