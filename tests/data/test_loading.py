"""The dataset behind BasicSR's loaders and prefetchers: the same items for any number and kind of workers."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from skimage import data
from torch import Tensor
from torch.utils.data import DataLoader

from bsr_plugins.errors import BadImageError

Batch = dict[str, Any]
EPOCHS = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(5):
        corner = 40 * number
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), data.astronaut()[corner:, corner:, ::-1][:100, :90])
    return tmp_path / "images"


def options(folder: Path, workers: int = 0, **changes: Any) -> dict[str, Any]:
    block = {"type": "ClassicalDegradation", "blur_iso": {"sigma": [0.2, 4.0]}, "blur_aniso": {"sigma": [0.2, 4.0]}}
    block |= {"noise": {"level": [0, 25]}, "jpeg": {"quality": [30, 95]}, "types": ["iso", "aniso+noise", "aniso+jpeg"]}
    return {
        "name": "Train",
        "type": "PairedDegradationDataset",
        "phase": "train",
        "scale": 4,
        "dataroot_gt": str(folder),
        "degrade_on": "worker",
        "gt_size": 64,
        "use_hflip": True,
        "use_rot": True,
        "degradation": block,
        "num_worker_per_gpu": workers,
        "batch_size_per_gpu": 3,
        "dataset_enlarge_ratio": 2,
        **changes,
    }


def epochs(opt: dict[str, Any], prefetcher: type = CPUPrefetcher) -> list[list[Batch]]:
    """Load some epochs as BasicSR's trainer does."""
    dataset = build_dataset(opt)
    sampler = EnlargedSampler(dataset, 1, 0, opt["dataset_enlarge_ratio"])
    loader = build_dataloader(dataset, opt, num_gpu=0, sampler=sampler, seed=0)
    source = prefetcher(loader, {"num_gpu": 1}) if prefetcher is CUDAPrefetcher else prefetcher(loader)
    loaded = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        source.reset()
        loaded.append([*iter(source.next, None)])
    return loaded


def assert_same(one: list[list[Batch]], other: list[list[Batch]]) -> None:
    assert [len(batches) for batches in one] == [len(batches) for batches in other] == [3] * EPOCHS
    for batch, match in zip(chain(*one), chain(*other), strict=True):
        assert batch["gt_path"] == match["gt_path"]
        assert torch.equal(batch["gt"].cpu(), match["gt"].cpu())
        assert torch.equal(batch["lq"].cpu(), match["lq"].cpu())


def test_any_number_of_workers(folder: Path) -> None:
    alone = epochs(options(folder))
    assert_same(alone, epochs(options(folder)))
    assert_same(alone, epochs(options(folder, 1)))
    assert_same(alone, epochs(options(folder, 2)))
    assert_same(alone, epochs(options(folder, 2, persistent_workers=True)))
    assert_same(alone, epochs(options(folder, 2, prefetch_mode="cpu", num_prefetch_queue=2)))
    assert_same(alone, epochs(options(folder, 0, prefetch_mode="cpu")))


def test_epochs_and_repeats_differ(folder: Path) -> None:
    patches: list[Tensor] = [patch for batches in epochs(options(folder)) for batch in batches for patch in batch["gt"]]
    assert len({patch.numpy().tobytes() for patch in patches}) == len(patches) == 18


def test_device_mode_batches(folder: Path) -> None:
    opt = options(folder, 1, degrade_on="device", num_views=2)
    del opt["degradation"]
    batch = epochs(opt)[0][0]
    assert set(batch) == {"gt", "gt_path"}
    assert batch["gt"].shape == (3, 2, 3, 64, 64)
    assert len(batch["gt_path"]) == 3


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_start_methods_persistent_workers_and_set_epoch(folder: Path, method: str) -> None:
    """Plain indices, an LMDB that this process has open already, and workers that outlive their epoch."""
    lmdb = folder.parent / "images.lmdb"
    make_lmdb_from_imgs(str(folder), str(lmdb), [f"{n}.png" for n in range(5)], [str(n) for n in range(5)])
    dataset = build_dataset(options(lmdb, io_backend={"type": "lmdb"}))
    twin = build_dataset(options(lmdb, io_backend={"type": "lmdb"}))
    loader: DataLoader[Batch] = DataLoader(
        dataset, batch_size=5, num_workers=1, persistent_workers=True, multiprocessing_context=method
    )
    _ = twin[0]
    loaded = []
    for epoch in range(EPOCHS):
        dataset.set_epoch(epoch)
        twin.set_epoch(epoch)
        (batch,) = loader
        assert torch.equal(batch["lq"], torch.stack([twin[index]["lq"] for index in range(5)]))
        loaded.append(batch["gt"])
    assert not torch.equal(*loaded)


def test_validation_loader(folder: Path) -> None:
    opt = {**options(folder), "phase": "val", "protocol": "gaussian8", "name": "Val"}
    for key in ("degrade_on", "gt_size", "use_hflip", "use_rot", "degradation"):
        del opt[key]
    loader = build_dataloader(build_dataset(opt), opt)
    batches = list(loader)
    assert loader.dataset.opt["name"] == "Val"
    assert len({batch["lq_path"][0] for batch in batches}) == len(batches) == 5 * 8
    assert batches[0]["lq"].shape == (1, 3, 25, 22)
    assert batches[0]["gt"].shape == (1, 3, 100, 88)


@pytest.mark.parametrize("changes", [{}, {"num_worker_per_gpu": 1}, {"num_worker_per_gpu": 1, "prefetch_mode": "cpu"}])
def test_a_damaged_image_is_named_through_every_loader(folder: Path, changes: dict[str, Any]) -> None:
    opt = {**options(folder), **changes}
    damaged = folder / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    with pytest.raises(BadImageError, match=r"3\.png: cannot be decoded"):
        epochs(opt)


@pytest.mark.cuda
def test_cuda_prefetcher(folder: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_device = epochs(options(folder, 1, prefetch_mode="cuda", pin_memory=True), CUDAPrefetcher)
    assert on_device[0][0]["lq"].is_cuda
    assert_same(epochs(options(folder)), on_device)
