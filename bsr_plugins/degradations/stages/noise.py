"""Noise whose field depends on a seed per sample: additive Gaussian noise, and Poisson noise after the image itself.

Both may be grey: one field for the three channels. What is random is drawn by a generator for each sample on the CPU,
and then moved to the images, so that it depends neither on the rest of the batch nor on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from bsr_plugins.blocks import interval
from bsr_plugins.degradations.base import GREY_LEVELS, SEED, Params, replaced
from bsr_plugins.degradations.stages.base import STAGES, Block, Interval, LRStage

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's `rgb_to_grayscale`, which BasicSR uses

_LEVELS = 256  # values of a pixel of 8 bits
_EXPONENTS = 9  # an image has 1 to 256 distinct values, and at the brightest pixel 2^0 to 2^8 events are expected
_MAX_COUNT = 2 * 256 + 64  # so many events have no chance that a float64 could tell from 0
_CELLS = 1024  # parts of [0, 1) of which it is looked up whether they stand for one count
_HALF_STEP = 2.0**-25  # of a float32 draw in [0, 1), a multiple of 2^-24


@STAGES.register("noise")
class GaussianNoise(LRStage):
    """White Gaussian noise, drawn once per pixel and channel: `noise: {level: [0, 25]}`.

    Args:
        level: Standard deviations on the 0–255 scale, in [0, 255].
        sampler: The sampler.
    """

    columns = ("noise_level",)
    order = 100

    def __init__(self, level: Interval, sampler: Block = "uniform") -> None:
        super().__init__(sampler, interval(level, "level", 0.0, GREY_LEVELS))

    @classmethod
    def change(cls, lq: Tensor, params: Params) -> Tensor:
        return gaussian_noise(lq, params["noise_level"], params[SEED])


def gaussian_noise(x: Tensor, level: Tensor, seed: Tensor, grey: Tensor | None = None) -> Tensor:
    """Add white Gaussian noise, drawn once per pixel and channel; the sum is neither clamped nor rounded.

    Args:
        x: Images in [0, 1], shape (B, …); with `grey` (B, …, C, H, W).
        level: Standard deviations on the 0–255 scale, shape (B,); 0 leaves the sample as it is.
        seed: A seed in [0, 2^63) for each sample, int64, shape (B,).
        grey: Whether all channels of an image share one field, bool, shape (B,). None: nowhere.
    """

    def add(clean: Tensor, members: Tensor) -> Tensor:
        field = _draw(torch.randn, clean, seed[members], _flags(grey, members)).to(clean.dtype)
        return clean + field.to(x.device) * (_per_sample(level[members], clean) / GREY_LEVELS)

    return replaced(level > 0, x, add)


def poisson_noise(x: Tensor, scale: Tensor, seed: Tensor, grey: Tensor | None = None) -> Tensor:
    """Add Poisson (shot) noise as Real-ESRGAN does; the sum is neither clamped nor rounded.

    An image is rounded to 8 bits; n, the number of its distinct values over all channels, is rounded up to a power of
    two v; a pixel p then has `(Poisson(p·v) / v − p) · scale` added to it, whose variance is `p / v · scale²`.
    See BasicSR's `generate_poisson_noise_pt`. Ours is how a pixel's count is found: it is the Poisson quantile of one
    uniform number (24 bits) drawn for that pixel. So where another device rounds a pixel to the neighbouring level,
    that pixel's noise changes by about that level and no other's does (unless it moves n past a power of two).

    Images are RGB, shape (B, …, 3, H, W); n is counted for each view, and the noise takes no part in gradients. `grey`
    noise is made of the luma. For the rest see `gaussian_noise`.
    """

    def add(clean: Tensor, members: Tensor) -> Tensor:
        flags, pixels = _flags(grey, members), clean.detach()
        if any(flags):
            luma = (pixels * x.new_tensor(_LUMA)[:, None, None]).sum(-3, keepdim=True)
            pixels = torch.where(_per_sample(torch.tensor(flags), x) > 0, luma, pixels)
        levels = (pixels.clamp(0, 1) * GREY_LEVELS).round().long()
        uniform = _draw(torch.rand, clean, seed[members], flags).to(x.device)
        return clean + _shot_noise(levels, uniform, x.dtype) * _per_sample(scale[members], clean)

    return replaced(scale > 0, x, add)


def _flags(grey: Tensor | None, members: Tensor) -> list[bool]:
    return [False] * len(members) if grey is None else grey[members].tolist()


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.dim() - 1))


def _draw(draw: Callable[..., Tensor], like: Tensor, seeds: Tensor, grey: list[bool]) -> Tensor:
    """Draw float32 numbers for every sample, on the CPU; if grey, the same for all channels."""
    drawn, shape = [], like.shape[1:]
    for seed, flag in zip(seeds.tolist(), grey, strict=True):
        drawn_shape = (*shape[:-3], 1, *shape[-2:]) if flag else shape
        generator = torch.Generator().manual_seed(seed)
        drawn.append(draw(drawn_shape, generator=generator, dtype=torch.float32).expand(shape))
    return torch.stack(drawn)


def _shot_noise(levels: Tensor, uniform: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `Poisson(p·v) / v − p` for pixels p = levels / 255, shape (B, …, 3, H, W).

    A count is the least whose cumulative probability in the pixel's row of the tables is above the uniform number.
    """
    images = levels.flatten(-3).flatten(0, -2)
    occurs = images.new_zeros((len(images), _LEVELS), dtype=torch.bool).scatter_(1, images, True)
    powers = 2 ** torch.arange(_EXPONENTS, device=levels.device)
    exponents = torch.bucketize(occurs.sum(1), powers).view(*levels.shape[:-3], 1, 1, 1)
    rows, uniform = exponents * _LEVELS + levels, uniform.double() + _HALF_STEP
    cumulative, cells = _poisson_tables(levels.device)
    counts = cells.take(rows * _CELLS + (uniform * _CELLS).long()).long()
    unsure = (counts < 0).nonzero(as_tuple=True)
    found = torch.searchsorted(cumulative, rows[unsure] + uniform[unsure], right=True)
    counts[unsure] = found - rows[unsure] * _MAX_COUNT
    return counts.to(dtype) / powers[exponents] - levels.to(dtype) / GREY_LEVELS


@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)
def _poisson_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the cumulative probabilities of Poisson counts for every v and level, and a faster way into them.

    The first is P(count ≤ k) plus the number of the row, so that it ascends from row to row, flat, `_MAX_COUNT` to the
    row. The second is the one count that all numbers of a cell of [0, 1) stand for, or −1 if there are several, flat,
    `_CELLS` to the row. Row `e · 256 + level` is for the expectation `2^e · level / 255`.
    """
    rates = (2.0 ** torch.arange(_EXPONENTS, dtype=torch.float64))[:, None] * torch.arange(_LEVELS) / GREY_LEVELS
    counts = torch.arange(_MAX_COUNT, dtype=torch.float64)
    rows = torch.arange(rates.numel())[:, None]
    cumulative = (torch.special.gammaincc(counts + 1, rates.view(-1, 1)) + rows).flatten()
    edges = rows + torch.arange(_CELLS + 1, dtype=torch.float64) / _CELLS
    found = torch.searchsorted(cumulative, edges, right=True) - rows * _MAX_COUNT
    cells = torch.where(found[:, :-1] == found[:, 1:], found[:, :-1], -1)
    return cumulative.to(device), cells.flatten().to(device, torch.int16)
