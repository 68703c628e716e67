"""The batches of the engine's own loop: a function of seed and position for any dataset, workers, ranks and resumes."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.data.prefetch_dataloader import PrefetchGenerator
from basicsr.utils.file_client import HardDiskBackend
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.registry import DATASET_REGISTRY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import IterableDataset

from bsr_plugins.engine.loading import RunSampler, TrainLoader, build_train_loader, build_val_loaders
from bsr_plugins.errors import BadImageError, OptionError

Batch = dict[str, Any]
BATCHES = 5
BATCH = 3
EPOCHS = 2


@pytest.fixture(scope="module")
def pairs(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def rest_of_epoch(loader: TrainLoader) -> list[Batch]:
    return [*iter(loader.next, None)]


def epochs(opt: Batch) -> list[list[Batch]]:
    loader = build_train_loader(opt)
    loaded = []
    for epoch in range(EPOCHS):
        loader.start(epoch)
        loaded.append(rest_of_epoch(loader))
    loader.close()
    return loaded


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other) > 0
    for batch, match in zip(one, other, strict=True):
        assert batch.keys() == match.keys()
        for key, value in batch.items():
            assert torch.equal(value, match[key]) if isinstance(value, Tensor) else value == match[key], key


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


@settings(deadline=None, max_examples=60)
@given(
    images=st.integers(1, 40),
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 5),
    ratio=st.sampled_from([1, 3, 0.5, 2.5]),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_the_order(images: int, world_size: int, batch_size: int, ratio: float, seed: int, epoch: int) -> None:
    alone = RunSampler(images, 1, 0, seed, ratio, batch_size * world_size)
    alone.set_position(epoch)
    whole = list(alone)
    assert [index.position for index in whole] == list(range(alone.batches_per_epoch * batch_size * world_size))
    assert {index.epoch for index in whole} <= {epoch}
    counts = Counter(map(int, whole))
    assert set(counts) <= set(range(images))
    assert max(counts.values(), default=0) <= -(-images * ratio // images)
    for rank in range(world_size):
        sampler = RunSampler(images, world_size, rank, seed, ratio, batch_size)
        assert sampler.batches_per_epoch == alone.batches_per_epoch
        for first in (0, sampler.batches_per_epoch // 2, sampler.batches_per_epoch):
            sampler.set_position(epoch, first)
            mine = whole[first * batch_size * world_size :][rank::world_size]
            assert [(index, index.position) for index in sampler] == [(index, index.position) for index in mine]
            assert len(sampler) == len(mine)


def test_the_order_is_drawn_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = RunSampler(20, 1, 0, seed, 3, 1)
        sampler.set_position(epoch)
        return list(map(int, sampler))

    orders = [tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(Counter(one) == Counter(dict.fromkeys(range(20), 3)) for one in orders)
    assert order(1, 2) == order(1, 2)


@pytest.mark.parametrize(("epoch", "first_batch"), [(0, BATCHES + 1), (0, -1), (-1, 0)])
def test_a_position_that_there_is_not(epoch: int, first_batch: int) -> None:
    with pytest.raises(ValueError, match=f"epoch {epoch}, batch {first_batch}: expected"):
        RunSampler(8, 1, 0, 0, 2, 3).set_position(epoch, first_batch)


@EVERY_KIND
def test_any_number_of_workers_gives_the_same(kind: Kind, pairs: Path) -> None:
    alone = epochs(options(kind, pairs))
    assert [len(batches) for batches in alone] == [BATCHES] * EPOCHS
    for changes in (
        {"workers": 1},
        {"workers": 3, "persistent_workers": True},
        {"workers": 2, "prefetch_mode": "cpu", "num_prefetch_queue": 2},
        {"workers": 0, "prefetch_mode": "cpu"},
    ):
        for one, other in zip(alone, epochs(options(kind, pairs, **changes)), strict=True):
            assert_same(one, other)


def test_the_order_of_a_folder_does_not_matter(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, loaded = os.scandir, []

    def scandir(backwards: bool, path: str) -> list[os.DirEntry[str]]:
        return sorted(stock(path), key=lambda entry: entry.name, reverse=backwards)

    for backwards in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr("os.scandir", partial(scandir, backwards))
            opt = validation(options(paired, pairs), paired(pairs) | {"name": "b"})
            (val_loader,) = build_val_loaders(opt)
            loaded.append((epochs(opt)[0], list(val_loader)))
    for one, other in zip(*loaded, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("kind", [ours, paired])
def test_no_thread_draws_from_the_states_of_this_process(kind: Kind, pairs: Path) -> None:
    before = set(threading.enumerate())
    loader = build_train_loader(options(kind, pairs, prefetch_mode="cpu"))
    loader.start(0)
    begun = set(threading.enumerate()) - before
    assert any(isinstance(thread, PrefetchGenerator) for thread in begun) == (kind is ours)
    loader.close()


@EVERY_KIND
def test_every_position_draws_anew(kind: Kind, pairs: Path) -> None:
    images = [gt for batches in epochs(options(kind, pairs)) for batch in batches for gt in batch["gt"]]
    distinct = {image.numpy().tobytes() for image in images}
    # Real-ESRGAN's cuts of 400 pixels take these images whole; eight ways to turn eight images
    assert len(distinct) > len(images) / 2 if kind is real_esrgan else len(distinct) == len(images)
    if kind is real_esrgan:
        kernels = [kernel for batches in epochs(options(kind, pairs)) for b in batches for kernel in b["kernel1"]]
        assert len({kernel.numpy().tobytes() for kernel in kernels}) == len(kernels)


@EVERY_KIND
def test_another_seed_draws_something_else(kind: Kind, pairs: Path) -> None:
    one, other = (epochs(options(kind, pairs) | {"manual_seed": seed}) for seed in (5, 6))
    assert [batch["gt_path"] for batch in one[0]] != [batch["gt_path"] for batch in other[0]]


@EVERY_KIND
@pytest.mark.parametrize("changes", [{}, {"workers": 2}, {"workers": 2, "prefetch_mode": "cpu"}])
def test_a_resume_reads_what_is_left_and_no_more(
    kind: Kind, changes: Batch, pairs: Path, reads: Callable[[], list[str]]
) -> None:
    whole = epochs(options(kind, pairs))[1]
    reads()
    loader = build_train_loader(options(kind, pairs, **changes))
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
def test_nothing_is_read_ahead_of_the_next_epoch(changes: Batch, pairs: Path, reads: Callable[[], list[str]]) -> None:
    loader = build_train_loader(options(paired, pairs, **changes))
    for epoch in range(EPOCHS):
        loader.start(epoch)
        asked = Counter(path for batch in rest_of_epoch(loader) for path in batch["gt_path"])
        time.sleep(0.1)
        assert Counter(reads()) == asked
        assert sum(asked.values()) == BATCHES * BATCH
    loader.close()


@pytest.mark.parametrize("mode", [None, "cpu"])
@pytest.mark.parametrize("persistent", [False, True])
def test_breaking_off_an_epoch(mode: str | None, persistent: bool, pairs: Path, reads: Callable[[], list[str]]) -> None:
    whole = epochs(options(paired, pairs))
    threads = threading.active_count()
    reads()
    opt = options(paired, pairs, 1, prefetch_mode=mode, persistent_workers=persistent, dataset_enlarge_ratio=20)
    loader = build_train_loader(opt)
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
    short = build_train_loader(options(paired, pairs, 1, prefetch_mode=mode, persistent_workers=persistent))
    short.start(0)
    first = short.next()
    assert first is not None
    assert_same([first], whole[0][:1])
    short.start(1, 2)
    assert_same(rest_of_epoch(short), whole[1][2:])
    short.close()


@pytest.mark.parametrize("kind", [ours, paired])
def test_two_ranks_see_what_one_process_sees(kind: Kind, pairs: Path) -> None:
    alone = epochs(options(kind, pairs, batch_size_per_gpu=4))
    ranks = [epochs(options(kind, pairs, batch_size_per_gpu=2) | {"world_size": 2, "rank": rank}) for rank in (0, 1)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        for batch, even, odd in zip(whole, first, second, strict=True):
            for key in ("gt", "lq"):
                assert torch.equal(batch[key][0::2], even[key])
                assert torch.equal(batch[key][1::2], odd[key])


@EVERY_KIND
def test_the_random_states_and_options_stay_as_they_were(kind: Kind, pairs: Path) -> None:
    def states() -> tuple[Any, ...]:
        theirs: Any = np.random.get_state()  # noqa: NPY002
        return random.getstate(), theirs[1].tolist(), torch.get_rng_state().tolist()

    changes: Batch = {} if kind is ours else {"on_bad_image": "skip"}
    opt = options(kind, pairs, **changes)
    kept, before = copy.deepcopy(opt), states()
    epochs(opt)
    assert states() == before
    assert opt == kept
    dataset: Any = build_train_loader(opt).dataset
    assert kind is ours or "on_bad_image" not in dataset.opt


def test_datasets_without_indices_are_refused(pairs: Path) -> None:
    class Endless(IterableDataset[Any]):
        pass

    DATASET_REGISTRY._obj_map["Endless"] = Endless
    try:
        with pytest.raises(OptionError, match=r"^dataset 'photographs'\.type: Endless has no indices"):
            build_train_loader(options(paired, pairs, type="Endless"))
    finally:
        del DATASET_REGISTRY._obj_map["Endless"]


def test_unusual_prefetching(pairs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match=r"^dataset 'photographs'\.prefetch_mode: unknown name 'gpu'"):
        build_train_loader(options(ours, pairs, prefetch_mode="gpu"))
    loaded = epochs(options(ours, pairs, prefetch_mode="cuda", pin_memory=True))
    assert "prefetch_mode: 'cuda' needs CUDA, and none is used" in capfd.readouterr().err
    assert_same(loaded[0], epochs(options(ours, pairs))[0])


def test_silent_conversions_are_said_once(pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("gt", "lq"):
        (tmp_path / kind).mkdir()
        for name in ("astronaut0.png", "coffee0.png", "coffee1.png"):
            pixels: Any = cv2.imread(str(pairs / kind / name))
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY) if name == "coffee0.png" and kind == "gt" else pixels
            cv2.imwrite(str(tmp_path / kind / name), pixels.astype(np.uint16) * 257 if "1" in name else pixels)
    build_train_loader(options(paired, tmp_path))
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "WARNING" in line)
    assert "dataset 'photographs': among the first 6 files are 1 greyscale, 2 of 16 bits or more a channel; " in line
    build_train_loader(options(paired, pairs))
    build_train_loader(options(ours, tmp_path))
    assert "WARNING" not in capfd.readouterr().err


def validation(opt: Batch, *blocks: Batch) -> Batch:
    phases = {f"val_{9 - number}": {"phase": "val", "scale": 4} | block for number, block in enumerate(blocks)}
    return opt | {"datasets": opt["datasets"] | phases}


def test_validation_loaders(pairs: Path) -> None:
    whole = {"type": "PairedDegradationDataset", "dataroot_gt": str(pairs / "gt"), "protocol": "bicubic"}
    stranger = real_esrgan(pairs) | {"use_hflip": True, "use_rot": True}
    opt = validation(
        options(ours, pairs), paired(pairs) | {"name": "b"}, whole | {"name": "a"}, stranger | {"name": "c"}
    )
    kept = copy.deepcopy(opt)
    loaders = build_val_loaders(opt)
    assert opt == kept
    assert [loader.dataset.opt["name"] for loader in loaders] == ["b", "a", "c"]  # type: ignore[attr-defined]
    before = torch.get_rng_state(), random.getstate()
    for loader in loaders:
        first, second = [*loader], [*loader]
        assert [len(batch["gt_path"]) for batch in first] == [1] * 8
        assert_same(first, second)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_a_bad_validation_image_is_named(pairs: Path, tmp_path: Path) -> None:
    for kind in ("gt", "lq"):
        (tmp_path / kind).mkdir()
        data = (pairs / kind / "coffee0.png").read_bytes()
        (tmp_path / kind / "a.png").write_bytes(data[:-300] if kind == "lq" else data)
    (loader,) = build_val_loaders(validation(options(ours, pairs), paired(tmp_path) | {"name": "b"}))
    with pytest.raises(BadImageError, match=rf"^{tmp_path}/lq/a\.png: cannot be decoded"):
        next(iter(loader))


class Interpreter:
    """A Python of its own that loads with two workers, waits for a line after the first batch, and goes on then."""

    code = (
        "import json, multiprocessing, sys; import bsr_plugins;"
        "from tests.engine.test_loading_engine import load_and_wait;"
        "load_and_wait(json.loads(sys.argv[1]), sys.stdin.readline, lambda *n: print(*n, flush=True))"
    )

    def __init__(self, opt: Batch) -> None:
        path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.code, json.dumps(opt)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        assert self.process.stdout is not None
        self.workers = [int(number) for number in self.process.stdout.readline().split()]
        assert len(self.workers) == 2


def load_and_wait(opt: Batch, wait: Callable[[], Any], tell: Callable[..., Any], fail: bool = False) -> None:
    loader = build_train_loader(opt)
    loader.start(0)
    batches = [loader.next()]
    tell(*(child.pid for child in multiprocessing.active_children()))
    wait()
    batches += rest_of_epoch(loader)
    tell(len(batches))
    if fail:
        raise RuntimeError("no more")


def is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def end_within(seconds: float, numbers: list[int]) -> bool:
    end = time.monotonic() + seconds
    while any(map(is_alive, numbers)):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_signals_do_not_end_workers(pairs: Path) -> None:
    opt = options(paired, pairs, 2, persistent_workers=True, dataset_enlarge_ratio=10)
    main = Interpreter(opt)
    for number in main.workers:
        os.kill(number, signal.SIGINT)
        os.kill(number, signal.SIGTERM)
    time.sleep(0.2)
    assert all(map(is_alive, main.workers))
    output, _ = main.process.communicate("\n", timeout=30)
    assert output.split() == [str(80 // BATCH)]
    assert main.process.returncode == 0
    assert end_within(2, main.workers)


@pytest.fixture
def forked(pairs: Path) -> Iterator[Callable[..., Any]]:
    """Do as `Interpreter` does in a fork of this process; gives it, its workers' ids, and what lets it go on."""
    context, processes = multiprocessing.get_context("fork"), []

    def start(fail: bool = False, **changes: Any) -> tuple[Any, list[int], Callable[[], None]]:
        opt = options(paired, pairs, 2, **{"persistent_workers": True, "dataset_enlarge_ratio": 10} | changes)
        ours, theirs = context.Pipe()

        def tell(*numbers: int) -> None:
            theirs.send(numbers)

        process = context.Process(target=load_and_wait, args=(opt, theirs.recv, tell, fail))
        process.start()
        processes.append(process)
        workers = [*ours.recv()]
        assert len(workers) == 2
        return process, workers, lambda: ours.send("go on")

    yield start
    for process in processes:
        process.kill()
        process.join()


