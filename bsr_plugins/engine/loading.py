"""What the engine's loops get their batches from: any dataset, with every draw a function of the position."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Any

import torch
from basicsr.data import build_dataset
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher, PrefetchDataLoader
from basicsr.data.realesrgan_paired_dataset import RealESRGANPairedDataset
from basicsr.utils import get_root_logger
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bsr_plugins.data.bad_images import SKIPPED
from bsr_plugins.data.decode import unusual_images
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.data.positioned_items import PositionedDataset, item_files
from bsr_plugins.data.positions import RunSampler
from bsr_plugins.data.workers import WorkerProcesses, stop_signals_held_back
from bsr_plugins.errors import OptionError, unknown_name
from bsr_plugins.seeding import derive_seed

__all__ = ["PositionedDataset", "RunSampler", "TrainLoader", "build_train_loader", "build_val_loaders"]

Batch = dict[str, Any]

_BAD_IMAGE_KEY = "on_bad_image"
_UNSORTED = (PairedImageDataset, RealESRGANPairedDataset)
_PREFETCH_MODES = ("cpu", "cuda")


class TrainLoader:
    """The training batches of this process, epoch after epoch.

    `start` says where, `next` gives batch after batch until the epoch has no more whole ones. Nothing is read before
    `start`, and nothing of the next epoch before its own.

    Args:
        dataset: What makes the items, given a `PositionedIndex`.
        sampler: Which items, and in what order.
        dataset_opt: The option block: workers, memory and prefetching are read from it.
        seed: The run's `manual_seed`.
        mode: What prefetches beyond the workers: `cpu` (a thread), `cuda` (a stream) or nothing.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: RunSampler,
        dataset_opt: Mapping[str, Any],
        seed: int,
        mode: str | None = None,
    ) -> None:
        self.dataset = dataset
        self._sampler = sampler
        self._opt = dataset_opt
        self._seed = seed
        self._mode = mode
        self._counts = dataset_opt.get(_BAD_IMAGE_KEY) == "skip"
        self._skipped = 0
        self._source: Any = None
        self._workers: WorkerProcesses | None = None
        self._underway = False

    @property
    def num_images(self) -> int:
        """The number of items in the dataset, images for the most part."""
        return len(self.dataset)  # type: ignore[arg-type]  # a Dataset's length is optional

    @property
    def batches_per_epoch(self) -> int:
        """The number of whole batches in an epoch; 0 if there are too few images for one."""
        return self._sampler.batches_per_epoch

    @property
    def skipped(self) -> int:
        """The number of bad images among all batches given so far by this process."""
        return self._skipped

    def start(self, epoch: int, first_batch: int = 0) -> None:
        """Begin an epoch, or go on in the middle of it: nothing of the batches before `first_batch` is read.

        Args:
            epoch: The epoch, from 0.
            first_batch: The batch of the epoch that `next` gives first, from 0.

        Raises:
            ValueError: There is no such batch.
        """
        self._break_off()
        self._sampler.set_position(epoch, first_batch)
        with stop_signals_held_back():
            if self._source is None:
                self._source = self._prefetcher(self._loader())
            else:
                self._source.reset()
        self._underway = True

    def next(self) -> Batch | None:
        """Return the next batch of the epoch, None after the last.

        Raises:
            BadImageError: An image cannot be used, and `on_bad_image` is `error` or no other image can be.
        """
        batch: Batch | None = self._source.next()
        if batch is None:
            self._underway = False
        elif self._counts:
            self._skipped += sum(len(files.splitlines()) for files in batch[SKIPPED])
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
        if not (self._underway and self._mode == "cpu"):
            return
        self._sampler.stop()
        while self._underway:
            with suppress(Exception):  # those of batches that nobody asks for any more
                self._underway = self._source.next() is not None

    def _loader(self) -> DataLoader[Any]:
        workers = self._opt["num_worker_per_gpu"]
        self._workers = WorkerProcesses(self) if workers else None
        settings: dict[str, Any] = {
            "dataset": self.dataset,
            "sampler": self._sampler,
            "batch_size": self._opt["batch_size_per_gpu"],
            "drop_last": True,
            "num_workers": workers,
            "pin_memory": self._opt.get("pin_memory", False) and torch.cuda.is_available(),
            "persistent_workers": self._opt.get("persistent_workers", False) and workers > 0,
            "worker_init_fn": None if self._workers is None else self._workers.start,
            "generator": _own_generator(self._seed),
        }
        if self._mode == "cpu":
            return PrefetchDataLoader(self._opt.get("num_prefetch_queue", 1), **settings)  # type: ignore[no-any-return]
        return DataLoader(**settings)

    def _prefetcher(self, loader: DataLoader[Any]) -> Any:
        return _CUDAPrefetcher(loader, {"num_gpu": 1}) if self._mode == "cuda" else CPUPrefetcher(loader)


