"""Losses. The `*_loss.py` modules register theirs in BasicSR's `LOSS_REGISTRY`."""

from bsr_plugins.losses.alignment_loss import AlignmentLoss
from bsr_plugins.losses.contrastive_loss import InfoNCELoss
from bsr_plugins.losses.modulated_loss import ModulatedL1Loss, modulation, redegradation_distance
from bsr_plugins.losses.representation_loss import EnergyDistanceLoss, KLDivergenceLoss, RepresentationLoss

__all__ = [
    "AlignmentLoss",
    "EnergyDistanceLoss",
    "InfoNCELoss",
    "KLDivergenceLoss",
    "ModulatedL1Loss",
    "RepresentationLoss",
    "modulation",
    "redegradation_distance",
]
