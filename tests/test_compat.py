"""Every repair of BasicSR: needed on this stack, makes the thing work, and leaves alone what works or is repaired."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import basicsr
import cv2
import numpy as np
import pytest
import torch
from basicsr import train
from basicsr.data import degradations, prefetch_dataloader
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.models import lr_scheduler, realesrgan_model, realesrnet_model
from basicsr.models.base_model import BaseModel
from basicsr.utils import DiffJPEG, USMSharp, dist_util, img_process_util, options
from torch.utils.data import DataLoader

from bsr_plugins import compat
from bsr_plugins.data.positions import PositionedIndex

HANG_SECONDS = 30


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def random_states() -> list[Any]:
    return [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]  # noqa: NPY002


def undo(monkeypatch: pytest.MonkeyPatch, holder: Any, name: str) -> Any:
    """Put back, for one test, what a repair has replaced."""
    stock = getattr(getattr(holder, name), "__wrapped__", None)
    if stock is None:
        pytest.skip(f"{name} needs no repair on this stack")
    monkeypatch.setattr(holder, name, stock)
    return stock


def test_every_repair_is_made_once_and_draws_nothing() -> None:
    before = random_states()
    assert compat.apply() == ()
    assert random_states() == before


def test_alias_is_made_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torchvision.transforms.functional_tensor"
    monkeypatch.delitem(sys.modules, name, raising=False)
    if not compat.alias_functional_tensor():
        pytest.skip("this torchvision has the module")
    assert callable(sys.modules[name].rgb_to_grayscale)
    assert not compat.alias_functional_tensor()


def test_submodules_are_reattached(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, child in ((basicsr, "archs"), (basicsr.data, "transforms")):
        monkeypatch.delattr(package, child)
    assert compat.reattach_submodules()
    assert basicsr.archs is sys.modules["basicsr.archs"]
    assert basicsr.data.transforms is sys.modules["basicsr.data.transforms"]
    assert not compat.reattach_submodules()


# ---- repairs that ask for CUDA when they run --------------------------------------------------------------------


def foreign(*_: Any, **__: Any) -> str:
    return "foreign"


@pytest.mark.parametrize(
    ("repair", "holder", "name"),
    [
        (compat.resume_without_cuda, train, "load_resume_state"),
        (compat.distribute_without_cuda, dist_util, "_init_dist_pytorch"),
        (compat.wrap_networks_on_cpu, BaseModel, "model_to_device"),
    ],
)
def test_stock_runs_where_there_is_cuda(
    repair: Callable[[], bool], holder: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, name, foreign)
    assert not repair(), "what another package has replaced is left alone"
    assert getattr(holder, name) is foreign

    calls: list[str] = []

    def stock(*_: Any) -> None:
        calls.append("stock" if torch.cuda.is_available() else str((torch.cuda.current_device, torch.cuda.set_device)))

    stock.__name__ = name
    monkeypatch.setattr(holder, name, stock)
    assert repair()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = BaseModel({"num_gpu": 1, "dist": True, "is_train": True})
    getattr(holder, name)(*((model, None) if holder is BaseModel else ("nccl",)))
    assert calls == ["stock"]


def resume_options(folder: Path, **path: Any) -> dict[str, Any]:
    return {"auto_resume": False, "name": "run", "network_g": {}, "path": {"models": str(folder), **path}}


@pytest.fixture
def training_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three training states of a run, as BasicSR lays them out below the current directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "run" / "training_states"
    folder.mkdir(parents=True)
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.5)
    (weight * 3).backward()
    optimizer.step()
    schedulers = [
        lr_scheduler.MultiStepRestartLR(optimizer, milestones=[3], gamma=0.5),
        lr_scheduler.CosineAnnealingRestartLR(optimizer, periods=[3], eta_min=0.1),
    ]
    for iteration in (5, 100, 20):
        state = {"epoch": 1, "iter": iteration, "optimizers": [optimizer.state_dict()]}
        state["schedulers"] = [scheduler.state_dict() for scheduler in schedulers]
        torch.save(state, folder / f"{iteration}.state")
    return folder


@pytest.mark.usefixtures("no_cuda")
def test_resume_without_cuda(training_states: Path) -> None:
    by_name = resume_options(training_states, resume_state=str(training_states / "5.state"))
    state = train.load_resume_state(by_name)
    assert state["iter"] == 5
    assert state["schedulers"][0]["milestones"] == {3: 1}
    assert by_name["path"]["pretrain_network_g"].endswith("net_g_5.pth")

    latest = {**resume_options(training_states), "auto_resume": True}
    assert train.load_resume_state(latest)["iter"] == 100
    assert latest["path"]["resume_state"] == str(Path("experiments/run/training_states/100.state"))

    assert train.load_resume_state(resume_options(training_states)) is None
    assert train.load_resume_state({**latest, "name": "another"}) is None


@pytest.mark.usefixtures("no_cuda")
def test_resume_runs_no_code_of_the_file(tmp_path: Path) -> None:
    torch.save({"iter": 5, "epoch": argparse.Namespace()}, tmp_path / "5.state")
    with pytest.raises(Exception, match="Weights only load failed"):
        train.load_resume_state(resume_options(tmp_path, resume_state=str(tmp_path / "5.state")))


@pytest.mark.usefixtures("no_cuda")
def test_init_dist_keeps_a_backend_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **settings: calls.append(settings))
    dist_util._init_dist_pytorch("nccl", timeout=1)
    dist_util._init_dist_pytorch("mpi")
    assert calls == [{"backend": "gloo", "timeout": 1}, {"backend": "mpi"}]


# ---- options ------------------------------------------------------------------------------------------------------

OPTIONS = """
name: run
num_gpu: 0
manual_seed: 0
path: {}
datasets:
  train: {dataroot_gt: [one, ~/two], dataroot_lq: ~/three}
  val: {dataroot_gt: four}
