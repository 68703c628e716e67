"""Parameters, and what every degradation offers that draws and applies them.

Whoever runs a degradation does it by these: a dataset worker, the training device, validation, a script.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bsr_plugins.blocks import build_from_block
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.registration import Registry

Params = dict[str, Tensor]
"""Parameters by name, CPU tensors whose first dimension is the batch. They fix the result and can be replayed."""

SEED = "noise_seed"
"""The parameter from which all random fields of a sample are drawn."""

MAX_SEED = (1 << 63) - 1
GREY_LEVELS = 255.0


def classical_params(
    lambda1: float | Sequence[float] = 0.0,
    lambda2: float | Sequence[float] | None = None,
    theta: float | Sequence[float] = 0.0,
    noise_level: float | Sequence[float] = 0.0,
    noise_seed: int | Sequence[int] = 0,
    jpeg_quality: float | Sequence[float] = 0.0,
) -> Params:
    """Write down the parameters of classical degradations, instead of drawing them.

    They are CPU tensors, shape (B,), float64 but for `noise_seed` (int64); B = 1 if all arguments are numbers. Those of
    further stages, e.g. `motion_length`, can be added as float64 tensors.

    Args:
        lambda1: Widths (standard deviations in HR pixels) along the kernel's first axis, ≥ 0; 0 means no blur.
        lambda2: Widths along the second axis; left out, the kernels are isotropic.
        theta: Angles of the first axis, in radians.
        noise_level: Noise levels on the 0–255 scale, ≥ 0; 0 means none.
        noise_seed: Seeds of the noise fields in [0, 2^63).
        jpeg_quality: Qualities in [1, 100], whole or not; 0 means no JPEG.
    """
    names = ("lambda1", "lambda2", "theta", "noise_level", "jpeg_quality", SEED)
    written = (lambda1, lambda1 if lambda2 is None else lambda2, theta, noise_level, jpeg_quality)
    columns = [torch.as_tensor(value, dtype=torch.float64).reshape(-1) for value in written]
    columns.append(torch.as_tensor(noise_seed, dtype=torch.int64).reshape(-1))
    return dict(zip(names, (column.clone() for column in torch.broadcast_tensors(*columns)), strict=True))


def select(params: Params, members: Tensor) -> Params:
    """Return the parameters of some samples, given as indices or as a mask."""
    return {name: column[members] for name, column in params.items()}


def check_columns(params: Params, names: Iterable[str], count: int) -> None:
    """Refuse parameters of which one is missing, or given for another number of samples."""
    for name in names:
        if name not in params or len(params[name]) != count:
            raise BSRError(f"degradation: the parameter {name} is missing or not given for {count} samples")


def require(params: Params, name: str, fine: Tensor, expected: str) -> None:
    """Refuse a parameter that is not fine for all samples; `fine` says so for each, bool, shape (B,)."""
    if not bool(fine.all()):
        raise BSRError(f"degradation: the parameter {name} is {params[name][~fine][0].item()}, expected {expected}")


def check_quality(params: Params, name: str) -> None:
    """Refuse JPEG qualities that libjpeg does not know."""
    fine = (params[name] == 0) | (params[name] >= 1) & (params[name] <= 100)
    require(params, name, fine, "a number in [1, 100], or 0 for none")


def rounded(lq: Tensor) -> Tensor:
    """Round images to 8 bits and clamp them to [0, 1]."""
    return (lq.clamp(0, 1) * GREY_LEVELS).round() / GREY_LEVELS


def replaced(chosen: Tensor, x: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Replace the chosen samples of a batch (bool, shape (B,), on the CPU); the others stay as they are, bit for bit.

    `apply` makes images of the same shape out of the chosen ones; it gets these and their indices, on the CPU.
    """
    members = chosen.nonzero().flatten()
    if not len(members):
        return x
    if len(members) == len(x):  # spare the copies
        return apply(x, members)
    there = members.to(x.device)
    return x.index_copy(0, there, apply(x[there], members))


