"""A stage from outside the package: box blur. An option file asks for it by `blur_box: {width: [1, 9]}`."""

from __future__ import annotations

import torch
from torch import Tensor

from bsr_plugins.blocks import interval
from bsr_plugins.degradations import STAGES, Params, SeparableBlur


@STAGES.register("box")
class BoxBlur(SeparableBlur):
    """The mean of a square; `box`, `box+noise` and the like in `types`.

    Args:
        taps: Taps of the kernels, the degradation's `kernel_size`.
        width: Sides of the square in HR pixels, in [0, taps]; 1 or less means no blur.
        sampler: How widths are drawn, e.g. `ads`.
    """

    columns = ("box_width",)

    def __init__(self, taps: int, width: float | list[float], sampler: str | dict[str, object] = "uniform") -> None:
        super().__init__(sampler, interval(width, "width", 0, taps))

    @classmethod
    def profiles(cls, params: Params, size: int) -> Tensor:
        """Return 1-D kernels, float64, shape (B, size): how much of every pixel lies inside the square."""
        positions = (torch.arange(size, dtype=torch.float64) - size // 2).abs()
        inside = ((params["box_width"].clamp_min(1)[:, None] + 1) / 2 - positions).clamp(0, 1)
        return inside / inside.sum(1, keepdim=True)