"""


def parse(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> tuple[dict[str, Any], argparse.Namespace]:
    (folder / "options.yml").write_text(OPTIONS)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(options, "set_random_seed", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["train.py", "-opt", str(folder / "options.yml"), *arguments])
    parsed: tuple[dict[str, Any], argparse.Namespace] = train.parse_options(str(folder), is_train=False)
    return parsed


@pytest.mark.parametrize("arguments", [["--local-rank=1"], ["--local-rank", "1"], ["--local_rank=1"]])
def test_local_rank_in_both_spellings(arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert parse(monkeypatch, tmp_path, *arguments)[1].local_rank == 1
    assert parse(monkeypatch, tmp_path)[1].local_rank == 0


def test_lists_of_folders_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = parse(monkeypatch, tmp_path)[0]["datasets"]
    assert datasets["train"]["dataroot_gt"] == ["one", str(tmp_path / "two")]
    assert datasets["train"]["dataroot_lq"] == str(tmp_path / "three")
    assert datasets["val"]["dataroot_gt"] == "four"


def test_stock_parse_options_needs_the_repairs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "osp", os.path)
    monkeypatch.setattr(options, "argparse", argparse)
    with pytest.raises(SystemExit):
        parse(monkeypatch, tmp_path, "--local-rank=1")
    assert "--local-rank=1" in capsys.readouterr().err
    with pytest.raises(TypeError, match="list"):
        parse(monkeypatch, tmp_path)
    assert compat.accept_both_spellings_of_local_rank()
    assert compat.expand_lists_of_folders()
    assert argparse.ArgumentParser is not options.argparse.ArgumentParser
    assert os.path.expanduser is not options.osp.expanduser, "os.path itself is left alone"


# ---- images and batches -------------------------------------------------------------------------------------------


@pytest.fixture
def strided() -> torch.Tensor:
    """Two different images whose channels lie next to each other in memory."""
    return torch.arange(2 * 9 * 8 * 3, dtype=torch.float32).reshape(2, 9, 8, 3).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kernels", [1, 2])
def test_filter2d_in_any_layout(kernels: int, strided: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = torch.linspace(-1, 1, kernels * 25).reshape(kernels, 5, 5)
    repaired = img_process_util.filter2D
    expected = undo(monkeypatch, img_process_util, "filter2D")(strided.contiguous(), kernel)
    assert torch.equal(repaired(strided, kernel), expected)
    assert torch.equal(repaired(strided.contiguous(), kernel), expected)
    with pytest.raises(RuntimeError, match="view"):
        img_process_util.filter2D(strided, kernel)


def test_filter2d_is_repaired_wherever_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert realesrnet_model.filter2D is realesrgan_model.filter2D is img_process_util.filter2D
    other = ModuleType("a_project_that_imported_it")
    vars(other)["filter2D"] = undo(monkeypatch, img_process_util, "filter2D")
    monkeypatch.setitem(sys.modules, other.__name__, other)
    assert compat.filter_strided_batches()
    assert vars(other)["filter2D"] is img_process_util.filter2D
    assert not compat.filter_strided_batches()


def test_sharpening_after_jpeg(strided: torch.Tensor) -> None:
    images = DiffJPEG(differentiable=False)(strided.contiguous() / strided.max(), quality=50)
    sharpened = USMSharp(radius=5)(images)
    assert torch.equal(sharpened, torch.cat([USMSharp(radius=5)(image[None]) for image in images]))


def test_jpeg_with_a_real_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.linspace(0, 1, 16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3)
    repaired = degradations.add_jpg_compression
    stock = undo(monkeypatch, degradations, "add_jpg_compression")
    with pytest.raises(cv2.error, match="params"):
        degradations.random_add_jpg_compression(image, (30.5, 30.9))
    assert compat.whole_jpeg_quality()
    assert not compat.whole_jpeg_quality()
    assert np.array_equal(degradations.random_add_jpg_compression(image, (30.1, 30.9)), stock(image, 30))
    assert np.array_equal(repaired(image), stock(image))


class Numbers:
    """A dataset of numbers, one of which cannot be read."""

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == self.bad:
            raise ValueError("number is unreadable")
        return index


def consume(loader: Any) -> list[int]:
    """Take all batches of one as the training loop does, in a thread that may hang without hanging the tests."""
    outcome: list[Any] = []

    def take() -> None:
        prefetcher = prefetch_dataloader.CPUPrefetcher(loader)
        try:
            while (batch := prefetcher.next()) is not None:
                outcome.append(batch.item())
        except ValueError as error:
            outcome.append(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(HANG_SECONDS)
    assert not thread.is_alive(), "the consumer hangs"
    return outcome


@pytest.mark.parametrize("num_workers", [0, 1])
def test_cpu_prefetch_hands_errors_on(num_workers: int) -> None:
    def loader(bad: int | None) -> Any:
        return prefetch_dataloader.PrefetchDataLoader(1, dataset=Numbers(bad), batch_size=1, num_workers=num_workers)

    assert consume(loader(None)) == [0, 1, 2, 3]
    *before, error = consume(loader(2))
    assert before == [0, 1]
    assert isinstance(error, ValueError)
    assert "number is unreadable" in str(error)


def test_cpu_prefetch_repair_is_needed_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    undo(monkeypatch, prefetch_dataloader.PrefetchGenerator, "run")
    undo(monkeypatch, prefetch_dataloader.PrefetchGenerator, "__next__")
    assert compat.hand_on_prefetch_errors()
    assert not compat.hand_on_prefetch_errors()


@pytest.mark.usefixtures("no_cuda")
def test_cuda_prefetch_without_cuda(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basicsr.utils, "get_root_logger", logging.getLogger)
    prefetcher = train.CUDAPrefetcher(DataLoader([3, 4]), {"num_gpu": 0})  # type: ignore[arg-type]
    for _ in range(2):
        assert [prefetcher.next(), prefetcher.next(), prefetcher.next()] == [3, 4, None]
        prefetcher.reset()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "prefetch_mode" in warnings[0]


def test_cuda_prefetch_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    class Prefetcher(train.CUDAPrefetcher):  # type: ignore[misc]
        def __init__(self, loader: Any, opt: dict[str, Any]) -> None:
            self.arguments = (loader, opt)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    prefetcher = Prefetcher(loader=[], opt={"num_gpu": 1})
    assert type(prefetcher) is Prefetcher
    assert prefetcher.arguments == ([], {"num_gpu": 1})


# ---- the sampler --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "replicas", "ratio"), [(5, 1, 1), (5, 2, 3), (4, 3, 2), (1, 1, 1)])
def test_sampler_says_where_it_is(size: int, replicas: int, ratio: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = [EnlargedSampler(range(size), replicas, rank, ratio) for rank in range(replicas)]
    for sampler in samplers:
        sampler.set_epoch(3)
    drawn = [list(sampler) for sampler in samplers]
    together = list(itertools.chain(*drawn))
    undo(monkeypatch, EnlargedSampler, "__iter__")
    assert drawn == [list(sampler) for sampler in samplers], "values and order are stock's"

    assert all(type(index) is PositionedIndex and index.epoch == 3 for index in together)
    assert sorted(index.position for index in together) == list(range(samplers[0].total_size))
    order = torch.randperm(samplers[0].total_size, generator=torch.Generator().manual_seed(3)).tolist()
    assert all(index == order[index.position] % size for index in together)

    assert compat.position_indices()
    assert not compat.position_indices()


def test_sampler_notes_the_epoch_in_which_it_starts() -> None:
    sampler = EnlargedSampler(range(3), 1, 0)
    drawn = iter(sampler)
    sampler.set_epoch(1)
    assert {index.epoch for index in drawn} == {0}


class Places:
    """A dataset that gives what its index knows."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: PositionedIndex) -> tuple[int, int, int]:
        return index, index.epoch, index.position


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_place_reaches_the_dataset(num_workers: int) -> None:
    sampler = EnlargedSampler(Places(), 1, 0)
    loader: Any = DataLoader(Places(), sampler=sampler, num_workers=num_workers)  # type: ignore[arg-type]

    def epoch() -> Iterator[tuple[int, ...]]:
        return (tuple(int(value) for value in batch) for batch in loader)

    for number in range(2):
        sampler.set_epoch(number)
        assert list(epoch()) == [(int(index), number, place) for place, index in enumerate(sampler)]
