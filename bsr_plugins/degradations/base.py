"""What every degradation offers, whoever runs it: a dataset worker, the training device, validation, a script."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bsr_plugins.blocks import build_from_block
from bsr_plugins.degradations.params import Params
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.registration import Registry


class Degradation(ABC):
    """Turns HR images into LR ones. Drawing the parameters and applying them are two steps.

    A class is registered under its name in option files, e.g. `@DEGRADATIONS.register("ClassicalDegradation")`. Its
    constructor takes the other keys of the block, among them `scale`.
    """

    scale: int
    kernel_size: int | None = None
    """Taps per axis of the one kernel that is a sample's blur; None where the blur is no single kernel."""

    def kernels(self, params: Params) -> Tensor:  # noqa: ARG002
        """Return the blur kernels, shape (B, kernel_size, kernel_size), float32 on the CPU.

        Raises:
            BSRError: The blur is no single kernel.
        """
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
