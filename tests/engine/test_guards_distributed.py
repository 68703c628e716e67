"""The guard on two processes: they skip the same steps, whichever of them has the bad batch."""

from __future__ import annotations

import logging
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from bsr_plugins.engine.guards import GuardOptions, NonFiniteError, StepGuard
from bsr_plugins.engine.ranks import Ranks
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
PLAN = ("good", "pixels", "good", "loss", "good", "pixels", "pixels", "pixels")


def run_rank(rank: int, opts: dict[str, Options], folder: str) -> None:
    """One rank, of which the second meets what is bad; saves what it did and what it ended with."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    register_strangers()
    ranks, outcome = Ranks(dist=True), {}
    for kind, options in opts.items():
        options |= {"dist": True, "rank": rank, "world_size": RANKS}
        model, undisturbed = make(options), make(options)
        guard = StepGuard(model, GuardOptions(max_nonfinite_steps=3), ranks)
        lines: list[str] = []
        collect = partial(keep_message, lines)
        logging.getLogger("basicsr").addFilter(collect)
        made: list[bool] = []
        error = ""
        for iteration, what in enumerate(PLAN, 1):
            batch = batch_at(options, iteration, rank)
            model.cri_pix.added = INF if what == "loss" and rank == 1 else 0.0
            try:
                made.append(step(guard, model, iteration, spoilt(batch) if what == "pixels" and rank == 1 else batch))
            except NonFiniteError as caught:
                error = str(caught)
            if what == "good":
                step(None, undisturbed, iteration, batch)
            else:
                undisturbed.update_learning_rate(iteration)
        logging.getLogger("basicsr").removeFilter(collect)
        outcome[kind] = {"made": made, "error": error, "lines": lines, "counts": guard.state()}
        outcome[kind] |= {"state": state_of(model), "undisturbed": state_of(undisturbed)}
    torch.save(outcome, f"{folder}/rank{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


def test_ranks_skip_alike_where_one_has_a_bad_batch(opts: dict[str, Options], tmp_path: Path) -> None:
    chosen = {kind: opts[kind] for kind in ("sr", "aacl")}
    for options in chosen.values():
        options["train"]["pixel_opt"] = {"type": "SwitchedLoss"}
    chosen["aacl"]["train"]["encoder_phase"]["iters"] = 3
    spawn(run_rank, (chosen, str(tmp_path)), nprocs=RANKS)
    outcomes = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS)]
    for kind in chosen:
        for outcome in (each[kind] for each in outcomes):
            assert outcome["made"] == [what == "good" for what in PLAN[:-1]]
            assert outcome["counts"] == {"skipped_in_a_row": 3, "skipped_total": 5}
            assert outcome["error"].startswith("iteration 8: 3 steps in a row were skipped (")
            assert_equal(outcome["state"], outcome["undisturbed"])
        lines = outcomes[0][kind]["lines"]
        assert len(lines) == 5
        assert all("rank 1: " in line and "gt_path 1_0.png, 1_1.png" in line for line in lines)
        assert lines[1].startswith("Iteration 4: step skipped (1 in a row, 2 in all): rank 1: cri_pix is inf; gt_path")
        # AACL's batch normalisation is over all ranks, so a bad batch of one makes the losses of all bad.
        assert kind == "aacl" or not any("0_0.png" in line for line in lines)
        assert outcomes[1][kind]["lines"] == [], "rank 0 tells"
