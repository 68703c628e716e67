"""Runs of tiny models on parts of a batch, for tests that compare several processes with one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import torch
from basicsr.models import build_model
from skimage import data
from torch import Tensor, distributed
from torch.multiprocessing.spawn import start_processes

Options = dict[str, Any]
Outcome = dict[str, dict[str, Any]]
BATCH = 4  # of all ranks
PATIENCE = timedelta(seconds=60)


def batch_at(opt: Options, iteration: int) -> dict[str, Tensor]:
    """The batch of all ranks: HR views of photographs, every other sample much darker; or pairs, if wanted."""
    block, scale = opt["datasets"]["train"], opt["scale"]
    size, views = block["gt_size"], block.get("num_views") or 1
    photographs = [torch.from_numpy(make().copy()).permute(2, 0, 1) / 255 for make in (data.astronaut, data.coffee)]
    generator = torch.Generator().manual_seed(iteration)
    cut = []
    for number in range(BATCH * views):
        photograph = photographs[number % 2]
        top, left = (int(torch.randint(side - size, (), generator=generator)) for side in photograph.shape[1:])
        cut.append(photograph[:, top : top + size, left : left + size])
    darkness = (0.3 + 0.7 * (torch.arange(BATCH) % 2)).view(BATCH, 1, 1, 1, 1)
    gt = (torch.stack(cut).view(BATCH, views, 3, size, size) * darkness).to(torch.get_default_dtype())
    if block["degrade_on"] == "device":
        return {"gt": gt}
    return {"gt": gt[:, 0], "lq": gt[:, 0, :, ::scale, ::scale].contiguous()}


def run(opt: Options, iterations: int, dtype: torch.dtype) -> Outcome:
    """Train; every rank takes its part of every batch.

    Returns:
        The state of every network, and what was logged, accepted and looked at in every iteration.
    """
    torch.set_num_threads(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(opt["manual_seed"] + opt["rank"])  # as the trainer does
        model = build_model(copy.deepcopy(opt))
        outcome: Outcome = {"log": {}, "accepted": {}, "lq": {}}
        for iteration in range(1, iterations + 1):
            model.update_learning_rate(iteration)
            part = slice(opt["rank"], None, opt["world_size"])
            model.feed_data({name: values[part] for name, values in batch_at(opt, iteration).items()})
            model.optimize_parameters(iteration)
            outcome["log"] |= {f"{name} {iteration}": value for name, value in model.get_current_log().items()}
            outcome["accepted"][str(iteration)] = int(model.accepted.sum()) if hasattr(model, "accepted") else None
            outcome["lq"][str(iteration)] = model.lq.clone()
    finally:
        torch.set_default_dtype(before)
    networks = {"g": model.net_g, "ema": model.net_g_ema, **getattr(model, "training_networks", {})}
    for name, network in networks.items():
        outcome[name] = dict(model.get_bare_model(network).state_dict())
    return outcome


def _run_rank(rank: int, ranks: int, opt: Options, iterations: int, dtype: torch.dtype, folder: str) -> None:
    cv2.setNumThreads(0)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks, timeout=PATIENCE)
    outcome = run(opt | {"dist": True, "rank": rank, "world_size": ranks}, iterations, dtype)
    torch.save(outcome, f"{folder}/rank{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


def run_on_ranks(ranks: int, opt: Options, iterations: int, dtype: torch.dtype, folder: Path) -> list[Outcome]:
    """Train on several processes; returns what each of them ended with."""
    arguments = (ranks, copy.deepcopy(opt), iterations, dtype, str(folder))
    start_processes(_run_rank, arguments, nprocs=ranks, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(ranks)]


def farthest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float]:
    """How far two states are from each other, tensor by tensor."""
    assert one.keys() == other.keys()
    return {name: float((value.double() - other[name].double()).abs().max()) for name, value in one.items()}
