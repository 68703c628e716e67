"""Gaussian blur, isotropic and anisotropic: a sample whose widths are equal is isotropic, whichever of them drew it."""

from __future__ import annotations

from torch import Tensor

from bsr_plugins.blocks import interval
from bsr_plugins.degradations.kernels import gaussian_kernels, gaussian_profiles
from bsr_plugins.degradations.params import Params, require
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
        """See `Stage.as_params`."""
        return dict.fromkeys(self.columns, values[:, 0])

    @classmethod
    def applies(cls, params: Params) -> Tensor:
        """See `Stage.applies`."""
        return (params["lambda1"] > 0) & (params["lambda1"] == params["lambda2"])

    @classmethod
    def profiles(cls, params: Params, size: int) -> Tensor:
        """See `SeparableBlur.profiles`."""
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
        """See `Stage.applies`."""
        return params["lambda1"] != params["lambda2"]

    @classmethod
    def check(cls, params: Params) -> None:
        """See `Stage.check`."""
        super().check(params)
        both = (params["lambda2"] >= 0) & ((params["lambda2"] == 0) == (params["lambda1"] == 0))
        require(params, "lambda2", both, "a number above 0, or 0 for no blur where lambda1 is 0")

    @classmethod
    def kernels(cls, params: Params, size: int) -> Tensor:
        """See `Blur.kernels`."""
        return gaussian_kernels(params["lambda1"], params["lambda2"], params["theta"], size)
