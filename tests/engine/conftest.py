"""What several tests of the engine need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import pytest
from basicsr.utils.lmdb_util import make_lmdb_from_imgs

from tests.engine.guarded_steps import options_of_all_kinds

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


@pytest.fixture(scope="module")
def pair_folder(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `gt` (eight images, 96×96) and `lq` (24×24), and an LMDB of each."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "gt").mkdir()
    (folder / "lq").mkdir()
    names = sorted(file.name for file in photographs.iterdir())
    for name in names:
        pixels: Any = cv2.imread(str(photographs / name))
        cv2.imwrite(str(folder / "gt" / name), pixels)
        cv2.imwrite(str(folder / "lq" / name), pixels[::4, ::4])
    for kind in ("gt", "lq"):
        keys = [name.removesuffix(".png") for name in names]
        make_lmdb_from_imgs(str(folder / kind), str(folder / f"{kind}.lmdb"), names, keys, map_size=1 << 24)
    (folder / "meta.txt").write_text("".join(f"{name} (96,96,3)\n" for name in names))
    return folder


@pytest.fixture
def opts(aacl_options: Options, redsr_options: Options, as_read: Callable[[Options], Options]) -> dict[str, Options]:
    """Options of each kind of model, for models outside a pipeline."""
    return options_of_all_kinds(aacl_options, redsr_options, as_read)
