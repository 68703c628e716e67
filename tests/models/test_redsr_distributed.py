"""ReDSR on two processes on the CPU: with half of the batch each they do what one does with the whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
import torch
from skimage import data
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from bsr_plugins.models import ReDSRModel

if TYPE_CHECKING:
    from tests.conftest import Options

RANKS, BATCH, STEPS = 2, 4, 3
TOLERANCE = 1e-9  # all is computed in float64
Outcome = dict[str, dict[str, Any]]


def pairs() -> Tensor:
    """Two HR views of four photographs each (4, 2, 3, 48, 48), of which the first two are much darker."""
    photograph = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1) / 255
    cut = [photograph[:, top : top + 48, left : left + 48] for top in (0, 150, 300, 448) for left in (30, 200)]
    darkness = torch.tensor([0.3, 0.3, 1.0, 1.0]).view(4, 1, 1, 1, 1)
    return torch.stack(cut).view(BATCH, 2, 3, 48, 48) * darkness


def run(opt: Options, part: slice) -> Outcome:
    """Train with a part of every batch; the degradations of the whole batch are those of one process."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(opt["manual_seed"])
    model: Any = ReDSRModel(copy.deepcopy(opt))
    draw = model.degrade

    def degrade(gt: Tensor) -> Any:
        model.opt["rank"], rank = 0, model.opt["rank"]  # which draws depend on
        gt, lq, params = draw(gt)
        model.opt["rank"] = rank
        return gt[part], lq[part], {name: values[part] for name, values in params.items()}

    model.degrade = degrade
    outcome: Outcome = {"own": {}, "log": {}}
    for step in range(1, STEPS + 1):
        model.feed_data({"gt": pairs().double()})
        model.optimize_parameters(step)
        outcome["own"][str(step)] = model.distance.clone()
        outcome["log"] |= {f"{name} {step}": value for name, value in model.get_current_log().items()}
    for name, network in {"g": model.net_g, **model.training_networks}.items():
        outcome[name] = dict(model.get_bare_model(network).state_dict())
    outcome["ema"] = dict(model.net_g_ema.state_dict())
    return outcome


def run_rank(rank: int, opt: Options, folder: str) -> None:
    """One rank with its half; saves what it ended with, and the representation loss that it had."""
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    opt |= {"dist": True, "rank": rank, "world_size": RANKS}
    half = BATCH // RANKS
    torch.save(run(opt, slice(rank * half, (rank + 1) * half)), f"{folder}/rank{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture
def opt(redsr_options: Options, as_read: Callable[[Options], Options]) -> Options:
    """The options of a tiny ReDSR run, with an energy distance that matters."""
    redsr_options["train"]["representation_opt"]["loss_weight"] = 1.0
    return as_read(redsr_options)


def assert_near(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, other[name], rtol=0, atol=TOLERANCE, msg=name)


def test_two_halves_are_a_whole(opt: Options, tmp_path: Any) -> None:
    spawn(run_rank, (opt, str(tmp_path)), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS))
    try:
        whole = run(opt, slice(None))
    finally:
        torch.set_default_dtype(torch.float32)

    for name in ("g", "degrader"):
        for key, value in first[name].items():
            assert torch.equal(value, second[name][key]), f"{name}.{key}: ranks differ"
    for name in ("g", "degrader", "ema"):
        assert_near(first[name], whole[name])
    for step in map(str, range(1, STEPS + 1)):
        halves = [first["own"][step], second["own"][step]]
        torch.testing.assert_close(torch.cat(halves), whole["own"][step], rtol=0, atol=TOLERANCE)
        assert abs(float(halves[0].mean() - halves[1].mean())) > 0.05, "the halves are unlike"
    for name, value in whole["log"].items():  # rank 0's log, of the mean over ranks
        # The spread over each half is not that over the batch.
        assert name.startswith("representation_std") or first["log"][name] == pytest.approx(value, abs=TOLERANCE), name
    assert whole["log"]["l_representation 1"] > 0.1