def build_train_loader(opt: Mapping[str, Any], built: Dataset[Any] | None = None) -> TrainLoader:
    """Build the training dataset of a run and what loads it, for this rank.

    The dataset is any that is registered. One that draws from the global random states (all but ours) is wrapped in a
    `PositionedDataset`; `on_bad_image` works for all. A batch is `batch_size_per_gpu` items a process. Files that are
    converted, grey ones and those with alpha for example, are warned of, once.

    Args:
        opt: The run's options; they are left as they are.
        built: The dataset, if it is built already.

    Raises:
        OptionError: The dataset cannot be loaded in this way.
        BSRError: The dataset refuses its options or its images.
    """
    dataset_opt = opt["datasets"]["train"]
    seed, name = opt["manual_seed"], dataset_opt.get("name", "train")
    kind = DATASET_REGISTRY.get(dataset_opt["type"])
    if issubclass(kind, IterableDataset):
        raise OptionError(f"dataset '{name}'.type: {dataset_opt['type']} has no indices, expected a dataset with them")
    if issubclass(kind, PairedDegradationDataset):
        dataset: Dataset[Any] = built or build_dataset(dataset_opt)
        if opt["rank"] == 0:
            _warn_of_unusual_images(dataset, name)
        if kind is not PairedDegradationDataset:
            dataset = PositionedDataset(dataset, seed, "error", name)
    else:
        block = {key: value for key, value in dataset_opt.items() if key != _BAD_IMAGE_KEY}
        stock = built or build_dataset(block)
        _sort_images(stock)
        if opt["rank"] == 0:
            _warn_of_unusual_images(stock, name)
        dataset = PositionedDataset(stock, seed, dataset_opt.get(_BAD_IMAGE_KEY, "error"), name)
    sampler = RunSampler(
        len(dataset),  # type: ignore[arg-type]  # a Dataset's length is optional
        opt["world_size"],
        opt["rank"],
        seed,
        dataset_opt.get("dataset_enlarge_ratio", 1),
        dataset_opt["batch_size_per_gpu"],
    )
    mode = _prefetch_mode(dataset, dataset_opt, opt["num_gpu"])
    return TrainLoader(dataset, sampler, dataset_opt, seed, mode)


def build_val_loaders(opt: Mapping[str, Any], built: Mapping[str, Dataset[Any]] | None = None) -> list[DataLoader[Any]]:
    """Build the validation or test datasets of a run, in the order of the option file.

    Each is loaded as BasicSR loads it: one image a batch, in order, by this process. Datasets of others are wrapped, so
    that they give the same images every time, change no global random state, and name an image that cannot be read.

    Args:
        opt: The run's options; they are left as they are.
        built: The datasets, if they are built already, by their keys.

    Raises:
        BSRError: A dataset refuses its options or its images.
    """
    loaders: list[DataLoader[Any]] = []
    for phase, dataset_opt in opt["datasets"].items():
        if phase == "train":
            continue
        dataset: Dataset[Any] = (built or {}).get(phase) or build_dataset(dataset_opt)
        name, own = dataset_opt.get("name", phase), type(dataset) is PairedDegradationDataset
        if opt["rank"] == 0:
            _warn_of_unusual_images(dataset, name)
        if not own:
            _sort_images(dataset)
            dataset = PositionedDataset(dataset, opt["manual_seed"], "error", name)
        pin_memory = dataset_opt.get("pin_memory", False) and torch.cuda.is_available()
        generator = _own_generator(opt["manual_seed"])
        loaders.append(DataLoader(dataset, batch_size=1, pin_memory=pin_memory, generator=generator))
    return loaders


class _CUDAPrefetcher(CUDAPrefetcher):  # type: ignore[misc]
    """BasicSR's, whose batches' memory is not used again before the stream that they are used on has read it."""

    def next(self) -> Batch | None:
        batch: Batch | None = super().next()
        for value in (batch or {}).values():
            if torch.is_tensor(value):
                value.record_stream(torch.cuda.current_stream())
        return batch


def _prefetch_mode(dataset: Dataset[Any], dataset_opt: Mapping[str, Any], num_gpu: int) -> str | None:
    """Return how batches are prefetched beyond what the workers do: `cpu`, `cuda` or not at all."""
    mode: str | None = dataset_opt.get("prefetch_mode")
    where = f"dataset '{dataset_opt.get('name', 'train')}'"
    if mode is None:
        return None
    if mode not in _PREFETCH_MODES:
        raise unknown_name(f"{where}.prefetch_mode", mode, _PREFETCH_MODES)
    if mode == "cuda" and (num_gpu == 0 or not torch.cuda.is_available()):
        get_root_logger().warning(f"{where}.prefetch_mode: 'cuda' needs CUDA, and none is used: nothing is prefetched")
        return None
    if mode == "cuda" and dataset_opt.get("pin_memory") is not True:
        raise OptionError(
            f"{where}.pin_memory: {dataset_opt.get('pin_memory')!r}, expected true with prefetch_mode: cuda"
        )
    if mode == "cpu" and dataset_opt["num_worker_per_gpu"] == 0 and isinstance(dataset, PositionedDataset):
        # Its thread would draw from the random states that the model draws from at the same time.
        get_root_logger().info(f"{where}.prefetch_mode: 'cpu' needs workers with this dataset: nothing is prefetched")
        return None
    return mode


def _sort_images(dataset: Dataset[Any]) -> None:
    """Sort the images of BasicSR's paired datasets, which come as the file system lists them, elsewhere otherwise."""
    if type(dataset) in _UNSORTED:
        dataset.paths.sort(key=itemgetter("gt_path"))  # type: ignore[attr-defined]  # those have it


def _own_generator(seed: int) -> torch.Generator:
    """Make what a loader draws its workers' seeds from, so that it leaves the global random state alone."""
    return torch.Generator().manual_seed(derive_seed(seed, "workers"))


def _warn_of_unusual_images(dataset: Dataset[Any], name: str) -> None:
    if isinstance(dataset, PairedDegradationDataset):
        complaint = unusual_images(dataset.files, keeps_depth=True)
    else:
        numbers = range(len(dataset))  # type: ignore[arg-type]  # a Dataset's length is optional
        files = (file.path for number in numbers for file in item_files(dataset, number) if file.path is not None)
        complaint = unusual_images(files)
    if complaint is not None:
        get_root_logger().warning(f"dataset '{name}': {complaint}")