def by_group(
    x: Tensor,
    params: Params,
    groups: Sequence[Any],
    size: tuple[int, int],
    apply: Callable[[Any, Tensor, Params], Tensor],
) -> Tensor:
    """Make images (B, …, H, W) into ones of another size, group by group.

    `groups` names each sample's group; `apply` takes a group, its images and their parameters.
    """
    members: dict[Any, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if len(members) == 1:  # spare the copies
        return apply(groups[0], x, params)
    made = x.new_empty(*x.shape[:-2], *size)
    for group, indices in members.items():
        here = torch.tensor(indices)
        there = here.to(x.device)
        made = made.index_copy(0, there, apply(group, x[there], select(params, here)))
    return made


class Degradation(ABC):
    """Turns HR images into LR ones. Drawing the parameters and applying them are two steps.

    A class is registered under its name in option files, e.g. `@DEGRADATIONS.register("ClassicalDegradation")`. Its
    constructor takes the other keys of the block, among them `scale`.
    """

    scale: int
    kernel_size: int | None = None
    """Taps per axis of the one kernel that is a sample's blur; None where the blur is no single kernel."""

    def kernels(self, params: Params) -> Tensor:  # noqa: ARG002
        """Return the blur kernels, shape (B, kernel_size, kernel_size), float32 on the CPU; refuse where none is."""
        raise BSRError(f"{type(self).__name__}: has no single blur kernel, expected a degradation that has one")

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` or `load_calibration` must be called before `sample`."""
        return False

    @abstractmethod
    def smallest_side(self, params: Params | None = None) -> int:
        """Return the shortest side, in HR pixels, of images that `params`, or what is drawn, can be applied to."""

    @abstractmethod
    def sample(self, batch_size: int, generator: torch.Generator) -> Params:
        """Draw the parameters of `batch_size` degradations from a CPU generator."""

    def target(self, gt: Tensor) -> Tensor:
        """Return what is to be degraded and reproduced, of HR images (B, …, 3, H, W): by default these themselves."""
        return gt

    @abstractmethod
    def __call__(self, gt: Tensor, params: Params) -> Tensor:
        """Degrade images.

        Args:
            gt: RGB images in [0, 1], shape (B, …, 3, H, W), typically (B, V, 3, H, W) with V views of one degradation
                each; H and W multiples of the scale. Any device. Half precision is computed in float32.
            params: Parameters as `sample` gives them, for B samples, on the CPU.

        Returns:
            Tensor: LR images, shape (B, …, 3, H/s, W/s), dtype and device of `gt`.

        Raises:
            BSRError: Shapes do not fit, images are too small for the kernels, or a parameter is out of range.
        """

    def check_images(self, gt: Tensor) -> None:
        """Refuse what are no RGB images, shape (B, …, 3, H, W), with sides that are multiples of the scale."""
        height, width = gt.shape[-2:]
        if gt.dim() < 4 or gt.shape[-3] != 3:
            raise BSRError(f"degradation: images of shape {tuple(gt.shape)}, expected (B, …, 3, H, W)")
        if height % self.scale or width % self.scale:
            raise BSRError(
                f"degradation: images of {height}x{width} pixels, expected sides that are multiples of {self.scale}"
            )

    @abstractmethod
    def clean(self, gt: Tensor) -> Tensor:
        """Only downsample images: the LR from which degraded distances are measured."""

    def calibrate(self, images: Tensor) -> None:  # noqa: B027 (nothing to do by default)
        """Measure on HR images, shape (N, 3, P, P) in [0, 1], what adaptive samplers have to know."""

    def calibration(self) -> dict[str, Any]:
        """Return what `calibrate` found, as plain numbers, lists and dicts."""
        return {}

    def load_calibration(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take what `calibration` returned, instead of measuring."""


DEGRADATIONS: Registry[Callable[..., Degradation]] = Registry("degradation")
"""All degradations by their names in option files."""


def build_degradation(block: Mapping[str, Any], scale: int | None = None, where: str = "degradation") -> Degradation:
    """Build the degradation that an option file's `degradation:` block describes.

    Args:
        block: `type` names the class, the other keys are its arguments.
        scale: The run's scale: the degradation's, where the block names none, and else what it has to be.
        where: The block's place in the option file, for messages.

    Raises:
        OptionError: A name or key is unknown, a value is out of range, or the block is for another scale.
    """
    if scale is not None and isinstance(block, Mapping):
        block = {"scale": scale, **block}
    degradation = build_from_block(block, DEGRADATIONS, where)
    if scale is not None and degradation.scale != scale:
        raise OptionError(f"{where}.scale: {degradation.scale}, expected scale, which is {scale!r}")
    return degradation
