"""Whole images for networks that work in windows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bsr_plugins.degradations.resize import reflected_indices


def window_sides(network: nn.Module) -> tuple[int, int]:
    """Return what the height and the width of a network's LR images have to be multiples of.

    That is the least common multiple of the `window_size`, a number or a pair, of all modules, as in SwinIR's blocks.
    """
    sides = (1, 1)
    for module in network.modules():
        window = getattr(module, "window_size", None)
        pair = (window, window) if isinstance(window, int) else window
        if isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(side, int) and side for side in pair):
            sides = math.lcm(sides[0], pair[0]), math.lcm(sides[1], pair[1])
    return sides


def pad_by_reflection(image: Tensor, height: int, width: int) -> Tensor:
    """Extend images (…, h, w) downwards and to the right to (…, height, width).

    It is `reflect` padding, which goes to and fro where an image is smaller than what is added.
    """
    rows, columns = (
        reflected_indices(torch.arange(wanted), side).to(image.device)
        for side, wanted in ((image.shape[-2], height), (image.shape[-1], width))
    )
    return image.index_select(-2, rows).index_select(-1, columns)


def super_resolve(network: nn.Module, lq: Tensor, **condition: Tensor) -> Tensor:
    """Run a bare network on LR images (B, C, h, w) of any size, padded to its windows where it has any.

    Source: BasicSR's `SwinIRModel`, which takes the window from the options and fails on images that are smaller than
    the padding.
    """
    sides = lq.shape[-2:]
    height, width = (-(-side // w) * w for side, w in zip(sides, window_sides(network), strict=True))
    padded = lq if sides == (height, width) else pad_by_reflection(lq, height, width)
    output: Tensor = network(padded, **condition)
    return output[..., : output.shape[-2] * sides[0] // height, : output.shape[-1] * sides[1] // width]
