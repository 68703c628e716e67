"""The batches of the engine's own loop: a function of seed and position for any dataset, workers, ranks and resumes."""

from __future__ import annotations

import copy
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.data.prefetch_dataloader import PrefetchGenerator
from basicsr.utils.file_client import HardDiskBackend
from torch import Tensor

from bsr_plugins.errors import BadImageError
from tests.data.batches import assert_same
from tests.engine.loading_cases import (
    BATCH,
    BATCHES,
    EPOCHS,
    EVERY_KIND,
    Batch,
    Kind,
    epochs,
    options,
    ours,
    paired,
    paired_lmdb,
    real_esrgan,
    rest_of_epoch,
    train_loader,
    val_loaders,
)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[str]]:
    """Note what is read by any process through BasicSR's file client; gives the GT files since last asked."""
    log, stock = tmp_path / "reads.txt", HardDiskBackend.get
    log.touch()

    def get(self: Any, filepath: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{filepath}\n")
        return stock(self, filepath)

    monkeypatch.setattr(HardDiskBackend, "get", get)

    def since_last() -> list[str]:
        names = [line for line in log.read_text().splitlines() if Path(line).parent.name == "gt"]
        log.write_text("")
        return names

    return since_last


@EVERY_KIND
def test_any_number_of_workers_gives_the_same(kind: Kind, pair_folder: Path) -> None:
    alone = epochs(options(kind, pair_folder))
    assert [len(batches) for batches in alone] == [BATCHES] * EPOCHS
    for changes in (
        {"workers": 1},
        {"workers": 3, "persistent_workers": True},
        {"workers": 2, "prefetch_mode": "cpu", "num_prefetch_queue": 2},
        {"workers": 0, "prefetch_mode": "cpu"},
    ):
        for one, other in zip(alone, epochs(options(kind, pair_folder, **changes)), strict=True):
            assert_same(one, other)


def test_the_order_of_a_folder_does_not_matter(pair_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, loaded = os.scandir, []

    def scandir(backwards: bool, path: str) -> list[os.DirEntry[str]]:
        return sorted(stock(path), key=lambda entry: entry.name, reverse=backwards)

    for backwards in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr("os.scandir", partial(scandir, backwards))
            opt = validation(options(paired, pair_folder), paired(pair_folder) | {"name": "b"})
            (val_loader,) = val_loaders(opt)
            loaded.append((epochs(opt)[0], list(val_loader)))
    for one, other in zip(*loaded, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("kind", [ours, paired])
def test_no_thread_draws_from_the_states_of_this_process(kind: Kind, pair_folder: Path) -> None:
    before = set(threading.enumerate())
    loader = train_loader(options(kind, pair_folder, prefetch_mode="cpu"))
    loader.start(0)
    begun = set(threading.enumerate()) - before
    assert any(isinstance(thread, PrefetchGenerator) for thread in begun) == (kind is ours)
    loader.close()


@EVERY_KIND
def test_every_position_draws_anew(kind: Kind, pair_folder: Path) -> None:
    images = [gt for batches in epochs(options(kind, pair_folder)) for batch in batches for gt in batch["gt"]]
    distinct = {image.numpy().tobytes() for image in images}
    # Real-ESRGAN's cuts of 400 pixels take these images whole; eight ways to turn eight images
    assert len(distinct) > len(images) / 2 if kind is real_esrgan else len(distinct) == len(images)
    if kind is real_esrgan:
        kernels = [kernel for batches in epochs(options(kind, pair_folder)) for b in batches for kernel in b["kernel1"]]
        assert len({kernel.numpy().tobytes() for kernel in kernels}) == len(kernels)


@EVERY_KIND
def test_another_seed_draws_something_else(kind: Kind, pair_folder: Path) -> None:
    one, other = (epochs(options(kind, pair_folder) | {"manual_seed": seed}) for seed in (5, 6))
    assert [batch["gt_path"] for batch in one[0]] != [batch["gt_path"] for batch in other[0]]


@EVERY_KIND
@pytest.mark.parametrize("changes", [{}, {"workers": 2}, {"workers": 2, "prefetch_mode": "cpu"}])
def test_a_resume_reads_what_is_left_and_no_more(
    kind: Kind, changes: Batch, pair_folder: Path, reads: Callable[[], list[str]]
) -> None:
    whole = epochs(options(kind, pair_folder))[1]
    reads()
    loader = train_loader(options(kind, pair_folder, **changes))
    assert reads() == []
    loader.start(1, 3)
    rest = rest_of_epoch(loader)
    loader.close()
    assert_same(rest, whole[3:])
    if kind is not paired_lmdb:
        assert Counter(reads()) == Counter(path for batch in rest for path in batch["gt_path"])


@pytest.mark.parametrize(
    "changes",
    [{}, {"workers": 1}, {"workers": 2, "persistent_workers": True}, {"workers": 1, "prefetch_mode": "cpu"}],
)
def test_nothing_is_read_ahead_of_the_next_epoch(
    changes: Batch, pair_folder: Path, reads: Callable[[], list[str]]
) -> None:
    loader = train_loader(options(paired, pair_folder, **changes))
    for epoch in range(EPOCHS):
        loader.start(epoch)
        asked = Counter(path for batch in rest_of_epoch(loader) for path in batch["gt_path"])
        time.sleep(0.1)
        assert Counter(reads()) == asked
        assert sum(asked.values()) == BATCHES * BATCH
    loader.close()


@pytest.mark.parametrize("mode", [None, "cpu"])
@pytest.mark.parametrize("persistent", [False, True])
def test_breaking_off_an_epoch(
    mode: str | None, persistent: bool, pair_folder: Path, reads: Callable[[], list[str]]
) -> None:
    whole = epochs(options(paired, pair_folder))
    threads = threading.active_count()
    reads()
    opt = options(paired, pair_folder, 1, prefetch_mode=mode, persistent_workers=persistent, dataset_enlarge_ratio=20)
    loader = train_loader(opt)
    loader.start(0)
    for _ in range(3):
        loader.next()
    loader.start(1, 1)
    assert loader.next() is not None
    loader.close()
    end = time.monotonic() + 2
    while threading.active_count() > threads:
        assert time.monotonic() < end, threading.enumerate()
        time.sleep(0.01)
    assert len(reads()) < 20 * BATCH, "an epoch has 53 batches, which are not read to its end"
    short = train_loader(options(paired, pair_folder, 1, prefetch_mode=mode, persistent_workers=persistent))
    short.start(0)
    first = short.next()
    assert first is not None
    assert_same([first], whole[0][:1])
    short.start(1, 2)
    assert_same(rest_of_epoch(short), whole[1][2:])
    short.close()


@pytest.mark.parametrize("kind", [ours, paired])
def test_two_ranks_see_what_one_process_sees(kind: Kind, pair_folder: Path) -> None:
    alone = epochs(options(kind, pair_folder, batch_size_per_gpu=4))
    ranks = [
        epochs(options(kind, pair_folder, batch_size_per_gpu=2) | {"world_size": 2, "rank": rank}) for rank in (0, 1)
    ]
    for whole, first, second in zip(alone, *ranks, strict=True):
        for batch, even, odd in zip(whole, first, second, strict=True):
            for key in ("gt", "lq"):
                assert torch.equal(batch[key][0::2], even[key])
                assert torch.equal(batch[key][1::2], odd[key])


@EVERY_KIND
def test_the_random_states_and_options_stay_as_they_were(kind: Kind, pair_folder: Path) -> None:
    def states() -> tuple[Any, ...]:
        theirs: Any = np.random.get_state()  # noqa: NPY002
        return random.getstate(), theirs[1].tolist(), torch.get_rng_state().tolist()

    changes: Batch = {} if kind is ours else {"on_bad_image": "skip"}
    opt = options(kind, pair_folder, **changes)
    kept, before = copy.deepcopy(opt), states()
    epochs(opt)
    assert states() == before
    assert opt == kept
    dataset: Any = train_loader(opt).dataset
    assert kind is ours or "on_bad_image" not in dataset.opt


def test_unusual_prefetching(
    pair_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = epochs(options(ours, pair_folder, prefetch_mode="cuda", pin_memory=True))
    assert "prefetch_mode: 'cuda' needs CUDA, and none is used" in capfd.readouterr().err
    assert_same(loaded[0], epochs(options(ours, pair_folder))[0])


def test_silent_conversions_are_said_once(pair_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("gt", "lq"):
        (tmp_path / kind).mkdir()
        for name in ("astronaut0.png", "coffee0.png", "coffee1.png"):
            pixels: Any = cv2.imread(str(pair_folder / kind / name))
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY) if name == "coffee0.png" and kind == "gt" else pixels
            cv2.imwrite(str(tmp_path / kind / name), pixels.astype(np.uint16) * 257 if "1" in name else pixels)
    train_loader(options(paired, tmp_path))
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "WARNING" in line)
    assert "dataset 'photographs': among the first 6 files are 1 greyscale, 2 of 16 bits or more a channel; " in line
    train_loader(options(paired, pair_folder))
    train_loader(options(ours, pair_folder))
    assert "WARNING" not in capfd.readouterr().err
    train_loader(options(ours, tmp_path))
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "WARNING" in line)
    assert "among the first 3 files are 1 greyscale; they are read as RGB without alpha" in line


def validation(opt: Batch, *blocks: Batch) -> Batch:
    phases = {f"val_{9 - number}": {"phase": "val", "scale": 4} | block for number, block in enumerate(blocks)}
    return opt | {"datasets": opt["datasets"] | phases}


def test_validation_loaders(pair_folder: Path) -> None:
    whole = {"type": "PairedDegradationDataset", "dataroot_gt": str(pair_folder / "gt"), "protocol": "bicubic"}
    stranger = real_esrgan(pair_folder) | {"use_hflip": True, "use_rot": True}
    opt = validation(
        options(ours, pair_folder), paired(pair_folder) | {"name": "b"}, whole | {"name": "a"}, stranger | {"name": "c"}
    )
    kept = copy.deepcopy(opt)
    loaders = val_loaders(opt)
    assert opt == kept
    assert [loader.dataset.opt["name"] for loader in loaders] == ["b", "a", "c"]  # type: ignore[attr-defined]
    before = torch.get_rng_state(), random.getstate()
    for loader in loaders:
        first, second = [*loader], [*loader]
        assert [len(batch["gt_path"]) for batch in first] == [1] * 8
        assert_same(first, second)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_a_bad_validation_image_is_named(pair_folder: Path, tmp_path: Path) -> None:
    for kind in ("gt", "lq"):
        (tmp_path / kind).mkdir()
        data = (pair_folder / kind / "coffee0.png").read_bytes()
        (tmp_path / kind / "a.png").write_bytes(data[:-300] if kind == "lq" else data)
    (loader,) = val_loaders(validation(options(ours, pair_folder), paired(tmp_path) | {"name": "b"}))
    with pytest.raises(BadImageError, match=rf"^{tmp_path}/lq/a\.png: cannot be decoded"):
        next(iter(loader))


@pytest.mark.cuda
def test_batches_prefetched_to_a_gpu(pair_folder: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    alone = epochs(options(paired, pair_folder))
    opt = options(paired, pair_folder, 1, prefetch_mode="cuda", pin_memory=True) | {"num_gpu": 1}
    for one, other in zip(alone, epochs(opt), strict=True):
        assert all(batch["lq"].is_cuda for batch in other)
        assert_same(one, [{key: v.cpu() if isinstance(v, Tensor) else v for key, v in b.items()} for b in other])
