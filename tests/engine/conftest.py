"""What several tests of the engine need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import pytest

if TYPE_CHECKING:
    from tests.conftest import Options


@pytest.fixture
def paired(photographs: Path, tmp_path: Path) -> Options:
    """BasicSR's own dataset, which draws from the global random states."""
    folder = tmp_path / "lq"
    folder.mkdir()
    for file in photographs.iterdir():
        image = cv2.imread(str(file))
        assert image is not None
        cv2.imwrite(str(folder / file.name), cv2.resize(image, (48, 48)))
    return {
        "name": "paired",
        "type": "PairedImageDataset",
        "dataroot_gt": str(photographs),
        "dataroot_lq": str(folder),
        "io_backend": {"type": "disk"},
        "gt_size": 32,
        "use_hflip": True,
        "use_rot": True,
        "num_worker_per_gpu": 0,
        "batch_size_per_gpu": 4,
    }
