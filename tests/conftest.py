"""What every test needs, and small runs: photographs, option files, and folders to run them in."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import pytest
import torch
import yaml
from skimage import data

import bsr_plugins  # isort: skip  (BasicSR cannot be imported before it, wherever a test's imports are sorted to)
import basicsr.train
from basicsr.utils.logger import initialized_logger

from bsr_plugins import engine

REPOSITORY = Path(__file__).resolve().parents[1]
Options = dict[str, Any]

PIPELINES: dict[str, Callable[[str], None]] = {
    "train": engine.train_pipeline,
    "test": engine.test_pipeline,
    "stock train": basicsr.train.train_pipeline,
}

# The networks of the tests are so small that a second thread costs more than it gives.
torch.set_num_threads(1)


class Outcome(NamedTuple):
    """What a run left: its exit status, and what it printed."""

    status: int
    output: str


class Project:
    """A folder with this repository's tools in it, in which option files are written and run.

    The tools keep experiments under the folder above their own, so this repository stays as it is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(REPOSITORY / "tools", root / "tools")

    def write(self, options: Mapping[str, Any], name: str = "options.yml") -> Path:
        """Write an option file."""
        file = self.root / name
        file.write_text(yaml.safe_dump(dict(options), sort_keys=False))
        return file

    def python(self, *arguments: str | Path, package: Path | None = Path(bsr_plugins.__file__).parents[1]) -> Outcome:
        """Run a Python process in the folder; `package` is what holds bsr_plugins, None to leave it out."""
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {} if package is None else {"PYTHONPATH": str(package)}
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return Outcome(done.returncode, done.stdout)

    def tool(self, name: str, options: Mapping[str, Any], *arguments: str) -> Outcome:
        """Run `python tools/NAME.py -opt …`."""
        return self.python(f"tools/{name}.py", "-opt", self.write(options, f"{name}.yml"), *arguments)

    @property
    def experiments(self) -> list[str]:
        """The folders of all runs, those that were moved out of the way included."""
        return sorted(folder.name for folder in self.root.glob("experiments/*"))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def load_tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import one of `tools/` by its name, for as long as a test lasts."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(autouse=True)
def fresh_logger() -> Iterator[None]:
    """Let no test write into the log of another run in this process."""
    yield
    logger = logging.getLogger("basicsr")
    initialized_logger.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture
