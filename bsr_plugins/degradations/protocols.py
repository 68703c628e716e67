"""The fixed degradations that test sets of the field are made with, each a list of named settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bsr_plugins.degradations.base import GREY_LEVELS, SEED, Degradation, Params, classical_params, replaced
from bsr_plugins.degradations.blur import blur
from bsr_plugins.degradations.classical import ClassicalDegradation
from bsr_plugins.errors import OptionError, unknown_name
from bsr_plugins.registration import Registry

# Eight even steps of the kernel width per scale (IKC; used by 001 and DASR): first and last.
_GAUSSIAN8 = {2: (0.80, 1.60), 3: (1.35, 2.40), 4: (1.80, 3.20)}
_WIDTHS = (1.0, 1.8, 2.6, 3.4, 0.5, 1.4, 2.3, 3.2, 4.1, 5.0)
_ANISO9 = (
    *[(2.0, 0.2, 0), (2.0, 1.0, 10), (3.5, 1.5, 30), (3.5, 2.0, 45), (3.5, 2.0, 90)],
    *[(4.0, 1.5, 120), (4.0, 2.0, 135), (4.0, 3.0, 165), (4.0, 4.0, 180)],
)
_ANISO_UNSEEN = ((0.5, 0.2), (1.4, 0.8), (2.3, 1.4), (3.2, 2.0), (4.1, 2.6), (5.0, 3.2))
_ALIGN8 = {"blur": 2.0, "noise": 20.0, "jpeg": 50.0}  # σ, level, quality


class Setting(NamedTuple):
    """A degradation with a short name, fit for file names, and its parameters, for a batch of one."""

    name: str
    params: Params


class Protocol(NamedTuple):
    """A protocol at one scale: its settings, and what applies them."""

    degradation: Degradation
    settings: list[Setting]


PROTOCOLS: Registry[Callable[[int], Protocol]] = Registry("protocol")
"""All protocols by their names in option files, each a function of the scale."""


def _build(protocol: str, scale: int) -> Protocol:
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS)
    return PROTOCOLS[protocol](scale)


def protocol_settings(protocol: str, scale: int) -> list[Setting]:
    """Return the settings of a protocol; refuse one that is unknown, or not defined for the scale."""
    return _build(protocol, scale).settings


def protocol_degradation(protocol: str, scale: int) -> Degradation:
    """Return what applies the settings of a protocol; refuse likewise."""
    return _build(protocol, scale).degradation


@PROTOCOLS.register("bicubic")
def bicubic(scale: int) -> Protocol:
    """Make clean images."""
    return Protocol(ClassicalDegradation(scale), [Setting("bicubic", classical_params())])


@PROTOCOLS.register("gaussian8")
def gaussian8(scale: int) -> Protocol:
    """Blur by eight isotropic widths: ×4 1.8 … 3.2, ×3 1.35 … 2.40, ×2 0.80 … 1.60 (ReDSR paper, Table 1)."""
    if scale not in _GAUSSIAN8:
        raise OptionError(f"protocol: gaussian8 at scale {scale!r}, expected one of {sorted(_GAUSSIAN8)}")
    first, last = _GAUSSIAN8[scale]
    sigmas = [round(first + (last - first) * step / 7, 6) for step in range(8)]
    settings = [Setting(f"sig{sigma:.4g}", classical_params(sigma)) for sigma in sigmas]
    return Protocol(ClassicalDegradation(scale), settings)


@PROTOCOLS.register("widths")
def widths(scale: int) -> Protocol:
    """Blur by single isotropic widths: 1.0 … 3.4 of the ReDSR paper's Table 2, then 0.5 … 5.0 of its Fig. 4."""
    settings = [Setting(f"sig{sigma:g}", classical_params(sigma)) for sigma in _WIDTHS]
    return Protocol(ClassicalDegradation(scale), settings)


@PROTOCOLS.register("aniso9")
def aniso9(scale: int) -> Protocol:
    """Blur by nine anisotropic kernels (those of the released code), each at noise 0, 10, 20 (ReDSR paper, Table 3)."""
    settings = [
        Setting(f"k{index}_noise{noise}", classical_params(lambda1, lambda2, math.radians(theta), noise))
        for index, (lambda1, lambda2, theta) in enumerate(_ANISO9, start=1)
        for noise in (0, 10, 20)
    ]
    return Protocol(ClassicalDegradation(scale), settings)


@PROTOCOLS.register("aniso_unseen")
def aniso_unseen(scale: int) -> Protocol:
    """Blur by six anisotropic kernels (ReDSR paper, Table 4), at θ = 0, which the paper leaves open."""
    settings = [Setting(f"sig{a:g}x{b:g}", classical_params(a, b)) for a, b in _ANISO_UNSEEN]
    return Protocol(ClassicalDegradation(scale), settings)


@PROTOCOLS.register("six")
def six(scale: int) -> Protocol:
    """Degrade in six ways: AACL's abstract counts six kinds without naming them; these and their strengths are ours."""
    aniso = (3.5, 2.0, math.radians(45))
    settings = [
        Setting("bicubic", classical_params()),
        Setting("iso", classical_params(2.0)),
        Setting("aniso", classical_params(*aniso)),
        Setting("aniso_noise", classical_params(*aniso, noise_level=10)),
        Setting("aniso_jpeg", classical_params(*aniso, jpeg_quality=50)),
        Setting("aniso_noise_jpeg", classical_params(*aniso, noise_level=10, jpeg_quality=50)),
    ]
    return Protocol(ClassicalDegradation(scale), settings)


class Align8Degradation(ClassicalDegradation):
    """Blur → bicubic → Gaussian noise → JPEG → 8 bits, the bicubic being Pillow's on an 8-bit image.

    The HR image is rounded to 8 bits, and so is the blurred one (reflected borders, float64), and Pillow downsamples
    it on the CPU, with its antialiased bicubic (a = −0.5, support 4·s, weights normalised at the borders, rounded after
    each axis). No gradient flows. That the blurred image is rounded is ours: the paper's text says nothing of it.
    `sample` gives clean parameters.
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
        images = levels.reshape(-1, *x.shape[-3:]).to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        small = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in images]
        shrunk = torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2)
        return (shrunk.double() / GREY_LEVELS).to(x).reshape(*x.shape[:-2], height, width)


@PROTOCOLS.register("align8")
def align8(scale: int) -> Protocol:
    """Make Simple-Align's test sets: clean, blur (σ 2), noise 20, JPEG 50, and every combination of the three."""
    settings = []
    for stages in chain.from_iterable(combinations(_ALIGN8, count) for count in range(len(_ALIGN8) + 1)):
        sigma, noise, quality = (level if stage in stages else 0 for stage, level in _ALIGN8.items())
        params = classical_params(sigma, noise_level=noise, jpeg_quality=quality)
        settings.append(Setting("_".join(stages) or "clean", params))
    return Protocol(Align8Degradation(scale), settings)


def with_noise_seed(params: Params, seed: int) -> Params:
    """Return a copy of parameters in which every noise field is drawn from `seed`, in [0, 2^63)."""
    return {**params, SEED: torch.full_like(params[SEED], seed)}
