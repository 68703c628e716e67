"""What several tests of the options need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bsr_plugins.models import BlindSRModel
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


@pytest.fixture(autouse=True)
def networks_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models that still have a hook for it check their networks when they are built."""
    check: Any = getattr(BlindSRModel, "check_networks", None)
    if check is None:
        return
    build: Any = BlindSRModel.__init__

    def checked(self: Any, opt: dict[str, Any]) -> None:
        build(self, opt)
        networks = {"network_g": self.net_g} | {
            f"network_{name}": network for name, network in getattr(self, "training_networks", {}).items()
        }
        self.check_networks(opt, {key: self.get_bare_model(network) for key, network in networks.items()})

    monkeypatch.setattr(BlindSRModel, "__init__", checked)
