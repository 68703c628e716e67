"""What the engine's loops get their batches from: any dataset, with every draw a function of the position."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Any

import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher, PrefetchDataLoader
from basicsr.data.realesrgan_paired_dataset import RealESRGANPairedDataset
from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader

from bsr_plugins.data.bad_images import SKIPPED
from bsr_plugins.data.decode import unusual_images
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.data.positioned_items import PositionedDataset, item_files
from bsr_plugins.data.positions import RunSampler
from bsr_plugins.data.workers import WorkerProcesses, stop_signals_held_back
from bsr_plugins.seeding import generator_at

Batch = dict[str, Any]

_BAD_IMAGE_KEY = "on_bad_image"
_UNSORTED = (PairedImageDataset, RealESRGANPairedDataset)  # their images come as the file system lists them


class TrainLoader:
    """The training batches of this process, epoch after epoch.

    `start` says where, `next` gives batch after batch until the epoch has no more whole ones. Nothing is read before
    `start`, and nothing of the next epoch before its `start`. The dataset makes items, given a `PositionedIndex`; the
    sampler says which.

    Attributes:
        num_images: The number of items in the dataset, images for the most part.
        batches_per_epoch: The number of whole batches in an epoch; 0 if there are too few images for one.
        skipped: The number of bad images among all batches given so far by this process.
    """

    def __init__(self, dataset: Any, sampler: RunSampler, opt: Mapping[str, Any]) -> None:
        self.dataset, self.num_images = dataset, len(dataset)
        self.batches_per_epoch = sampler.batches_per_epoch
        self.skipped = 0
        self._sampler, self._opt, self._seed = sampler, opt["datasets"]["train"], opt["manual_seed"]
        self._mode = _prefetch_mode(dataset, self._opt, opt["num_gpu"])
        self._source: Any = None
        self._workers: WorkerProcesses | None = None
        self._is_underway = False

    def start(self, epoch: int, first_batch: int = 0) -> None:
        """Begin an epoch, or go on in the middle of it, both from 0: nothing before `first_batch` is read.

        Raises:
            ValueError: There is no such batch.
        """
        self._break_off()
        self._sampler.set_position(epoch, first_batch)
        with stop_signals_held_back():
            if self._source is None:
                self._source = self._prefetcher()
            else:
                self._source.reset()
        self._is_underway = True

    def next(self) -> Batch | None:
        """Return the next batch of the epoch, None after the last.

        Raises:
            BadImageError: An image cannot be used, and `on_bad_image` is `error` or no other image can be.
        """
        batch: Batch | None = self._source.next()
        if batch is None:
            self._is_underway = False
        elif self._opt.get(_BAD_IMAGE_KEY) == "skip":
            self.skipped += sum(len(files.splitlines()) for files in batch[SKIPPED])
        return batch

    def close(self) -> None:
        """End the worker processes; `start` begins new ones."""
        self._break_off()
        self._source = None
        if self._workers is not None:  # torch ends them too, unless a traceback still holds its iterator
            self._workers.end()
            self._workers = None

    def _break_off(self) -> None:
        """Let a prefetching thread come to its end in the middle of an epoch, with what is begun thrown away."""
        if not (self._is_underway and self._mode == "cpu"):
            return
        self._sampler.stop()
        while self._is_underway:
            with suppress(Exception):  # those of batches that nobody asks for any more
                self._is_underway = self._source.next() is not None

    def _prefetcher(self) -> Any:
        workers = self._opt["num_worker_per_gpu"]
        self._workers = WorkerProcesses(self) if workers else None
        settings: dict[str, Any] = {
            "dataset": self.dataset,
            "sampler": self._sampler,
            "batch_size": self._opt["batch_size_per_gpu"],
            "drop_last": True,
            "num_workers": workers,
            "pin_memory": _pins_memory(self._opt),
            "persistent_workers": self._opt.get("persistent_workers", False) and workers > 0,
            "worker_init_fn": None if self._workers is None else self._workers.start,
            "generator": generator_at(self._seed, "workers"),  # and not of the global random state
        }
        if self._mode == "cpu":
            return CPUPrefetcher(PrefetchDataLoader(self._opt.get("num_prefetch_queue", 1), **settings))
        loader: DataLoader[Any] = DataLoader(**settings)
        return _CUDAPrefetcher(loader, {"num_gpu": 1}) if self._mode == "cuda" else CPUPrefetcher(loader)


def build_train_loader(opt: Mapping[str, Any], dataset: Any) -> TrainLoader:
    """Build what loads the training dataset of a run, for this rank; the options are left as they are.

    The dataset is any that is registered; one that is not ours has been built without `on_bad_image`, which works for
    all. Those that draw from the global random states are wrapped in a `PositionedDataset`.
    """
    dataset_opt, seed = opt["datasets"]["train"], opt["manual_seed"]
    is_ours = isinstance(dataset, PairedDegradationDataset)
    dataset = _repeatable(dataset, opt, "train", "error" if is_ours else dataset_opt.get(_BAD_IMAGE_KEY, "error"))
    ratio, batch_size = dataset_opt.get("dataset_enlarge_ratio", 1), dataset_opt["batch_size_per_gpu"]
    sampler = RunSampler(len(dataset), opt["world_size"], opt["rank"], seed, ratio, batch_size)
    return TrainLoader(dataset, sampler, opt)


def build_val_loaders(opt: Mapping[str, Any], datasets: Mapping[str, Any]) -> list[DataLoader[Any]]:
    """Build what loads the validation or test datasets of a run, in the order of the option file.

    Each gives one image a batch, in order, in this process. Datasets of others are wrapped, so that they give the same
    images every time, change no global random state, and name an image that cannot be read.
    """
    loaders: list[DataLoader[Any]] = []
    for phase, dataset_opt in opt["datasets"].items():
        if phase != "train":
            dataset, generator = _repeatable(datasets[phase], opt, phase), generator_at(opt["manual_seed"], "workers")
            loaders.append(DataLoader(dataset, pin_memory=_pins_memory(dataset_opt), generator=generator))
    return loaders


class _CUDAPrefetcher(CUDAPrefetcher):  # type: ignore[misc]
    """BasicSR's, whose batches' memory is not used again before the stream that they are used on has read it."""

    def next(self) -> Batch | None:
        batch: Batch | None = super().next()
        for value in (batch or {}).values():
            if torch.is_tensor(value):
                value.record_stream(torch.cuda.current_stream())
        return batch


def _prefetch_mode(dataset: Any, dataset_opt: Mapping[str, Any], num_gpu: int) -> str | None:
    mode: str | None = dataset_opt.get("prefetch_mode")
    where = f"dataset '{dataset_opt.get('name', 'train')}'.prefetch_mode"
    if mode == "cuda" and (num_gpu == 0 or not torch.cuda.is_available()):
        get_root_logger().warning(f"{where}: 'cuda' needs CUDA, and none is used: nothing is prefetched")
        return None
    if mode == "cpu" and dataset_opt["num_worker_per_gpu"] == 0 and isinstance(dataset, PositionedDataset):
        # Its thread would draw from the random states that the model draws from at the same time.
        get_root_logger().info(f"{where}: 'cpu' needs workers with this dataset: nothing is prefetched")
        return None
    return mode


def _repeatable(dataset: Any, opt: Mapping[str, Any], phase: str, on_bad_image: str = "error") -> Any:
    """Make a dataset give the same items for the same indices everywhere; warn of unusual images."""
    name = opt["datasets"][phase].get("name", phase)
    if type(dataset) in _UNSORTED:
        dataset.paths.sort(key=itemgetter("gt_path"))
    if opt["rank"] == 0:
        if isinstance(dataset, PairedDegradationDataset):
            complaint = unusual_images(dataset.files, keeps_depth=True)
        else:
            files = (file.path for number in range(len(dataset)) for file in item_files(dataset, number))
            complaint = unusual_images(file for file in files if file is not None)
        if complaint is not None:
            get_root_logger().warning(f"dataset '{name}': {complaint}")
    if type(dataset) is PairedDegradationDataset:
        return dataset
    return PositionedDataset(dataset, opt["manual_seed"], on_bad_image, name)


def _pins_memory(dataset_opt: Mapping[str, Any]) -> bool:
    return bool(dataset_opt.get("pin_memory", False)) and torch.cuda.is_available()
