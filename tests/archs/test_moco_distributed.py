"""MoCo on two processes: every rank gets the keys of all, and one DDP step works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from bsr_plugins.archs import AACLNet, MoCo
from bsr_plugins.losses import InfoNCELoss

RANKS, BATCH, DIM = 2, 2, 8
QUEUE_SIZE = 7  # no multiple of the 4 keys of a step
STEPS = 2
ENCODER = {"type": "ContrastiveEncoder", "num_feat": 2}
SMALL: dict[str, Any] = {"num_feat": 4, "num_group": 1, "num_block": 1, "encoder_num_feat": 2}


def numbered_keys(rank: int, step: int) -> torch.Tensor:
    """Keys that tell their rank, step and place."""
    return torch.arange(BATCH * DIM).view(BATCH, DIM) + 1000.0 * rank + 10000.0 * step


def train_rank(rank: int, folder: str) -> None:
    """One rank: numbered keys into a queue, then a real step under DDP; saves what it ended with."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    torch.manual_seed(rank)
    numbered = MoCo(encoder=ENCODER, dim=DIM, queue_size=QUEUE_SIZE)
    for step in range(STEPS):
        numbered.enqueue(numbered_keys(rank, step))

    net, moco = AACLNet(**SMALL), MoCo(encoder=ENCODER, dim=DIM, queue_size=QUEUE_SIZE)
    moco.start_from(net.encoder)
    wrapped_net, wrapped_moco = DistributedDataParallel(net), DistributedDataParallel(moco)
    optimizer = torch.optim.SGD([p for p in [*net.parameters(), *moco.parameters()] if p.requires_grad], 0.1)
    for _ in range(STEPS):
        sr, representation = wrapped_net(torch.rand(BATCH, 3, 12, 12), return_representation=True)
        query, keys = wrapped_moco(representation, torch.rand(BATCH, 3, 12, 12))
        loss = sr.abs().mean() + InfoNCELoss()(query, keys, moco.queue)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moco.update_key_encoder(net.encoder)
        moco.enqueue(keys)
    torch.save({"numbered": numbered.state_dict(), "moco": moco.state_dict()}, f"{folder}/rank{rank}.pth")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    start_processes(train_rank, (str(folder),), nprocs=RANKS, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS)]


def test_each_rank_gets_the_keys_of_all(states: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    expected = MoCo(encoder=ENCODER, dim=DIM, queue_size=QUEUE_SIZE)
    for step in range(STEPS):
        expected.enqueue(torch.stack([numbered_keys(rank, step) for rank in range(RANKS)], dim=1).flatten(0, 1))
    for state in states:
        for name in ("queue", "queue_ptr", "queue_filled"):
            assert torch.equal(state["numbered"][name], expected.state_dict()[name]), name


def test_key_side_and_queue_stay_equal_over_ranks_under_ddp(
    states: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    first, second = (state["moco"] for state in states)
    fresh = MoCo(encoder=ENCODER, dim=DIM, queue_size=QUEUE_SIZE).queue
    assert not torch.equal(first["queue"][:, :QUEUE_SIZE], fresh)
    assert int(first["queue_filled"]) == QUEUE_SIZE
    for name in first:
        if "running" not in name:
            assert torch.allclose(first[name], second[name], atol=1e-6), name
