"""Options in several processes: the same seed for all, and faults said once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Options, Project

SCRIPT = """
import os, sys
from pathlib import Path
import bsr_plugins
from bsr_plugins.options import command_line
from bsr_plugins.options.preflight import prepare
command_line._GRACE_S = 60.0
def pipeline(root):
    run = prepare(root, is_train=True)
    Path(f"seed{run.opt['rank']}").write_text(f"{run.opt['manual_seed']} {run.opt['world_size']}")
sys.exit(command_line.run(pipeline, Path.cwd()))
"""

BARE_SCRIPT = """
import multiprocessing, sys
from pathlib import Path
import bsr_plugins
from bsr_plugins import engine
multiprocessing.set_start_method("spawn", force=True)  # as BasicSR does for several processes
sys.exit(engine.run(engine.train_pipeline, Path.cwd()))
"""


def test_a_script_that_starts_again_in_its_workers_is_told_so(project: Project, aacl_options: Options) -> None:
    (project.root / "bare.py").write_text(BARE_SCRIPT)
    aacl_options["datasets"]["train"]["num_worker_per_gpu"] = 1
    project.write(aacl_options)
    outcome = project.python("bare.py", "-opt", "options.yml")
    assert outcome.status == 1
    assert "error: bare.py: starts its pipeline again in every worker process, expected" in outcome.output


def test_two_processes(project: Project, aacl_options: Options) -> None:
    (project.root / "read.py").write_text(SCRIPT)
    run = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--rdzv_endpoint=localhost:0"]
    run += ["--rdzv_backend=c10d", "read.py", "-opt", "options.yml", "--launcher", "pytorch"]
    del aacl_options["manual_seed"]
    project.write(aacl_options)
    outcome = project.python(*run)
    assert outcome.status == 0, outcome.output
    first, second = (project.root.joinpath(f"seed{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert first.endswith(" 2")

    aacl_options["network_moco"]["queue_size"] = 7
    project.write(aacl_options)
    outcome = project.python(*run)
    assert outcome.status == 1  # torchrun's own
    (line,) = (line for line in outcome.output.splitlines() if line.startswith("error: "))
    assert re.fullmatch(
        r"error: options.yml:\d+: network_moco.queue_size: 7, expected at least 8, the keys of one step", line
    )
