"""The option files of this repository are options that can be used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bsr_plugins.options.faults import OptionFaults
from bsr_plugins.options.files import resolve
from bsr_plugins.options.preflight import prepare

OPTIONS = Path(__file__).resolve().parents[2] / "options"
DF2K_IMAGES, DEMO_IMAGES = 3450, 7
FILES = sorted(OPTIONS.rglob("*.yml"))


def test_they_are_found() -> None:
    assert {"train_aacl.yml", "test_aacl.yml", "train_aacl_x4.yml"} <= {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(OPTIONS)) for file in FILES])
def test_they_pass_every_check(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = resolve(file)
    is_train = "train" in options["datasets"]
    overrides = ["num_gpu=0"]
    if "paper" in file.relative_to(OPTIONS).parts:  # its data sets are not at hand
        for phase, block in options["datasets"].items():
            assert block["dataroot_gt"] != "demo"
            overrides.append(f"datasets:{phase}:dataroot_gt=demo")
            if phase == "train":
                ratio = block["dataset_enlarge_ratio"] * (DF2K_IMAGES // DEMO_IMAGES)
                overrides.append(f"datasets:train:dataset_enlarge_ratio={ratio}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["x", "-opt", str(file), "--check", "--set", *overrides])
    monkeypatch.chdir(tmp_path)
    if is_train:
        assert prepare(str(tmp_path), is_train).only_check
        assert capsys.readouterr().out == f"{file}: no faults found\n"
    else:  # what it tests has to be trained first
        with pytest.raises(OptionFaults, match="there is no such file") as caught:
            prepare(str(tmp_path), is_train)
        (line,) = caught.value.lines
        assert f": path.pretrain_network_g: {options['path']['pretrain_network_g']}: " in line
    assert list(tmp_path.iterdir()) == []


def test_the_test_run_takes_what_the_training_run_leaves() -> None:
    train, test = (resolve(OPTIONS / name) for name in ("train_aacl.yml", "test_aacl.yml"))
    assert test["network_g"] == train["network_g"]
    assert test["scale"] == train["scale"]
    assert test["path"]["pretrain_network_g"] == f"experiments/{train['name']}/models/net_g_latest.pth"
    assert test["path"]["param_key_g"] == "params_ema"
    assert train["train"]["ema_decay"] > 0
