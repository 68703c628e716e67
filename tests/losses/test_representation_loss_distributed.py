"""The representation losses on two processes: loss and gradients are those of one process on the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from bsr_plugins.losses import EnergyDistanceLoss, KLDivergenceLoss, RepresentationLoss
from bsr_plugins.whole_batch import gather_batch

RANKS, BATCH, FEATURES, DIM = 2, 3, 5, 4
LOSSES: dict[str, RepresentationLoss] = {
    "gaussian": EnergyDistanceLoss(1.0, num_samples=8),
    "exponential": EnergyDistanceLoss(0.5, "exponential", num_samples=3, divide_by_dim=True),
    "kl": KLDivergenceLoss(1.0),
}
TOLERANCE = 1e-9  # all is computed in float64

Outcome = dict[str, Tensor]


def whole_batch() -> Tensor:
    return torch.randn(RANKS * BATCH, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def encoder() -> nn.Module:
    net = nn.Linear(FEATURES, DIM, dtype=torch.float64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.linspace(-1, 1.5, parameter.numel()).sin().view_as(parameter))
    return net


def step(net: nn.Module, batch: Tensor, loss_name: str) -> Outcome:
    """One backward pass; the loss, and the gradient of each parameter."""
    loss = LOSSES[loss_name](net(batch), torch.Generator().manual_seed(2))
    loss.backward()
    gradients = {
        name.removeprefix("module."): p.grad.clone() for name, p in net.named_parameters() if p.grad is not None
    }
    return {"loss": loss.detach(), **gradients}


def run_rank(rank: int, folder: str) -> None:
    """One rank with its part of the batch; saves what each loss gave."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    part = whole_batch()[rank::RANKS]
    outcomes = {name: step(DistributedDataParallel(encoder()), part, name) for name in LOSSES}
    with torch.no_grad():
        outcomes["gathered"] = {"batch": gather_batch(part.repeat(1, 2)[:, :FEATURES])}
        single = KLDivergenceLoss(1.0)(part[:1], torch.Generator())  # one representation for each rank is enough
    outcomes["single"] = {"loss": single}
    torch.save(outcomes, f"{folder}/rank{rank}.pth")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Outcome]]:
    folder = tmp_path_factory.mktemp("ranks")
    start_processes(run_rank, (str(folder),), nprocs=RANKS, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_are_those_of_one_process(ranks: list[dict[str, Outcome]], name: str) -> None:
    expected = step(encoder(), whole_batch(), name)
    assert set(expected) == {"loss", "weight", "bias"}
    for outcomes in ranks:
        for key, value in expected.items():
            assert torch.allclose(outcomes[name][key], value, rtol=TOLERANCE, atol=TOLERANCE), key


def test_the_batch_is_gathered_in_the_order_of_one_process(ranks: list[dict[str, Outcome]]) -> None:
    for outcomes in ranks:
        assert torch.equal(outcomes["gathered"]["batch"], whole_batch())


def test_the_least_batch_is_counted_over_ranks(ranks: list[dict[str, Outcome]]) -> None:
    expected = KLDivergenceLoss(1.0)(whole_batch()[:RANKS], torch.Generator())
    for outcomes in ranks:
        assert torch.allclose(outcomes["single"]["loss"], expected)


def test_one_process_keeps_its_batch() -> None:
    batch = whole_batch()
    assert gather_batch(batch) is batch