def in_process(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run one of `PIPELINES` in this process, without CUDA, as `Project.tool` does in another."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def run(name: str, options: Mapping[str, Any], *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [name, "-opt", str(project.write(options)), *arguments])
        monkeypatch.chdir(project.root)
        capfd.readouterr()
        status = engine.run(PIPELINES[name], project.root)
        return Outcome(status, "".join(capfd.readouterr()))

    return run


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight small colour photographs, 96×96."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, pixels in (("astronaut", data.astronaut()), ("coffee", data.coffee())):
        for number in range(4):
            top, left = 80 * number, 100 * number
            crop = pixels[top : top + 96, left : left + 96, ::-1]
            cv2.imwrite(str(folder / f"{name}{number}.png"), crop)
    return folder


@pytest.fixture
def with_a_truncated_image(project: Project, photographs: Path) -> Path:
    """A folder `images` in the project: four photographs, of which `2.png` breaks off."""
    folder = project.root / "images"
    folder.mkdir()
    data = (photographs / "coffee0.png").read_bytes()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(data[:-2000] if number == 2 else data)
    return folder


@pytest.fixture
def aacl_options(photographs: Path) -> Options:
    """Options of a tiny AACL run; a test may change them."""
    dataset = {"type": "PairedDegradationDataset", "dataroot_gt": str(photographs), "seed": 10}
    measures = {"crop_border": 4, "test_y_channel": True}
    return {
        "name": "tiny",
        "model_type": "AACLModel",
        "scale": 4,
        "num_gpu": 0,
        "manual_seed": 10,
        "degradation": {
            "type": "ClassicalDegradation",
            "blur_iso": {"sigma": [0.2, 4.0]},
            "blur_aniso": {"sigma": [0.2, 4.0]},
            "noise": {"level": [0, 25]},
            "jpeg": {"quality": [30, 95]},
            "types": ["bicubic", "iso", "aniso+noise", "aniso+jpeg"],
            "sampler": "uniform",
        },
        "datasets": {
            "train": {
                "name": "train",
                **dataset,
                "degrade_on": "device",
                "num_views": 3,
                "gt_size": 64,
                "use_hflip": True,
                "use_rot": True,
                "calibration_images": 2,
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 4,
                "dataset_enlarge_ratio": 100,
            },
            "val": {"name": "val", **dataset, "protocol": "six", "settings": ["iso"]},
        },
        "network_g": {"type": "AACLNet", "num_feat": 8, "num_group": 1, "num_block": 1, "encoder_num_feat": 8},
        "network_moco": {
            "type": "MoCo",
            "encoder": {"type": "ContrastiveEncoder", "num_feat": 8},
            "dim": 32,
            "queue_size": 64,
            "momentum": 0.9,
        },
        "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
        "train": {
            "ema_decay": 0.9,
            "total_iter": 4,
            "encoder_phase": {"iters": 2, "lr": 0.001},
            "sigma_alignment": {"keep": 2},
            "optim_g": {"type": "Adam", "lr": 0.002},
            "scheduler": {"type": "MultiStepLR", "milestones": [1000], "gamma": 0.5},
            "pixel_opt": {"type": "L1Loss"},
            "contrastive_opt": {"type": "InfoNCELoss", "loss_weight": 0.1},
        },
        "val": {
            "val_freq": 1000,
            "save_img": False,
            "suffix": None,
            "metrics": {
                "psnr": {"type": "calculate_psnr", **measures},
                "ssim": {"type": "calculate_ssim", **measures},
            },
        },
        "logger": {"print_freq": 1, "save_checkpoint_freq": 1000, "use_tb_logger": False},
    }


@pytest.fixture
def redsr_options(photographs: Path) -> Options:
    """Options of a tiny ReDSR run; a test may change them.

    It is one for ×2, so that LR patches of 24 pixels, the least that the encoder takes, are from all over an image.
    """
    dataset = {"type": "PairedDegradationDataset", "dataroot_gt": str(photographs), "seed": 10}
    encoder = {"type": "ReDSREncoder", "num_feat": 4, "representation_dim": 6}
    return {
        "name": "tiny",
        "model_type": "ReDSRModel",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 10,
        "degradation": {"type": "ClassicalDegradation", "blur_iso": {"sigma": [0.2, 4.0]}},
        "datasets": {
            "train": {
                "name": "train",
                **dataset,
                "degrade_on": "device",
                "num_views": 2,
                "gt_size": 48,
                "use_hflip": True,
                "use_rot": True,
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 4,
                "dataset_enlarge_ratio": 100,
            },
            "val": {"name": "val", **dataset, "protocol": "widths", "settings": ["sig1.8"]},
        },
        "network_g": {
            "type": "ReDSR",
            "num_feat": 8,
            "num_group": 2,
            "num_block": 1,
            "reduction": 4,
            "upscale": 2,
            "encoder": encoder,
        },
        "network_degrader": {"type": "ReDSRDegrader", "num_feat": 8, "representation_dim": 6, "scale": 2},
        "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
        "train": {
            "ema_decay": 0.9,
            "total_iter": 4,
            "optim_g": {"type": "Adam", "lr": 0.002},
            "scheduler": {"type": "MultiStepLR", "milestones": [1000], "gamma": 0.5},
            "pixel_opt": {"type": "ModulatedL1Loss", "loss_weight": 1.0},
            "redegradation_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
            "representation_opt": {"type": "EnergyDistanceLoss", "loss_weight": 0.01, "num_samples": 16},
        },
        "val": {
            "val_freq": 1000,
            "save_img": False,
            "suffix": None,
            "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}},
        },
        "logger": {"print_freq": 1, "save_checkpoint_freq": 1000, "use_tb_logger": False},
    }


@pytest.fixture
def dasr_options(redsr_options: Options) -> Options:
    """Options of a tiny DASR run; a test may change them."""
    options = redsr_options
    del options["network_degrader"]
    del options["train"]["redegradation_opt"], options["train"]["representation_opt"]
    encoder = {"type": "ContrastiveEncoder", "num_feat": 4, "img_range": 255.0}
    options["network_moco"] = {"type": "MoCo", "encoder": encoder, "dim": 16, "queue_size": 64, "momentum": 0.9}
    options["network_g"] = {
        "type": "DASR",
        "num_feat": 8,
        "num_group": 1,
        "num_block": 1,
        "reduction": 4,
        "upscale": 2,
        "encoder_num_feat": 4,
    }
    options["train"] |= {
        "encoder_phase": {"iters": 2, "lr": 0.001},
        "pixel_opt": {"type": "L1Loss"},
        "contrastive_opt": {"type": "InfoNCELoss", "loss_weight": 0.1},
    }
    options["model_type"] = "DASRModel"
    return options


@pytest.fixture
def as_read(tmp_path: Path) -> Callable[[Options], Options]:
    """Add to options for training what BasicSR adds when it reads them, for models outside a pipeline."""

    def add(options: Options) -> Options:
        for folder in ("experiments_root", "models", "training_states"):
            options["path"][folder] = str(tmp_path)
        for phase, block in options["datasets"].items():
            block |= {"phase": phase, "scale": options["scale"]}
        return options | {"is_train": True, "dist": False, "rank": 0, "world_size": 1, "auto_resume": False}

    return add