@pytest.mark.parametrize("changes", [{}, {"prefetch_mode": "cpu"}, {"persistent_workers": False}])
@pytest.mark.parametrize("fail", [False, True])
def test_workers_end_with_their_process(fail: bool, changes: Batch, forked: Callable[..., Any]) -> None:
    process, workers, go_on = forked(fail, **changes)
    go_on()
    process.join(20)
    assert process.exitcode == (1 if fail else 0)
    assert end_within(2, workers)


@pytest.mark.parametrize("changes", [{}, {"prefetch_mode": "cpu"}])
def test_workers_end_when_their_process_is_killed(changes: Batch, forked: Callable[..., Any]) -> None:
    process, workers, _ = forked(**changes)
    process.kill()
    process.join()
    assert end_within(3, workers)


def test_workers_begin_with_signals_held_back(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM to all processes finds a worker that has just begun."""
    monkeypatch.setattr(signal, "signal", _term_first(signal.signal))
    loader = build_train_loader(options(paired, pairs, 1))
    loader.start(0)
    assert len(rest_of_epoch(loader)) == BATCHES
    loader.close()


def _term_first(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Make what has a worker receive a SIGTERM before it sets its first handler."""

    def set_handler(number: int, handler: Any) -> Any:
        if number == signal.SIGINT and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(number, handler)

    return set_handler


@pytest.mark.cuda
def test_batches_prefetched_to_a_gpu(pairs: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    alone = epochs(options(paired, pairs))
    opt = options(paired, pairs, 1, prefetch_mode="cuda", pin_memory=True) | {"num_gpu": 1}
    for one, other in zip(alone, epochs(opt), strict=True):
        assert all(batch["lq"].is_cuda for batch in other)
        assert_same(one, [{key: v.cpu() if isinstance(v, Tensor) else v for key, v in b.items()} for b in other])
