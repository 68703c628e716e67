"""Gaussian blur, isotropic and anisotropic, and motion blur.

A sample whose Gaussian widths are equal is isotropic, whichever of the two stages drew it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bsr_plugins.blocks import interval
from bsr_plugins.degradations.base import Params, require
from bsr_plugins.degradations.kernels import gaussian_kernels, gaussian_profiles, offsets
from bsr_plugins.degradations.stages.base import STAGES, Block, Blur, Interval, SeparableBlur, radians
from bsr_plugins.errors import OptionError


@STAGES.register("iso")
class IsotropicBlur(SeparableBlur):
    """Isotropic Gaussian kernels: `blur_iso: {sigma: [0.2, 4.0]}`.

    Args:
        taps: Taps of the kernels.
        sigma: Widths σ (standard deviations in HR pixels) in [0, taps / 2]; σ = 0 means no blur.
        sampler: The sampler.
    """

    columns = ("lambda1", "lambda2")
    order = 10

    def __init__(self, taps: int, sigma: Interval, sampler: Block = "uniform") -> None:
        super().__init__(sampler, interval(sigma, "sigma", 0.0, taps / 2))

    def as_params(self, values: Tensor) -> Params:
        return dict.fromkeys(self.columns, values[:, 0])

    @classmethod
    def applies(cls, params: Params) -> Tensor:
        return (params["lambda1"] > 0) & (params["lambda1"] == params["lambda2"])

    @classmethod
    def profiles(cls, params: Params, size: int) -> Tensor:
        return gaussian_profiles(params["lambda1"], size)


@STAGES.register("aniso")
class AnisotropicBlur(Blur):
    """Anisotropic Gaussian kernels: `blur_aniso: {sigma: [0.2, 4.0], theta: [0, 180]}`.

    Args:
        taps: Taps of the kernels.
        sigma: Widths λ1 and λ2 (standard deviations in HR pixels along the kernel's axes) in (0, taps / 2]; both are
            drawn from it.
        theta: Angles θ of the first axis, from x towards y, in degrees in [-360, 360].
        sampler: The sampler; an adaptive one measures the widths.
    """

    columns = ("lambda1", "lambda2", "theta")
    measured = 2
    order = 20

    def __init__(self, taps: int, sigma: Interval, theta: Interval = (0, 180), sampler: Block = "uniform") -> None:
        widths = interval(sigma, "sigma", 0.0, taps / 2)
        if widths[0] == 0:
            raise OptionError(f"sigma: {sigma!r}, expected widths above 0 (σ = 0 is for isotropic kernels only)")
        super().__init__(sampler, widths, widths, radians(theta, "theta"))

    @classmethod
    def applies(cls, params: Params) -> Tensor:
        return params["lambda1"] != params["lambda2"]

    @classmethod
    def check(cls, params: Params) -> None:
        super().check(params)
        both = (params["lambda2"] >= 0) & ((params["lambda2"] == 0) == (params["lambda1"] == 0))
        require(params, "lambda2", both, "a number above 0, or 0 for no blur where lambda1 is 0")

    @classmethod
    def kernels(cls, params: Params, size: int) -> Tensor:
        return gaussian_kernels(params["lambda1"], params["lambda2"], params["theta"], size)


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
        return params["motion_length"] > 1

    @classmethod
    def kernels(cls, params: Params, size: int) -> Tensor:
        half, angle = (params["motion_length"].clamp_min(1) - 1) / 2, params["motion_angle"]
        axis = offsets(size, half)
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        beyond = ((cos * axis + sin * axis[:, None]).abs() - half[:, None, None]).clamp_min(0)
        weights = (1 - torch.hypot(beyond, cos * axis[:, None] - sin * axis)).clamp_min(0)
        return weights / weights.sum((-2, -1), keepdim=True)
