"""Tiny models and the checkpoints of their runs, for what the tests of checkpoints share."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.models import build_model
from torch import Tensor

from bsr_plugins.engine.checkpoint_sets import Identity, RunFolders
from bsr_plugins.engine.checkpoints import CheckpointStore

Options = dict[str, Any]

KEY = "bsr_plugins"  # where a checkpoint says what it belongs to
KILLED = -signal.SIGKILL
PATIENCE = 60  # seconds that a child may take


def tiny_options(root: Path) -> Options:
    """Options of a tiny `SRModel` with EMA, as BasicSR reads them; its folders are made."""
    for folder in ("models", "training_states"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    return {
        "name": "tiny",
        "model_type": "SRModel",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 3,
        "is_train": True,
        "dist": False,
        "rank": 0,
        "world_size": 1,
        "auto_resume": False,
        "datasets": {"train": {"name": "t", "batch_size_per_gpu": 4, "gt_size": 16}},
        "network_g": {
            "type": "MSRResNet",
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 4,
            "num_block": 1,
            "upscale": 2,
        },
        "path": {
            "experiments_root": str(root),
            "models": str(root / "models"),
            "training_states": str(root / "training_states"),
            "strict_load_g": True,
        },
        "train": {
            "ema_decay": 0.9,
            "total_iter": 100,
            "optim_g": {"type": "Adam", "lr": 0.01},
            "scheduler": {"type": "MultiStepLR", "milestones": [2, 50], "gamma": 0.5},
            "pixel_opt": {"type": "L1Loss"},
        },
        "logger": {},
    }


def tiny_gan_options(root: Path) -> Options:
    """Options of a tiny `SRGANModel`."""
    opt = tiny_options(root)
    opt["network_d"] = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 2}
    opt["train"] |= {
        "optim_d": {"type": "Adam", "lr": 0.01},
        "gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.1},
    }
    return opt | {"model_type": "SRGANModel"}


def make_model(opt: Options) -> Any:
    """Build the model; the options stay as they are."""
    torch.manual_seed(0)
    return build_model(copy.deepcopy(opt))


def train(model: Any, first: int, last: int) -> None:
    """Train a model that takes pairs from one iteration to another, both included."""
    for iteration in range(first, last + 1):
        generator = torch.Generator().manual_seed(iteration)
        model.update_learning_rate(iteration)
        pair = {
            "lq": torch.rand(2, 3, 8, 8, generator=generator),
            "gt": torch.rand(2, 3, 16, 16, generator=generator),
        }
        model.feed_data(pair)
        model.optimize_parameters(iteration)


def identity_of(opt: Options) -> Identity:
    return Identity.of(opt, num_samples=10, run_id="run")


def make_store(opt: Options, keep: int | None = None) -> CheckpointStore:
    return CheckpointStore(RunFolders.of(opt["path"]), identity_of(opt), keep)


def content_of(root: Path) -> dict[str, bytes]:
    """Every file of a folder with its content."""
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def files_in(root: Path) -> set[str]:
    """Names of all files in a folder."""
    return {file.name for file in root.rglob("*") if file.is_file()}


def flip(file: Path, place: int) -> None:
    """Turn one bit of a file over."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def in_child(work: Callable[[], None], then: Callable[[int], None] = lambda _: None) -> int:
    """Run something in a process of its own.

    Args:
        work: What to run; an exception ends the process with status 1.
        then: What to do here meanwhile, with the process's id.

    Returns:
        The exit status, or less than 0: the signal that ended the process.
    """
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)  # rather than wait for ever
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    then(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    """Check that two checkpoints are equal: types, order of keys and values, tensors bit for bit."""
    assert type(found) is type(expected), place
    if isinstance(expected, Mapping):
        assert list(found) == list(expected), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}.{key}")
        assert getattr(found, "_metadata", None) == getattr(expected, "_metadata", None), place
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{place}.{number}")
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype, place
        assert torch.equal(found, expected), place
    else:
        assert found == expected, place
