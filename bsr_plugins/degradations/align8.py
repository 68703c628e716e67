"""The degradation of Simple-Align's test sets: a blur of 8-bit images, then Pillow's bicubic."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bsr_plugins.degradations.blur import blur
from bsr_plugins.degradations.classical import ClassicalDegradation
from bsr_plugins.degradations.noise import GREY_LEVELS
from bsr_plugins.degradations.params import Params, replaced


class Align8Degradation(ClassicalDegradation):
    """Blur → bicubic → Gaussian noise → JPEG → 8 bits, the bicubic being Pillow's on an 8-bit image.

    What differs from `ClassicalDegradation`: the HR image is rounded to 8 bits, and so is the blurred one (reflected
    borders, float64), and Pillow downsamples it, with its antialiased bicubic (a = −0.5, support 4·s, weights
    normalised at the borders, rounded after each axis): the pixels are those of `Image.resize(size, Image.BICUBIC)`.
    Pillow works on the CPU; results come back to the device of the images. No gradient flows. That the blurred image
    is rounded is ours: the paper's text says nothing of it.

    It draws nothing by itself: `sample` gives clean parameters; make others with `classical_params`.

    Args:
        scale: Downsampling factor s.
    """

    def __init__(self, scale: int) -> None:
        super().__init__(scale)

    @torch.no_grad()
    def _blur_and_downsample(self, x: Tensor, params: Params) -> Tensor:
        levels = (x.double().clamp(0, 1) * GREY_LEVELS).round()
        kernels = self._kernels(params).to(x.device)

        def blurred(some: Tensor, members: Tensor) -> Tensor:
            return blur(some, kernels[members.to(x.device)]).round().clamp(0, GREY_LEVELS)

        levels = replaced(torch.tensor([stage is not None for stage in self._blurs(params)]), levels, blurred)
        height, width = x.shape[-2] // self.scale, x.shape[-1] // self.scale
        small = _shrink(levels.reshape(-1, *x.shape[-3:]).to("cpu", torch.uint8), height, width)
        return (small.double() / GREY_LEVELS).to(x).reshape(*x.shape[:-2], height, width)


def _shrink(levels: Tensor, height: int, width: int) -> Tensor:
    """Downsample images, uint8 of shape (N, 3, H, W), with Pillow."""
    images = levels.permute(0, 2, 3, 1).contiguous().numpy()
    small = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2)
