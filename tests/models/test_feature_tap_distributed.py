"""A tap on two processes on the CPU, through what wraps and compiles a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from skimage import data
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from bsr_plugins.models.feature_tap import find_tap

RANKS, BATCH = 2, 4
TOLERANCE = 1e-9  # all is computed in float64


def photographs() -> Tensor:
    """A view of four photographs each (4, 1, 3, 48, 48), of which the first two are much darker."""
    photograph = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1) / 255
    cut = [photograph[:, top : top + 48, 30:78] for top in (0, 150, 300, 448)]
    return (torch.stack(cut) * torch.tensor([0.3, 0.3, 1.0, 1.0]).view(4, 1, 1, 1))[:, None].double()


class Compiled(nn.Module):
    """A small network, compiled or not, whose features are tapped under DDP."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Conv2d(2, 3, 3, 1, 1)
        self.head = nn.Conv2d(3, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tail(torch.tanh(self.head(x)))
        return out


def gradients(part: slice, wrap: Callable[[nn.Module], Any]) -> list[Tensor]:
    """Gradients of a loss on output and features of a part of a batch."""
    torch.manual_seed(0)
    network = Compiled().double()
    wrapped, x = wrap(network), photographs()[part, 0]
    tap = find_tap(wrapped, x)
    wrapped(x).sum().backward()  # once without the tap
    for parameter in network.parameters():
        parameter.grad = None
    with tap(wrapped, lambda features: 0.5 * features) as tapped:
        output = wrapped(x)
    (output.square().mean() + tapped.features.square().mean()).backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def compiled_inside(network: nn.Module) -> Any:
    return DistributedDataParallel(torch.compile(network, backend="eager"))


def compiled_outside(network: nn.Module) -> Any:
    return torch.compile(DistributedDataParallel(network), backend="eager")


WRAPS = (DistributedDataParallel, compiled_inside, compiled_outside)


def run_rank(rank: int, folder: str) -> None:
    """One rank with its half; saves its gradients."""
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    part = slice(rank * BATCH // RANKS, (rank + 1) * BATCH // RANKS)
    torch.save([gradients(part, wrap) for wrap in WRAPS], f"{folder}/rank{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


def test_features_of_two_halves_are_those_of_a_whole(tmp_path: Path) -> None:
    start_processes(run_rank, (str(tmp_path),), nprocs=RANKS, start_method="fork")
    first, second = (torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS))
    expected = gradients(slice(None), lambda network: network)
    for wrap, found, other in zip(WRAPS, first, second, strict=True):
        for one, two, value in zip(found, other, expected, strict=True):
            assert torch.equal(one, two), wrap
            torch.testing.assert_close(one, value, rtol=0, atol=TOLERANCE)
