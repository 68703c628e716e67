"""Degradations the plain way, and as BasicSR itself runs them: what ours are checked and timed against.

The second-order pipeline is BasicSR's. Its dataset draws three kernels for every image in NumPy, in its loader's
workers; its model does the rest on batches. Here its functions are called in the dataset's order, and then the model's
`feed_data`. They draw from the global random generators of Python, NumPy and torch.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from basicsr.data.degradations import circular_lowpass_kernel, random_mixed_kernels
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.utils import DiffJPEG, USMSharp
from numpy.typing import NDArray
from torch import Tensor, nn

from bsr_plugins.degradations import Params, SecondOrderDegradation
from bsr_plugins.degradations.kernels import gaussian_kernels
from bsr_plugins.degradations.resize import border_indices, cubic
from bsr_plugins.degradations.second_order_options import FAMILIES, BlurOptions, RoundOptions

_TAPS = range(7, 22, 2)
_MOST_TAPS = 21
_LARGE_TAPS = 13
_ROTATION = (-math.pi, math.pi)


def gaussian_kernels_of(params: Params, kernel_size: int, like: Tensor) -> Tensor:
    """Return the 2-D kernels (B, k, k) of parameters that all blur, with the dtype and device of `like`."""
    return gaussian_kernels(params["lambda1"], params["lambda2"], params["theta"], kernel_size).to(like)


def plain_blur_bicubic(x: Tensor, kernels: Tensor, scale: int, border: str = "clamp") -> Tensor:
    """Blur at every HR pixel by a grouped `conv2d`, then gather 4·s taps per axis.

    Args:
        x: Images (B, V, C, H, W), H and W multiples of the scale.
        kernels: Kernels (B, k, k), one for the views of a sample.
        scale: Downsampling factor s.
        border: Border of the bicubic, `clamp` or `mirror`; the blur's is reflected.

    Returns:
        Images (B, V, C, H/s, W/s).
    """
    planes = x.flatten(0, 2)
    padded = F.pad(planes, (kernels.shape[-1] // 2,) * 4, mode="reflect")
    filters = kernels.repeat_interleave(len(planes) // len(x), 0)[:, None]
    blurred = F.conv2d(padded[None], filters, groups=len(planes))[0]
    indices, weights = _taps(x.shape[-2], scale, border, x.dtype, x.device)
    rows = (blurred[:, indices] * weights[:, :, None]).sum(2)
    indices, weights = _taps(x.shape[-1], scale, border, x.dtype, x.device)
    return (rows[:, :, indices] * weights).sum(-1).view(*x.shape[:3], rows.shape[1], len(indices))


@lru_cache
def _taps(size: int, scale: int, border: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where the bicubic reads and with which weights, both of shape (size / scale, 4 · scale)."""
    centres = (torch.arange(size // scale, dtype=torch.float64) + 0.5) * scale - 0.5
    indices = torch.ceil(centres - 2 * scale).long()[:, None] + torch.arange(4 * scale)
    weights = cubic((centres[:, None] - indices) / scale)
    weights /= weights.sum(1, keepdim=True)
    return border_indices(indices, size, border).to(device), weights.to(device, dtype)


class PlainSecondOrder(RealESRGANModel):  # type: ignore[misc]
    """BasicSR's RealESRGAN path from HR images to LR ones, without its networks, on any device.

    Its pool of training pairs, whose size is an option there, is as large as the batch and never full: pairs are
    written into it, and none are taken out. For the pool's sake `feed_data` sharpens twice.

    Args:
        scale: Downsampling factor.
        gt: Images of the shape and on the device of those that will be degraded, (B, 3, H, W), float32.
        usm: Whether to sharpen; BasicSR always does.
    """

    def __init__(self, scale: int, gt: Tensor, usm: bool = True) -> None:
        # What `RealESRGANModel` builds beyond this are networks and losses, and it puts all on a CUDA device.
        options = SecondOrderDegradation(scale)
        self.rounds = (options.first, options.second)
        self.final_sinc_prob = options.final.sinc_prob
        self.opt = {
            "scale": scale,
            "gt_size": gt.shape[-1],
            **_round_options(options.first, ""),
            **_round_options(options.second, "2"),
            "second_blur_prob": options.second.blur.prob,
        }
        self.is_train = True
        self.device = gt.device
        self.jpeger = DiffJPEG(differentiable=False).to(gt.device)
        self.usm_sharpener = USMSharp().to(gt.device) if usm else nn.Identity()
        self.queue_size = len(gt)
        self.queue_gt = torch.zeros_like(gt)
        self.queue_lr = gt.new_zeros(*gt.shape[:-2], gt.shape[-2] // scale, gt.shape[-1] // scale)

    def __call__(self, gt: Tensor) -> Tensor:
        """Draw kernels for square images, shape (B, 3, H, W), and degrade these; returns (B, 3, H/s, W/s)."""
        self.queue_ptr = 0
        self.feed_data({"gt": gt, **self.kernels(len(gt))})
        lq: Tensor = self.lq
        return lq

    def kernels(self, batch: int) -> dict[str, Tensor]:
        """Draw the kernels of a batch image by image, as the items of `RealESRGANDataset` do."""
        names = ("kernel1", "kernel2", "sinc_kernel")
        items = [(*map(_blur_kernel, (part.blur for part in self.rounds)), self._final_kernel()) for _ in range(batch)]
        columns = zip(*items, strict=True)
        return {
            name: torch.stack([torch.FloatTensor(kernel) for kernel in column])
            for name, column in zip(names, columns, strict=True)
        }

    def _final_kernel(self) -> NDArray[np.float64]:
        if np.random.uniform() < self.final_sinc_prob:  # noqa: NPY002
            taps = random.choice(_TAPS)
            return _sinc_kernel(np.random.uniform(np.pi / 3, np.pi), taps)  # noqa: NPY002
        pulse = np.zeros((_MOST_TAPS, _MOST_TAPS))
        pulse[_MOST_TAPS // 2, _MOST_TAPS // 2] = 1
        return pulse


def _blur_kernel(options: BlurOptions) -> NDArray[np.float64]:
    taps = random.choice(_TAPS)
    if np.random.uniform() < options.sinc_prob:  # noqa: NPY002
        lowest = np.pi / 3 if taps < _LARGE_TAPS else np.pi / 5
        return _sinc_kernel(np.random.uniform(lowest, np.pi), taps)  # noqa: NPY002
    kernel = random_mixed_kernels(
        FAMILIES,
        options.families.weights,
        taps,
        options.sigma,
        options.sigma,
        _ROTATION,
        options.betag,
        options.betap,
        noise_range=None,
    )
    return np.pad(kernel, (_MOST_TAPS - taps) // 2)


def _sinc_kernel(cutoff: float, taps: int) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = circular_lowpass_kernel(cutoff, taps, pad_to=_MOST_TAPS)
    return kernel


def _round_options(options: RoundOptions, suffix: str) -> dict[str, Any]:
    """Return a round's options under BasicSR's names."""
    named = {
        "resize_prob": options.resize.prob.weights,
        "resize_range": options.resize.scale,
        "gaussian_noise_prob": options.noise.gaussian_prob,
        "noise_range": options.noise.gaussian,
        "poisson_scale_range": options.noise.poisson,
        "gray_noise_prob": options.noise.grey_prob,
        "jpeg_range": options.jpeg.quality,
    }
    return {name + suffix: value for name, value in named.items()}
