"""Datasets of every kind for the engine's loaders, and what they load in whole epochs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from basicsr.data import build_dataset
from torch.utils.data import DataLoader, Dataset

from bsr_plugins.engine.loading import TrainLoader, build_train_loader, build_val_loaders

Batch = dict[str, Any]
BATCHES = 5
BATCH = 3
EPOCHS = 2


def ours(folder: Path) -> Batch:
    degradation = {"type": "ClassicalDegradation", "blur_iso": {"sigma": [0.2, 4.0]}, "noise": {"level": [0, 25]}}
    return {
        "type": "PairedDegradationDataset",
        "dataroot_gt": str(folder / "gt"),
        "degrade_on": "worker",
        "degradation": degradation,
        "gt_size": 48,
        "seed": 5,
    }


def paired(folder: Path) -> Batch:
    roots = {"dataroot_gt": str(folder / "gt"), "dataroot_lq": str(folder / "lq")}
    return {"type": "PairedImageDataset", **roots, "gt_size": 48, "io_backend": {"type": "disk"}}


def paired_lmdb(folder: Path) -> Batch:
    roots = {"dataroot_gt": str(folder / "gt.lmdb"), "dataroot_lq": str(folder / "lq.lmdb")}
    return {**paired(folder), **roots, "io_backend": {"type": "lmdb"}}


def real_esrgan(folder: Path) -> Batch:
    kernels: Batch = {
        "kernel_list": ["iso", "aniso"],
        "kernel_prob": [0.5, 0.5],
        "blur_sigma": [0.2, 3],
        "sinc_prob": 0.1,
    }
    kernels |= {"blur_kernel_size": 21, "betag_range": [0.5, 4], "betap_range": [1, 2]}
    second = {f"{key}2": value for key, value in kernels.items()}
    return {
        "type": "RealESRGANDataset",
        "dataroot_gt": str(folder / "gt"),
        "meta_info": str(folder / "meta.txt"),
        "io_backend": {"type": "disk"},
        "final_sinc_prob": 0.8,
        **kernels,
        **second,
    }


Kind = Callable[[Path], Batch]
EVERY_KIND = pytest.mark.parametrize("kind", [ours, paired, paired_lmdb, real_esrgan])


def options(kind: Kind, folder: Path, workers: int = 0, **changes: Any) -> Batch:
    """Options of a run on one kind of dataset, as far as loaders read them."""
    block = {
        "name": "photographs",
        "phase": "train",
        "scale": 4,
        "use_hflip": True,
        "use_rot": True,
        "num_worker_per_gpu": workers,
        "batch_size_per_gpu": BATCH,
        "dataset_enlarge_ratio": 2,
        **kind(folder),
        **changes,
    }
    return {"manual_seed": 5, "rank": 0, "world_size": 1, "num_gpu": 0, "datasets": {"train": block}}


def train_loader(opt: Batch) -> TrainLoader:
    """Build the training dataset and what loads it."""
    return build_train_loader(opt, built(opt["datasets"]["train"]))


def val_loaders(opt: Batch) -> list[DataLoader[Any]]:
    """Build the validation datasets and what loads them."""
    datasets = {phase: built(block) for phase, block in opt["datasets"].items() if phase != "train"}
    return build_val_loaders(opt, datasets)


def built(block: Batch) -> Dataset[Any]:
    """Build a dataset; one that is not ours knows no `on_bad_image`, which is the loader's."""
    is_ours = block["type"] == "PairedDegradationDataset"
    dataset: Dataset[Any] = build_dataset({k: v for k, v in block.items() if is_ours or k != "on_bad_image"})
    return dataset


def rest_of_epoch(loader: TrainLoader) -> list[Batch]:
    """Load what is left of an epoch."""
    return [*iter(loader.next, None)]


def epochs(opt: Batch) -> list[list[Batch]]:
    """Load whole epochs from the first on."""
    loader = train_loader(opt)
    loaded = []
    for epoch in range(EPOCHS):
        loader.start(epoch)
        loaded.append(rest_of_epoch(loader))
    loader.close()
    return loaded
