"""Degradations: HR images in, LR images out, as tensors on any device. Knows torch, not BasicSR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsr_plugins.blocks import build_from_block
from bsr_plugins.degradations.base import DEGRADATIONS, Degradation
from bsr_plugins.degradations.classical import ClassicalDegradation
from bsr_plugins.degradations.distance import Alignment, degraded_distance, sigma_align
from bsr_plugins.degradations.params import Params, classical_params
from bsr_plugins.degradations.protocols import (
    PROTOCOLS,
    Protocol,
    Setting,
    build_protocol,
    protocol_degradation,
    protocol_settings,
    with_noise_seed,
)
from bsr_plugins.degradations.samplers import SAMPLERS, AdaptiveSampler, Sampler
from bsr_plugins.degradations.second_order import SecondOrderDegradation
from bsr_plugins.degradations.stages import STAGES, Blur, LRStage, SeparableBlur, Stage
from bsr_plugins.errors import OptionError

__all__ = [
    "DEGRADATIONS",
    "PROTOCOLS",
    "SAMPLERS",
    "STAGES",
    "AdaptiveSampler",
    "Alignment",
    "Blur",
    "ClassicalDegradation",
    "Degradation",
    "LRStage",
    "Params",
    "Protocol",
    "Sampler",
    "SecondOrderDegradation",
    "SeparableBlur",
    "Setting",
    "Stage",
    "build_degradation",
    "build_protocol",
    "classical_params",
    "degraded_distance",
    "protocol_degradation",
    "protocol_settings",
    "sigma_align",
    "with_noise_seed",
]


def build_degradation(block: Mapping[str, Any], scale: int | None = None, where: str = "degradation") -> Degradation:
    """Build the degradation that an option file's `degradation:` block describes.

    Args:
        block: `type` names the class, the other keys are its arguments. It is left as it was.
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
