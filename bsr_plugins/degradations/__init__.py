"""Degradations: HR images in, LR images out, as tensors on any device. Knows torch, not BasicSR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bsr_plugins.degradations.base import Degradation, Params
from bsr_plugins.degradations.classical import ClassicalDegradation, classical_params
from bsr_plugins.degradations.distance import Alignment, degraded_distance, sigma_align
from bsr_plugins.degradations.protocols import (
    PROTOCOLS,
    Setting,
    protocol_degradation,
    protocol_settings,
    with_noise_seed,
)
from bsr_plugins.options import build_from_block

__all__ = [
    "DEGRADATIONS",
    "PROTOCOLS",
    "Alignment",
    "ClassicalDegradation",
    "Degradation",
    "Params",
    "Setting",
    "build_degradation",
    "classical_params",
    "degraded_distance",
    "protocol_degradation",
    "protocol_settings",
    "sigma_align",
    "with_noise_seed",
]

DEGRADATIONS: dict[str, Callable[..., Degradation]] = {"ClassicalDegradation": ClassicalDegradation}


def build_degradation(block: Mapping[str, Any]) -> Degradation:
    """Build the degradation that an option file's `degradation:` block describes.

    Args:
        block: `type` names the class, the other keys are its arguments. It is left as it was.

    Raises:
        OptionError: A name or key is unknown, or a value out of range.
    """
    return build_from_block(block, DEGRADATIONS, "degradation")
