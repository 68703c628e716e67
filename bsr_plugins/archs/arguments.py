"""Checks of arguments that several networks have. Errors name the argument alone, as `num_feat: 0, expected …`."""

from __future__ import annotations

import torch
from torch import Tensor

from bsr_plugins.blocks import integer, number
from bsr_plugins.errors import OptionError

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_UPSCALES = (2, 3, 4)
_MOST_CHANNELS = 4096  # above these, a slip would fill the memory or build for hours
_MOST_MODULES = 1000


def check_channels(**widths: object) -> None:
    """Raise `OptionError` unless all widths, given by their names, are whole numbers in [1, 4096]."""
    for name, width in widths.items():
        integer(width, name, 1, _MOST_CHANNELS)


def check_depths(**depths: object) -> None:
    """Raise `OptionError` unless all numbers of blocks or groups, given by their names, are in [1, 1000]."""
    for name, depth in depths.items():
        integer(depth, name, 1, _MOST_MODULES)


def check_upscale(upscale: object, name: str = "upscale") -> None:
    """Raise `OptionError` unless a factor between LR and HR images is 2, 3 or 4."""
    if not isinstance(upscale, int) or upscale not in _UPSCALES:
        raise OptionError(f"{name}: {upscale!r}, expected one of {', '.join(map(str, _UPSCALES))}")


def check_img_range(img_range: object) -> float:
    """Return the factor on images in [0, 1]; raise `OptionError` unless it is in [0.001, 65535]."""
    return number(img_range, "img_range", 1e-3, 65535.0)


def channel_means(rgb_mean: object, num_in_ch: int, num_out_ch: int) -> Tensor:
    """Return a mean in [0, 1] of each channel, shape (1, channels, 1, 1); None is a zero, shape (1, 1, 1, 1)."""
    if rgb_mean is None:
        return torch.zeros(1, 1, 1, 1)
    if not isinstance(rgb_mean, list | tuple) or not len(rgb_mean) == num_in_ch == num_out_ch:
        expected = f"a number for each of {num_in_ch} channels in and {num_out_ch} out, or null"
        raise OptionError(f"rgb_mean: {rgb_mean!r}, expected {expected}")
    return torch.tensor([number(mean, "rgb_mean", 0.0, 1.0) for mean in rgb_mean]).view(1, -1, 1, 1)
