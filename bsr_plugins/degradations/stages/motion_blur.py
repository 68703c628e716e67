"""Motion blur: a camera that moved along a straight line."""

from __future__ import annotations

import torch
from torch import Tensor

from bsr_plugins.blocks import interval
from bsr_plugins.degradations.kernels import offsets
from bsr_plugins.degradations.params import Params
from bsr_plugins.degradations.stages.base import STAGES, Block, Blur, Interval, radians


@STAGES.register("motion")
class MotionBlur(Blur):
    """Linear motion blur: `blur_motion: {length: [1, 21], angle: [0, 180]}`.

    A tap at distance d from the path has the weight max(0, 1 − d) before normalisation. The path is the straight line
    of L − 1 pixels, centred, at the angle θ: L pixels long with the pixel's width. So an odd L at θ = 0 is a box of L
    taps in a row, and L = 1 the unit impulse. After MATLAB's `fspecial('motion')`, which differs at the line's ends and
    turns the other way.

    Args:
        taps: Taps of the kernels.
        length: Lengths L in HR pixels, in [0, taps]; 1 or less means no blur.
        angle: Angles θ of the path, from x towards y, in degrees in [-360, 360].
        sampler: The sampler; an adaptive one measures the length.
    """

    columns = ("motion_length", "motion_angle")
    order = 30

    def __init__(self, taps: int, length: Interval, angle: Interval = (0, 180), sampler: Block = "uniform") -> None:
        super().__init__(sampler, interval(length, "length", 0.0, taps), radians(angle, "angle"))

    @classmethod
    def applies(cls, params: Params) -> Tensor:
        """See `Stage.applies`."""
        return params["motion_length"] > 1

    @classmethod
    def kernels(cls, params: Params, size: int) -> Tensor:
        """See `Blur.kernels`."""
        half, angle = (params["motion_length"].clamp_min(1) - 1) / 2, params["motion_angle"]
        axis = offsets(size, half)
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        beyond = ((cos * axis + sin * axis[:, None]).abs() - half[:, None, None]).clamp_min(0)
        weights = (1 - torch.hypot(beyond, cos * axis[:, None] - sin * axis)).clamp_min(0)
        return weights / weights.sum((-2, -1), keepdim=True)
