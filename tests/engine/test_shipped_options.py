"""The option files of this repository are options that can be used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from basicsr.utils.options import parse_options

from bsr_plugins.engine.inheritance import as_yaml, resolve
from bsr_plugins.engine.option_file import check_option_file
from bsr_plugins.engine.preflight import check_options

if TYPE_CHECKING:
    from tests.conftest import Options

OPTIONS = Path(__file__).resolve().parents[2] / "options"
DF2K_IMAGES, DEMO_IMAGES = 3450, 7
FILES = sorted(OPTIONS.rglob("*.yml"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], Options]:
    """Read an option file as BasicSR does, after resolving what it inherits."""

    def parse(file: Path) -> Options:
        flat = tmp_path / file.name
        flat.write_bytes(as_yaml(resolve(file)))
        monkeypatch.setattr(sys, "argv", ["x", "-opt", str(flat)])
        options: Options = parse_options("root", is_train="train" in resolve(file)["datasets"])[0]
        return options

    return parse


def test_they_are_found() -> None:
    assert {"train_aacl.yml", "test_aacl.yml", "train_aacl_x4.yml"} <= {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(OPTIONS)) for file in FILES])
def test_they_pass_every_check(file: Path, read: Callable[[Path], Options], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = read(file)
    check_option_file(file, options["is_train"])
    options["num_gpu"] = 0
    if not options["is_train"]:  # what it tests has to be trained first
        assert options["path"].pop("pretrain_network_g") is not None
    if "paper" in file.relative_to(OPTIONS).parts:  # its data sets are not at hand
        for phase, block in options["datasets"].items():
            assert block["dataroot_gt"] != "demo"
            block["dataroot_gt"] = "demo"
            if phase == "train":
                block["dataset_enlarge_ratio"] *= DF2K_IMAGES // DEMO_IMAGES
    check_options(options)


def test_the_test_run_takes_what_the_training_run_leaves(read: Callable[[Path], Options]) -> None:
    train, test = (read(OPTIONS / name) for name in ("train_aacl.yml", "test_aacl.yml"))
    assert test["network_g"] == train["network_g"]
    assert test["scale"] == train["scale"]
    assert test["path"]["pretrain_network_g"] == f"experiments/{train['name']}/models/net_g_latest.pth"
    assert test["path"]["param_key_g"] == "params_ema"
    assert train["train"]["ema_decay"] > 0
