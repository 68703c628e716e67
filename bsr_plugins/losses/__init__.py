"""Losses. The `*_loss.py` modules register theirs in BasicSR's `LOSS_REGISTRY`."""

from bsr_plugins.losses.contrastive_loss import InfoNCELoss

__all__ = ["InfoNCELoss"]
