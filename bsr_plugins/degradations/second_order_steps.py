"""The steps of the second-order pipeline, each applied to a batch with its drawn parameters.

All take images of shape (B, V, 3, H, W), float32 or float64, and parameters as `SecondOrderDegradation.sample` gives
them. Samples of which a step does not hold stay as they are, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bsr_plugins.degradations.blur import blur
from bsr_plugins.degradations.jpeg import jpeg
from bsr_plugins.degradations.kernels import generalized_gaussian_kernels, plateau_kernels, sinc_kernels
from bsr_plugins.degradations.noise import gaussian_noise, poisson_noise
from bsr_plugins.degradations.params import Params, replaced
from bsr_plugins.degradations.second_order_options import MODES
from bsr_plugins.degradations.second_order_params import GAUSSIAN, NONE, PLATEAU, SINC, is_among

_PIXELS_IN_CACHE = 1 << 18  # with more at once, a CPU's core falls out of its cache (JPEG takes twice the time)
_SHAPE = ("lambda1", "lambda2", "theta", "beta")
_KINDS: tuple[tuple[tuple[int, ...], Callable[..., Tensor], tuple[str, ...]], ...] = (
    (GAUSSIAN, generalized_gaussian_kernels, _SHAPE),
    (PLATEAU, plateau_kernels, _SHAPE),
    ((SINC,), sinc_kernels, ("cutoff",)),
)


def kernels_of(params: Params, name: str, like: Tensor) -> Tensor:
    """Return the kernels of a blur, all of a kind at once.

    Args:
        params: Parameters of B samples.
        name: Whose blur: `first`, `second` or `final`.
        like: What gives device and dtype; the kernels are computed in float64.

    Returns:
        Tensor: Kernels, shape (B, k, k), k the most taps of any; a unit impulse where there is no blur.
    """
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


def blurred(x: Tensor, kernels: Tensor, kinds: Tensor) -> Tensor:
    """Blur the samples whose kind of kernel is not `NONE`, with reflected borders."""

    def some(images: Tensor, members: Tensor) -> Tensor:
        chosen = kernels[members.to(kernels.device)].split(_samples_in_cache(images))
        parts = zip(images.split(_samples_in_cache(images)), chosen, strict=True)
        return torch.cat([blur(part, kernel) for part, kernel in parts])

    return replaced(kinds != NONE, x, some)


def resized(x: Tensor, mode: int, to: float | tuple[int, int]) -> Tensor:
    """Resize as `interpolate` does, without antialiasing.

    Args:
        x: Images.
        mode: Index into `MODES`.
        to: A factor, by which pixels are placed exactly while sizes are rounded down; or the wanted (H, W).
    """
    if to in (1.0, tuple(x.shape[-2:])):
        return x
    target: dict[str, Any] = {"size": to} if isinstance(to, tuple) else {"scale_factor": to}
    made: Tensor = F.interpolate(x.flatten(0, 1), mode=MODES[mode], **target)
    return made.view(*x.shape[:2], *made.shape[1:])


def noisy(x: Tensor, params: Params, name: str) -> Tensor:
    """Add a round's noise, Gaussian or Poisson, and clamp to [0, 1]."""
    seed, grey = params[f"{name}_noise_seed"], params[f"{name}_grey"]
    x = gaussian_noise(x, params[f"{name}_gaussian"], seed, grey)
    return poisson_noise(x, params[f"{name}_poisson"], seed, grey).clamp(0, 1)


def coded(x: Tensor, quality: Tensor) -> Tensor:
    """Send the samples whose quality is above 0 through JPEG; the others are clamped to [0, 1]."""

    def some(images: Tensor, members: Tensor) -> Tensor:
        chosen = quality[members].split(_samples_in_cache(images))
        parts = zip(images.split(_samples_in_cache(images)), chosen, strict=True)
        return torch.cat([jpeg(part, qualities) for part, qualities in parts])

    return replaced(quality > 0, x.clamp(0, 1), some)


def _samples_in_cache(x: Tensor) -> int:
    return len(x) if x.is_cuda else max(1, _PIXELS_IN_CACHE * torch.get_num_threads() // x[0].numel())
