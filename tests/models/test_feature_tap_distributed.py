"""Alignment on two processes on the CPU: with half of the batch each they do what one does with the whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from skimage import data
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from bsr_plugins.degradations import Params
from bsr_plugins.models import SimpleAlignModel
from bsr_plugins.models.feature_tap import find_tap

if TYPE_CHECKING:
    from tests.conftest import Options

RANKS, BATCH, STEPS = 2, 4, 2
TOLERANCE = 1e-9  # all is computed in float64
Outcome = dict[str, Any]


def photographs() -> Tensor:
    """A view of four photographs each (4, 1, 3, 48, 48), of which the first two are much darker."""
    photograph = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1) / 255
    cut = [photograph[:, top : top + 48, 30:78] for top in (0, 150, 300, 448)]
    return (torch.stack(cut) * torch.tensor([0.3, 0.3, 1.0, 1.0]).view(4, 1, 1, 1))[:, None].double()


def run(opt: Options, part: slice) -> Outcome:
    """Train with a part of every batch; what is drawn for the whole batch is what one process draws."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(opt["manual_seed"])
    model: Any = SimpleAlignModel(copy.deepcopy(opt))
    with torch.no_grad():
        for parameter in model.net_g.parameters():
            parameter.mul_(5)
    whole = photographs()
    sample, mask = model.degradation.sample, model.tapped.dropout.mask

    def draw(_: int, generator: torch.Generator) -> Params:
        drawn: Params = sample(BATCH, generator)
        return {name: values[part] for name, values in drawn.items()}

    def drop(batch: int, channels: int, generator: torch.Generator) -> Tensor:
        assert batch == 2 * len(whole[part])
        halves = mask(2 * BATCH, channels, generator).double().chunk(2)
        return torch.cat([half[part] for half in halves])

    model.degradation.sample = draw
    object.__setattr__(model.tapped, "dropout", type("Dropout", (), {"mask": staticmethod(drop)}))
    model.opt["rank"] = 0  # which draws depend on
    for step in range(1, STEPS + 1):
        model.feed_data({"gt": whole[part]})
        model.optimize_parameters(step)
    assert all(not module._forward_pre_hooks and "forward" not in vars(module) for module in model.net_g.modules())
    return {"g": dict(model.get_bare_model(model.net_g).state_dict()), "log": dict(model.log_dict)}


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
    with tap(wrapped, lambda features: 0.5 * features) as heard:
        output = wrapped(x)
    (output.square().mean() + heard.features.square().mean()).backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def compiled_inside(network: nn.Module) -> Any:
    return DistributedDataParallel(torch.compile(network, backend="eager"))


def compiled_outside(network: nn.Module) -> Any:
    return torch.compile(DistributedDataParallel(network), backend="eager")


WRAPS = (DistributedDataParallel, compiled_inside, compiled_outside)


def run_rank(rank: int, opt: Options, folder: str) -> None:
    """One rank with its half; saves what it ended with."""
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    part = slice(rank * BATCH // RANKS, (rank + 1) * BATCH // RANKS)
    outcome = run(opt | {"dist": True, "rank": rank, "world_size": RANKS}, part)
    outcome["gradients"] = [gradients(part, wrap) for wrap in WRAPS]
    torch.save(outcome, f"{folder}/rank{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture
def align_opt(redsr_options: Options, as_read: Callable[[Options], Options]) -> Options:
    """The options of a tiny run with an alignment that matters, and dropout."""
    del redsr_options["network_degrader"]
    redsr_options["network_g"] = {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 2}
    redsr_options["datasets"]["train"]["num_views"] = 1
    redsr_options["model_type"] = "SimpleAlignModel"
    train = redsr_options["train"]
    del train["redegradation_opt"], train["representation_opt"]
    train |= {"pixel_opt": {"type": "L1Loss"}, "dropout": {"p": 0.5}}
    train["align_opt"] = {"type": "AlignmentLoss", "loss_weight": 1e6}
    return as_read(redsr_options)


def test_two_halves_are_a_whole(align_opt: Options, tmp_path: Any) -> None:
    spawn(run_rank, (align_opt, str(tmp_path)), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS))
    try:
        whole = run(align_opt, slice(None))
        expected = gradients(slice(None), lambda network: network)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in whole["g"].items():
        assert torch.equal(first["g"][name], second["g"][name]), f"{name}: ranks differ"
        torch.testing.assert_close(first["g"][name], value, rtol=0, atol=TOLERANCE, msg=name)
    assert whole["log"].keys() == first["log"].keys()
    for name, value in whole["log"].items():  # rank 0's log, of the mean over ranks
        assert first["log"][name] == pytest.approx(value, abs=TOLERANCE), name
    assert whole["log"]["l_align"] > 1e-3
    for wrap, found, other in zip(WRAPS, first["gradients"], second["gradients"], strict=True):
        for one, two, value in zip(found, other, expected, strict=True):
            assert torch.equal(one, two), wrap
            torch.testing.assert_close(one, value, rtol=0, atol=TOLERANCE)
