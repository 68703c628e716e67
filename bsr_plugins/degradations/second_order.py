"""The second-order degradation of Real-ESRGAN, with which Simple-Align trains: two rounds of the classical stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bsr_plugins.blocks import boolean, integer
from bsr_plugins.degradations.base import (
    DEGRADATIONS,
    Degradation,
    Params,
    by_group,
    check_columns,
    check_quality,
    replaced,
    require,
    rounded,
)
from bsr_plugins.degradations.blur import blur, sharpen
from bsr_plugins.degradations.kernels import generalized_gaussian_kernels, plateau_kernels, sinc_kernels
from bsr_plugins.degradations.resize import bicubic_resize
from bsr_plugins.degradations.second_order_options import (
    GAUSSIAN,
    KERNELS,
    MODES,
    NONE,
    PLATEAU,
    SINC,
    Draws,
    FinalOptions,
    is_among,
    read_round,
)
from bsr_plugins.degradations.stages.jpeg import jpeg
from bsr_plugins.degradations.stages.noise import gaussian_noise, poisson_noise
from bsr_plugins.errors import BSRError
from bsr_plugins.options.declared import read_block
from bsr_plugins.precision import at_least_float32

_BLURS = ("first", "second", "final")
_PIXELS_IN_CACHE = 1 << 18  # with more at once, a CPU's core falls out of its cache (JPEG takes twice the time)
_SHAPE = ("lambda1", "lambda2", "theta", "beta")
_KINDS: tuple[tuple[tuple[int, ...], Callable[..., Tensor], tuple[str, ...]], ...] = (
    (GAUSSIAN, generalized_gaussian_kernels, _SHAPE),
    (PLATEAU, plateau_kernels, _SHAPE),
    ((SINC,), sinc_kernels, ("cutoff",)),
)
_PATH = ("first_resize", "first_mode", "second_resize", "second_mode", "final_mode", "final_jpeg_last")


@DEGRADATIONS.register("SecondOrderDegradation")
class SecondOrderDegradation(Degradation):
    """Two rounds of blur, resize, noise and JPEG, then a sinc filter and JPEG in either order (Real-ESRGAN).

    `first` and `second` are blocks with the keys of `RoundOptions`, `final` is one with those of `FinalOptions`; what
    they leave out is as in the released training.

    In the released pipeline a batch shares each round's factor and mode of resizing and its kind of noise, whether the
    second round blurs, the order of the last steps and their mode; kernels, levels, qualities and grey noise differ
    from image to image. So it is here, unless `per_sample` is true.

    JPEG is libjpeg's (8 bits in and out), where the released pipeline has an approximation of it in real numbers, and
    grey noise is drawn for every image, where the released one lets a batch share the field.

    Args:
        scale: Downsampling factor s.
        usm: Whether `target` sharpens.
        per_sample: Draw for every image what the released pipeline draws once a batch.
        round_to_8bit: Round and clamp the LR image to 8 bits.
        first: The first round.
        second: The second round.
        final: The last steps.

    Raises:
        OptionError: A value is out of range, probabilities do not sum to 1, or a name or key is unknown.
    """

    def __init__(
        self,
        scale: int,
        usm: bool = True,
        per_sample: bool = False,
        round_to_8bit: bool = True,
        first: Mapping[str, Any] | None = None,
        second: Mapping[str, Any] | None = None,
        final: Mapping[str, Any] | None = None,
    ) -> None:
        self.scale = integer(scale, "scale", 1)
        self.usm = boolean(usm, "usm")
        self.per_sample = boolean(per_sample, "per_sample")
        self.round_to_8bit = boolean(round_to_8bit, "round_to_8bit")
        self.first = read_round("first", first)
        self.second = read_round("second", second)
        self.final = read_block(FinalOptions, {} if final is None else final, "final")
        self._names = tuple(self.sample(0, torch.Generator()))

    def smallest_side(self, params: Params | None = None) -> int:
        """Return the least side at which every blur has its radius and a pixel more, and every resize a pixel."""
        if params is None:
            rounds = (self.first, self.second)
            taps = [options.blur.kernel_size[1] if options.blur.prob > 0 else 0 for options in rounds]
            taps.append(self.final.kernel_size[1] if self.final.sinc_prob > 0 else 0)
            rows: Iterable[Any] = [(*taps, *(options.resize.lowest for options in rounds))]
        else:
            columns = ("first_taps", "second_taps", "final_taps", "first_resize", "second_resize")
            rows = zip(*(params[key].tolist() for key in columns), strict=True)
        sides = [1]
        for first_taps, second_taps, last_taps, resize, relative in rows:
            lr = max(last_taps // 2 + 1, _shortest(1, relative))
            sides += [first_taps // 2 + 1, _shortest(second_taps // 2 + 1, resize), self.scale * lr]
        return max(sides)

    def target(self, gt: Tensor) -> Tensor:
        """Return images (B, …, 3, H, W) in [0, 1] sharpened, under `usm`."""
        if not self.usm:
            return gt
        with torch.autocast(gt.device.type, enabled=False):
            return sharpen(at_least_float32(gt)).to(gt.dtype)

    def sample(self, batch_size: int, generator: torch.Generator) -> Params:
        """Draw the parameters of a batch.

        Columns have the shape (B,) and are float64, but for counts and seeds (int64) and yes or no (bool). Those of the
        first round are `first_kernel` (an index into `KERNELS`), `first_taps`, `first_lambda1`, `first_lambda2`,
        `first_theta` (radians), `first_beta`, `first_cutoff` (radians per pixel), each 0 where the kernel has no such
        thing; `first_resize`, `first_mode` (an index into `MODES`); `first_gaussian`, `first_poisson` (0 for none),
        `first_grey`, `first_noise_seed`; `first_quality` (0 for no JPEG). The last are `final_kernel`, `final_taps`,
        `final_cutoff`, `final_mode`, `final_jpeg_last`.
        """
        draws = Draws(batch_size, self.per_sample, generator)
        return self.first.draw("first", draws) | self.second.draw("second", draws) | self.final.draw(draws)

    def __call__(self, gt: Tensor, params: Params) -> Tensor:
        """Degrade images, those of `target` for the released pipeline; there is no gradient."""
        self.check_images(gt)
        check_columns(params, self._names, gt.shape[0])
        _check_params(params)
        smallest = self.smallest_side(params)
        if min(gt.shape[-2:]) < smallest:
            raise BSRError(
                f"degradation: images of {gt.shape[-2]}x{gt.shape[-1]} pixels, expected sides of at least {smallest} "
                "for the drawn kernels and factors"
            )
        x = at_least_float32(gt).reshape(gt.shape[0], -1, *gt.shape[-3:])
        with torch.autocast(gt.device.type, enabled=False):
            kernels = {f"{name}_kernels": kernels_of(params, name, x) for name in _BLURS}
            path = list(zip(*(params[key].tolist() for key in _PATH), strict=True))
            size = (x.shape[-2] // self.scale, x.shape[-1] // self.scale)
            lq = by_group(x, params | kernels, path, size, self._degrade)
        return lq.reshape(*gt.shape[:-2], *lq.shape[-2:]).to(gt.dtype)

    def _degrade(self, path: tuple[float, ...], x: Tensor, params: Params) -> Tensor:
        """Degrade samples, shape (B, V, 3, H, W), that are alike in the parameters of `_PATH`."""
        scale, first_mode, relative, second_mode, final_mode, jpeg_last = path
        height, width = x.shape[-2] // self.scale, x.shape[-1] // self.scale

        x = _blurred(x, params["first_kernels"], params["first_kernel"])
        x = _noisy(_resized(x, int(first_mode), scale), params, "first")
        x = _coded(x, params["first_quality"])

        x = _blurred(x, params["second_kernels"], params["second_kernel"])
        size = (math.floor(height * relative), math.floor(width * relative))
        x = _noisy(_resized(x, int(second_mode), size), params, "second")

        if not jpeg_last:
            x = _coded(x, params["second_quality"])
        x = _resized(x, int(final_mode), (height, width))
        x = _blurred(x, params["final_kernels"], params["final_kernel"])
        if jpeg_last:
            x = _coded(x, params["second_quality"])
        return rounded(x) if self.round_to_8bit else x

    def clean(self, gt: Tensor) -> Tensor:
        """Return clean LR images: MATLAB's bicubic, as other degradations have it, and 8 bits, if asked for."""
        self.check_images(gt)
        with torch.autocast(gt.device.type, enabled=False):
            lq = bicubic_resize(at_least_float32(gt), (gt.shape[-2] // self.scale, gt.shape[-1] // self.scale))
            return (rounded(lq) if self.round_to_8bit else lq).to(gt.dtype)


def _check_params(params: Params) -> None:
    for name in _BLURS:
        kinds, taps, cutoff, mode = (params[f"{name}_{key}"] for key in ("kernel", "taps", "cutoff", "mode"))
        known = is_among(kinds, (NONE, SINC) if name == "final" else range(len(KERNELS)))
        require(params, f"{name}_kernel", known, "the number of a kernel")
        require(params, f"{name}_taps", (kinds == NONE) | (taps % 2 == 1) & (taps > 0), "an odd number")
        require(params, f"{name}_cutoff", (kinds != SINC) | (cutoff > 0) & (cutoff <= math.pi), "a number in (0, π]")
        require(params, f"{name}_mode", (mode >= 0) & (mode < len(MODES)), "the number of a mode")
    for name in ("first", "second"):
        unshaped = ~is_among(params[f"{name}_kernel"], GAUSSIAN + PLATEAU)
        for key in ("lambda1", "lambda2", "beta"):
            require(params, f"{name}_{key}", unshaped | (params[f"{name}_{key}"] > 0), "a number above 0")
        require(params, f"{name}_resize", params[f"{name}_resize"] > 0, "a number above 0")
        for key in ("gaussian", "poisson"):
            require(params, f"{name}_{key}", params[f"{name}_{key}"] >= 0, "a number of at least 0")
        check_quality(params, f"{name}_quality")


def _shortest(pixels: int, scale: float) -> int:
    """Return the least whole length whose product with `scale`, rounded down, is at least `pixels`."""
    length = max(1, math.floor(pixels / scale) - 1)
    while math.floor(length * scale) < pixels:
        length += 1
    return length


def kernels_of(params: Params, name: str, like: Tensor) -> Tensor:
    """Return the kernels of the `first`, `second` or `final` blur, shape (B, k, k), typed and placed as `like`."""
    kinds, taps = params[f"{name}_kernel"], params[f"{name}_taps"]
    size = max(1, *taps.tolist())
    kernels = torch.zeros(len(kinds), size, size, dtype=torch.float64, device=like.device)
    kernels[:, size // 2, size // 2] = 1
    for kind, build, keys in _KINDS:
        members = is_among(kinds, kind).nonzero().flatten()
        if len(members):
            columns = [params[f"{name}_{key}"][members].to(like.device) for key in keys]
            kernels[members.to(like.device)] = build(*columns, size, taps[members].to(like.device))
    return kernels.to(like.dtype)


def _blurred(x: Tensor, kernels: Tensor, kinds: Tensor) -> Tensor:
    return replaced(kinds != NONE, x, lambda some, members: _in_parts(blur, some, kernels[members]))


def _resized(x: Tensor, mode: int, to: float | tuple[int, int]) -> Tensor:
    """Resize as `interpolate` does, not antialiased, to an (H, W) or by a factor."""
    if to in (1.0, tuple(x.shape[-2:])):
        return x
    target: dict[str, Any] = {"size": to} if isinstance(to, tuple) else {"scale_factor": to}
    made: Tensor = F.interpolate(x.flatten(0, 1), mode=MODES[mode], **target)
    return made.view(*x.shape[:2], *made.shape[1:])


def _noisy(x: Tensor, params: Params, name: str) -> Tensor:
    seed, grey = params[f"{name}_noise_seed"], params[f"{name}_grey"]
    x = gaussian_noise(x, params[f"{name}_gaussian"], seed, grey)
    return poisson_noise(x, params[f"{name}_poisson"], seed, grey).clamp(0, 1)


def _coded(x: Tensor, quality: Tensor) -> Tensor:
    """Send the samples whose quality is above 0 through JPEG; the others are clamped to [0, 1]."""
    return replaced(quality > 0, x.clamp(0, 1), lambda some, members: _in_parts(jpeg, some, quality[members]))


def _in_parts(apply: Callable[[Tensor, Tensor], Tensor], x: Tensor, params: Tensor) -> Tensor:
    """Apply a function to so many samples at once as a CPU's caches hold."""
    samples = len(x) if x.is_cuda else max(1, _PIXELS_IN_CACHE * torch.get_num_threads() // x[0].numel())
    return torch.cat([apply(*part) for part in zip(x.split(samples), params.split(samples), strict=True)])
