"""Momentum contrast: the key side and the queue that a contrastive encoder is trained against."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.archs.arguments import check_channels
from bsr_plugins.blocks import build_from_block, integer, number
from bsr_plugins.errors import OptionError
from bsr_plugins.precision import at_least_float32
from bsr_plugins.registration import register
from bsr_plugins.seeding import generator_at
from bsr_plugins.whole_batch import gather_batch


@register(ARCH_REGISTRY)
class MoCo(nn.Module):
    """Key side and queue of contrastive training (MoCo, He et al., CVPR 2020; settings of DASR).

    A network for training only, the option file's `network_moco`: the projection head of the queries, a key encoder and
    key projection that follow the trained ones with momentum, and a queue of past keys. All of it is in the state dict.
    DASR's released code loses queue and key encoder, does not gather keys over GPUs and lets the key encoder stand
    still under data parallelism. Batch normalisation in the encoders sees a rank's part of the batch; the training
    models let it see all ranks'.

    The order of a step keeps the queue unchanged for as long as autograd needs it:

    1. `query, keys = moco(representation, key_lq)`
    2. the loss with `moco.queue` as the negatives, and `queue_accuracy`
    3. backward and the optimiser's step
    4. `update_key_encoder(encoder)`
    5. `enqueue(keys)`

    With accumulated gradients 4 comes once for each step of the optimiser, 5 after each backward.

    Args:
        encoder: Block that builds the key encoder, equal to the trained one: any arch with an attribute
            `representation_dim`. Default: `{type: ContrastiveEncoder}`.
        dim: Size of the representation and of the keys, in [1, 4096].
        queue_size: Number of keys in the queue, in [1, 16777216]; it need not be a multiple of the batch.
        momentum: Share of its old value that a key parameter keeps at each update, in [0, 1].
    """

    queue: Tensor  # unit vectors (dim, queue_size), at first random ones as in MoCo, equal in every run
    queue_ptr: Tensor  # where the next key goes
    queue_filled: Tensor  # how many entries are keys and no longer random vectors

    def __init__(
        self, encoder: Mapping[str, Any] | None = None, dim: int = 256, queue_size: int = 8192, momentum: float = 0.999
    ) -> None:
        super().__init__()
        check_channels(dim=dim)
        integer(queue_size, "queue_size", 1, 2**24)
        self.momentum = number(momentum, "momentum", 0.0, 1.0)
        block = {"type": "ContrastiveEncoder"} if encoder is None else encoder
        self.key_encoder: nn.Module = build_from_block(block, dict(iter(ARCH_REGISTRY)), "encoder")
        found = getattr(self.key_encoder, "representation_dim", None)
        if found is None:
            expected = "an arch with the attribute representation_dim"
            raise OptionError(f"encoder.type: {block['type']!r} is no encoder, expected {expected}")
        if found != dim:
            raise OptionError(f"dim: {dim}, expected {found}, which is the size that the encoder gives")
        act = nn.LeakyReLU(0.1, inplace=True)
        self.projection_q = nn.Sequential(nn.Linear(dim, dim), act, nn.Linear(dim, dim))
        self.projection_k = copy.deepcopy(self.projection_q).requires_grad_(False)
        self.key_encoder.requires_grad_(False)
        start = torch.randn(dim, queue_size, generator=generator_at(0, "moco queue"))
        self.register_buffer("queue", F.normalize(start, dim=0))
        self.register_buffer("queue_ptr", torch.zeros((), dtype=torch.int64))
        self.register_buffer("queue_filled", torch.zeros((), dtype=torch.int64))

    def forward(self, representation: Tensor, key_lq: Tensor) -> tuple[Tensor, Tensor]:
        """Project the trained encoder's representations (B, dim) to queries, and encode key images.

        Key images have the same degradations, RGB in [0, 1]: one for each query, (B, C, h, w), or M, (B, M, C, h, w).
        Queries (B, dim) have a gradient, keys (B, dim) or (B, M, dim) none; both are unit vectors in float32 at least.
        """
        query = F.normalize(at_least_float32(self.projection_q(representation)), dim=-1)
        with torch.no_grad():
            keys = self.projection_k(self.key_encoder(key_lq.flatten(0, -4)))
            keys = F.normalize(at_least_float32(keys), dim=-1)
        return query, keys.reshape(*key_lq.shape[:-3], -1)

    @torch.no_grad()
    def start_from(self, encoder: nn.Module) -> None:
        """Copy the trained encoder and projection into the key side, parameters and buffers; for a fresh run.

        Raises:
            OptionError: The key encoder is not built like this one; the error names `encoder`, the argument of `MoCo`.
        """
        for key_net, net in self._pairs(encoder):
            key_net.load_state_dict(net.state_dict())

    @torch.no_grad()
    def update_key_encoder(self, encoder: nn.Module) -> None:
        """Move each key parameter to `momentum`·key + (1 − `momentum`)·trained; errors as in `start_from`.

        Batch normalisation's running statistics stay as they are: the key encoder's come from its forward passes in
        training mode.
        """
        for key_net, net in self._pairs(encoder):
            for key, trained in zip(key_net.parameters(), net.parameters(), strict=True):
                key.lerp_(trained, 1.0 - self.momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Put keys (B, dim) or (B, M, dim), as many on each rank, into the queue, in the place of the oldest.

        All ranks get the same queue, which is that of one process with their batches together. The queue wraps around
        at its end, wherever that falls in the batch. `OptionError`: there are more keys than places.
        """
        gathered = gather_batch(keys.detach()).flatten(0, -2)
        count, size = len(gathered), self.queue.shape[1]
        if count > size:
            raise OptionError(f"queue_size: {size}, expected at least {count}, the keys of one step")
        places = (self.queue_ptr + torch.arange(count, device=self.queue.device)) % size
        self.queue.index_copy_(1, places, gathered.T.to(self.queue))
        self.queue_ptr.add_(count).remainder_(size)
        self.queue_filled.add_(count).clamp_(max=size)

    @torch.no_grad()
    def queue_accuracy(self, query: Tensor, keys: Tensor) -> Tensor:
        """Measure how often a positive is nearer to its query than every key in the queue, 0-dim, in [0, 1].

        Queries are (B, dim), their positives (B, dim) or (B, M, dim), not yet in the queue. The random vectors of the
        start do not count: they are nearly orthogonal to anything, so beating them is trivial. Chance is
        1 / (1 + `queue_filled`); without keys in the queue it is 0.
        """
        query = query.to(self.queue)
        with torch.autocast(query.device.type, enabled=False):
            positive = torch.einsum("bd,bmd->bm", query, keys.to(query).reshape(len(query), -1, query.shape[1]))
            negative = query @ self.queue
        unfilled = torch.arange(self.queue.shape[1], device=query.device) >= self.queue_filled
        hardest = negative.masked_fill(unfilled, float("-inf")).amax(dim=1, keepdim=True)
        return (positive > hardest).to(query).mean() * (self.queue_filled > 0)

    def _pairs(self, encoder: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        """Pair each key network with its trained one, after checking that they are alike."""
        both = self.key_encoder, encoder
        ours, trained = (getattr(net, "img_range", None) for net in both)
        if ours != trained:
            raise OptionError(f"encoder.img_range: {ours}, expected {trained}, as in the encoder that is trained")
        our_layout, layout = ([(name, value.shape) for name, value in net.state_dict().items()] for net in both)
        if our_layout != layout:
            ours, trained = (f"{type(net).__name__}, {sum(p.numel() for p in net.parameters()):,}" for net in both)
            expected = f"the same ({trained} parameters, against {ours})"
            raise OptionError(f"encoder: builds another network than the encoder that is trained, expected {expected}")
        return [both, (self.projection_k, self.projection_q)]
