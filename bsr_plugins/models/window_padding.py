"""Whole images for networks that work in windows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bsr_plugins.degradations.resize import reflected_indices


def window_sides(network: nn.Module) -> tuple[int, int]:
    """Return what the height and the width of a network's LR images have to be multiples of.

    That is the least common multiple of the `window_size`, a number or a pair, of all modules, as in SwinIR's blocks;
    1 without any.
    """
    height, width = 1, 1
    for module in network.modules():
        window = getattr(module, "window_size", None)
        pair = (window, window) if isinstance(window, int) else window
        if (
            isinstance(pair, tuple | list)
            and len(pair) == 2
            and all(isinstance(side, int) and side > 0 for side in pair)
        ):
            height, width = math.lcm(height, pair[0]), math.lcm(width, pair[1])
    return height, width


def pad_by_reflection(image: Tensor, height: int, width: int) -> Tensor:
    """Extend images (…, h, w) downwards and to the right to (…, height, width).

    Rows and columns beyond the border are the mirror image of those before it, the border itself not repeated, as
    `reflect` padding does; but as often as it takes, so that an image may be smaller than what is added.
    """
    rows, columns = (
        reflected_indices(torch.arange(wanted), side).to(image.device)
        for side, wanted in ((image.shape[-2], height), (image.shape[-1], width))
    )
    return image.index_select(-2, rows).index_select(-1, columns)


def super_resolve(network: nn.Module, lq: Tensor, **condition: Tensor) -> Tensor:
    """Run a network on LR images of any size, padded to its windows where it has any.

    Source: BasicSR's `SwinIRModel`, which takes the window from the options and fails on images that are smaller than
    the padding.

    Args:
        network: A bare network.
        lq: LR images (B, C, h, w).
        condition: What the network gets with them.

    Returns:
        SR images (B, C, s·h, s·w).
    """
    height, width = lq.shape[-2:]
    padded = tuple(
        -(-side // window) * window for side, window in zip((height, width), window_sides(network), strict=True)
    )
    if padded == (height, width):
        whole: Tensor = network(lq, **condition)
        return whole
    output: Tensor = network(pad_by_reflection(lq, *padded), **condition)
    return output[..., : output.shape[-2] * height // padded[0], : output.shape[-1] * width // padded[1]]
