"""What several tests of the options need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.conftest import paired  # noqa: F401  (a fixture)
from tests.options.stock_options import RESNET, write_image

if TYPE_CHECKING:
    from tests.conftest import Options, Project


@pytest.fixture
def pairs(project: Project, aacl_options: Options) -> Options:
    """Options of a tiny run of BasicSR's own model on its own dataset."""
    for name in ("a", "b"):
        write_image(project.root / "gt" / f"{name}.png", 48, 64)
        write_image(project.root / "lq" / f"{name}.png", 12, 16)
    options = {key: aacl_options[key] for key in ("name", "scale", "num_gpu", "manual_seed", "path", "val", "logger")}
    data = {"type": "PairedImageDataset", "dataroot_gt": "gt", "dataroot_lq": "lq", "io_backend": {"type": "disk"}}
    patches = {"gt_size": 32, "use_hflip": True, "use_rot": True, "num_worker_per_gpu": 0, "batch_size_per_gpu": 2}
    keys = ("total_iter", "optim_g", "scheduler", "pixel_opt")
    return options | {
        "model_type": "SRModel",
        "datasets": {"train": {"name": "train", **data, **patches}, "val": {"name": "val", **data}},
        "network_g": dict(RESNET),
        "train": {key: aacl_options["train"][key] for key in keys},
    }
