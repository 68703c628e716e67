"""Batch normalisation on two processes: outputs, gradients and statistics are those of one with the whole batch."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes

from bsr_plugins.archs import ContrastiveEncoder
from bsr_plugins.models.synchronised_batch_norm import synchronised

RANKS, BATCH, CHANNELS, STEPS = 2, 6, 3, 3
TOLERANCE = 1e-12  # all is computed in float64
CPU = torch.device("cpu")
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "2d": (nn.BatchNorm2d(CHANNELS), (4, 5)),
    "1d": (nn.BatchNorm1d(CHANNELS, eps=0.1, momentum=0.3), ()),
    "cumulative": (nn.BatchNorm2d(CHANNELS, momentum=None), (2, 2)),
    "plain": (nn.BatchNorm2d(CHANNELS, affine=False), (1, 1)),
    "untracked": (nn.BatchNorm1d(CHANNELS, track_running_stats=False), (7,)),
}
Outcome = dict[str, Any]


def batch_at(step: int, size: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    batch = torch.randn(BATCH, CHANNELS, *size, generator=generator, dtype=torch.float64)
    return batch + 100 + torch.arange(BATCH).view(-1, *(1,) * (batch.dim() - 1))  # ranks' means differ


def run(layer: nn.Module, size: tuple[int, ...], part: slice) -> Outcome:
    """Train for some steps on a part of every batch, and evaluate."""
    network = nn.Sequential(layer, nn.LeakyReLU(0.1, inplace=True)).double()
    outputs: list[Tensor] = []
    gradients: list[Tensor] = []
    for step in range(STEPS):
        batch = batch_at(step, size)[part].requires_grad_()
        output = network(batch)
        # A rank's loss is a sum over its part, so that the gradients of the images are those of one process.
        (output * torch.cos(output.detach() + 1)).sum().backward()
        outputs.append(output.detach())
        assert batch.grad is not None
        gradients.append(batch.grad)
    with torch.no_grad():
        keyed = network(batch_at(STEPS, size)[part])
    network.eval()
    with torch.no_grad():
        tested = network(batch_at(STEPS, size)[:1])
    parameters = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {
        "rows": torch.stack([*outputs, *gradients, keyed], dim=1),
        "tested": tested,
        "state": dict(network.state_dict()),
        "parameters": parameters,
    }


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    part = slice(rank, None, RANKS)
    found = {name: run(synchronised(layer, CPU), size, part) for name, (layer, size) in LAYERS.items()}
    single = synchronised(nn.BatchNorm1d(CHANNELS).double(), CPU)(batch_at(0, ())[rank : rank + 1])
    half = synchronised(nn.BatchNorm2d(CHANNELS), CPU)(batch_at(0, (8, 8))[part].bfloat16())
    torch.save({**found, "single": single.detach(), "half": half.detach()}, f"{folder}/rank{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    start_processes(run_rank, (str(folder),), nprocs=RANKS, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", LAYERS)
def test_two_halves_are_a_whole(ranks: list[dict[str, Any]], name: str) -> None:
    layer, size = LAYERS[name]
    whole = run(copy.deepcopy(layer), size, slice(None))
    halves = [outcome[name] for outcome in ranks]
    together = torch.stack([half["rows"] for half in halves], dim=1).flatten(0, 1)
    torch.testing.assert_close(together, whole["rows"], rtol=0, atol=TOLERANCE)
    for half in halves:
        assert half["state"].keys() == whole["state"].keys(), "a checkpoint is the same with and without"
        for key, value in whole["state"].items():
            torch.testing.assert_close(half["state"][key], value, rtol=0, atol=TOLERANCE)
            assert torch.equal(half["state"][key], halves[0]["state"][key]), "equal on all ranks"
        if name != "untracked":
            torch.testing.assert_close(half["tested"], whole["tested"], rtol=0, atol=TOLERANCE)
    for key, gradient in whole["parameters"].items():
        summed = sum(half["parameters"][key] for half in halves)
        torch.testing.assert_close(summed, gradient, rtol=0, atol=1e3 * TOLERANCE)


def test_one_value_on_each_rank_is_enough(ranks: list[dict[str, Any]]) -> None:
    expected = nn.BatchNorm1d(CHANNELS).double()(batch_at(0, ())[:RANKS])
    torch.testing.assert_close(torch.cat([outcome["single"] for outcome in ranks]), expected, rtol=0, atol=TOLERANCE)


def test_half_precision_is_normalised_in_single(ranks: list[dict[str, Any]]) -> None:
    expected = nn.BatchNorm2d(CHANNELS)(batch_at(0, (8, 8)).bfloat16().float())
    found = torch.stack([outcome["half"] for outcome in ranks], dim=1).flatten(0, 1)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)


def test_one_process_has_torchs() -> None:
    plain = nn.BatchNorm2d(CHANNELS).double()
    ours, batch = synchronised(copy.deepcopy(plain), CPU), batch_at(0, (4, 4))
    for training in (True, False):
        for layer in (plain, ours):
            layer.train(training)
        assert torch.equal(plain(batch), ours(batch))


def test_a_network_keeps_its_layers() -> None:
    network = ContrastiveEncoder(num_feat=4)
    before = {name: value.data_ptr() for name, value in network.state_dict().items()}
    modules = list(network.modules())
    network.eval()
    assert synchronised(synchronised(network, CPU), CPU) is network
    copied = copy.deepcopy(network)
    norms: list[Any] = [module for module in copied.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.forward.__self__ is norm for norm in norms] == [True] * 6
    assert {name: value.data_ptr() for name, value in network.state_dict().items()} == before
    assert list(network.modules()) == modules
    assert not any(module.training for module in modules)


def test_for_cuda_it_is_torchs() -> None:
    network = synchronised(ContrastiveEncoder(num_feat=4), torch.device("cuda"))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in network.modules()) == 6
