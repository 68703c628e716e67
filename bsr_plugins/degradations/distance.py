"""The degraded distance, and sigma-alignment, which chooses positives by it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bsr_plugins.degradations.base import GREY_LEVELS
from bsr_plugins.errors import BSRError


def degraded_distance(lq: Tensor, clean: Tensor) -> Tensor:
    """Return the RMSE in grey levels (0–255) between degraded and clean LR images in [0, 1], shape (…, C, h, w)."""
    return (lq - clean).square().mean((-3, -2, -1)).sqrt() * GREY_LEVELS


class Alignment(NamedTuple):
    """What `sigma_align` chose of B sets of candidates."""

    indices: Tensor  # which were kept, in rising order of distance, shape (B, m)
    std: Tensor  # standard deviation of their distances, in grey levels, shape (B,)
    accepted: Tensor  # whether that is at most `max_std`, bool, shape (B,)


def sigma_align(distances: Tensor, keep: int, max_std: float | None = None) -> Alignment:
    """Of K candidate patches with one degradation `keep` the m whose degraded distances, shape (B, K), vary least.

    Patches under one degradation differ in degraded distance with their content; positives should not. The m values of
    least standard deviation (the population's) are neighbours once sorted, so the best window is the exact minimum.
    Sets whose standard deviation is above `max_std`, in grey levels, are not accepted; None accepts all.

    Source: AACL's abstract ("sigma-alignment controls the SD among positive samples; we identify a subset with small
    degraded distance"); the search and the threshold are ours.
    """
    candidates = distances.shape[1]
    if not 1 <= keep <= candidates:
        raise BSRError(f"sigma_align: keep {keep} of {candidates} candidates, expected a number in [1, {candidates}]")
    ordered, order = distances.sort(dim=1)
    std, start = ordered.unfold(1, keep, 1).std(dim=2, correction=0).min(dim=1)
    indices = order.gather(1, start[:, None] + torch.arange(keep, device=distances.device))
    accepted = torch.ones_like(std, dtype=torch.bool) if max_std is None else std <= max_std
    return Alignment(indices, std, accepted)
