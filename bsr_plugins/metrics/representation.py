"""Numbers that tell whether a learned representation is healthy."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bsr_plugins.precision import at_least_float32


@torch.no_grad()
def embedding_spread(embeddings: Tensor) -> Tensor:
    """Measure how embeddings spread over the sphere: 0 where they collapsed, about 1 where they are even.

    Each embedding is scaled to length 1; the standard deviation over the batch of every dimension is multiplied by √D
    and averaged over the dimensions (the collapse test of SimSiam, Chen and He, CVPR 2021). It divides by B and not by
    B − 1, so it never exceeds 1; B embeddings drawn evenly give about √(1 − 1/B).

    Shape: embeddings (B, D) of any length to 0-dim, in float32 at least.
    """
    unit = F.normalize(at_least_float32(embeddings), dim=1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(unit.shape[1])
