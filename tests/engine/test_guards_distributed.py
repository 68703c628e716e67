"""Steps on two processes: they skip the same ones, or end together, whichever of them has the bad batch."""

from __future__ import annotations

import logging
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from bsr_plugins.engine.guard import guard_of
from bsr_plugins.models.step_guard import NonFiniteError
from tests.engine.guarded_steps import (
    INF,
    batch_at,
    keep_message,
    make,
    register_strangers,
    spoilt,
    state_of,
    step,
)
from tests.models.stepping import assert_equal

if TYPE_CHECKING:
    from tests.conftest import Options

RANKS = 2
PLAN = ("good", "pixels", "good", "good", "pixels", "pixels", "pixels")


def run_rank(rank: int, opts: dict[str, Options], folder: str) -> None:
    """One rank, of which the second meets what is bad; saves what it did and what it ended with."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    register_strangers()
    outcome = {"ours": run_ours(rank, opts["aacl"]), "stock": run_stock(rank, opts["sr"])}
    torch.save(outcome, f"{folder}/rank{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


def run_ours(rank: int, options: Options) -> object:
    options |= {"dist": True, "rank": rank, "world_size": RANKS}
    model, undisturbed = make(options), make(options)
    lines: list[str] = []
    collect = partial(keep_message, lines)
    logging.getLogger("basicsr").addFilter(collect)
    made: list[bool] = []
    error = ""
    for iteration, what in enumerate(PLAN, 1):
        batch = batch_at(options, iteration, rank)
        try:
            made.append(step(model, iteration, spoilt(batch) if what == "pixels" and rank == 1 else batch))
        except NonFiniteError as caught:
            error = str(caught)
        if what == "good":
            step(undisturbed, iteration, batch)
        else:
            undisturbed.update_learning_rate(iteration)
    logging.getLogger("basicsr").removeFilter(collect)
    outcome = {"made": made, "error": error, "lines": lines, "counts": guard_of(model).state()}
    return outcome | {"state": state_of(model), "undisturbed": state_of(undisturbed)}


def run_stock(rank: int, options: Options) -> list[str]:
    """What ends the runs of which one rank has a bad batch, and of which one has a bad loss with a good gradient."""
    options |= {"dist": True, "rank": rank, "world_size": RANKS}
    said = []
    for what in ("pixels", "loss"):
        model = make(options)
        step(model, 1, batch_at(options, 1, rank))
        model.cri_pix.added = INF if what == "loss" and rank == 1 else 0.0
        batch = batch_at(options, 2, rank)
        try:
            step(model, 2, spoilt(batch) if what == "pixels" and rank == 1 else batch)
        except NonFiniteError as caught:
            said.append(str(caught))
    return said


def test_ranks_skip_or_end_alike_where_one_has_a_bad_batch(opts: dict[str, Options], tmp_path: Path) -> None:
    chosen = {kind: opts[kind] for kind in ("sr", "aacl")}
    chosen["sr"]["train"]["pixel_opt"] = {"type": "SwitchedLoss"}
    chosen["aacl"]["train"]["encoder_phase"]["iters"] = 3
    chosen["aacl"]["train"]["max_nonfinite_steps"] = 3
    start_processes(run_rank, (chosen, str(tmp_path)), nprocs=RANKS, start_method="fork")
    outcomes = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS)]
    for outcome in (each["ours"] for each in outcomes):
        assert outcome["made"] == [what == "good" for what in PLAN[:-1]]
        assert outcome["counts"] == {"skipped_in_a_row": 3, "skipped_total": 4}
        assert outcome["error"].startswith("iteration 7: 3 steps in a row were skipped (")
        assert_equal(outcome["state"], outcome["undisturbed"])
    lines = outcomes[0]["ours"]["lines"]
    assert len(lines) == 4
    assert lines[0].startswith("Iteration 2: step skipped (1 in a row, 1 in all): ")
    assert all("rank 1: " in line and "gt_path 1_0.png, 1_1.png" in line for line in lines)
    assert outcomes[1]["ours"]["lines"] == [], "rank 0 tells"
    for pixels, loss in (each["stock"] for each in outcomes):
        assert "iteration 2: " in pixels
        assert "rank 1: " in pixels
        assert "gt_path 1_0.png, 1_1.png" in pixels
        assert "l_pix is inf; " in loss
