"""Bad input as a user meets it: real processes of the tools."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Options, Project


def test_a_missing_folder(project: Project, aacl_options: Options) -> None:
    aacl_options["datasets"]["train"]["dataroot_gt"] = "datasets/DIV2K"
    outcome = project.tool("train", aacl_options)
    assert outcome.status == 2
    (line,) = outcome.output.splitlines()
    assert re.match(r"error: \S+/train.yml:\d+: datasets.train.dataroot_gt: 'datasets/DIV2K' is missing or no", line)
    assert project.experiments == []


def test_a_truncated_image_behind_workers_and_prefetcher(
    with_a_truncated_image: Path, project: Project, aacl_options: Options
) -> None:
    loading = {"num_worker_per_gpu": 1, "prefetch_mode": "cpu", "num_prefetch_queue": 2}
    aacl_options["datasets"]["train"] |= {"dataroot_gt": with_a_truncated_image.name, **loading}
    outcome = project.tool("train", aacl_options)
    assert outcome.status == 2
    (complaint,) = (line for line in outcome.output.splitlines() if "ERROR: " in line)
    assert "ERROR: images/2.png: cannot be decoded" in complaint
    assert "Traceback" not in outcome.output


def test_a_checkpoint_that_is_not_there(project: Project, aacl_options: Options) -> None:
    aacl_options["datasets"] = {"test": aacl_options["datasets"]["val"]}
    aacl_options["path"]["pretrain_network_g"] = "experiments/tiny/models/net_g_latest.pth"
    outcome = project.tool("test", aacl_options)
    assert outcome.status == 2
    line = ": path.pretrain_network_g: experiments/tiny/models/net_g_latest.pth: there is no such file"
    assert outcome.output.splitlines()[-1].endswith(line)
    assert not (project.root / "results").exists()
