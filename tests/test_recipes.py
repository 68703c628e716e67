"""The option files of this repository: each can be used, and says of itself what holds."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.utils.options import ordered_yaml

from bsr_plugins import engine
from bsr_plugins.options.files import resolve

OPTIONS = Path(__file__).resolve().parents[1] / "options"
TRAIN_IMAGES, DEMO_IMAGES = {"DF2K": 3450, "DIV2K": 800}, 7
FILES = sorted(OPTIONS.rglob("*.yml"))
RECIPES = [file for file in FILES if "_base_" not in file.relative_to(OPTIONS).parts]
TESTS = [file for file in RECIPES if file.name.startswith("test")]
FLAT = ("train_aacl.yml", "test_aacl.yml")
SCHEMA = "# yaml-language-server: $schema="
BLOCK = re.compile(r"network_|blur_|noise|jpeg|dropout|\w+_opt$")
ROW = re.compile(r"^\| `([\w/]+\.yml)` \|", re.MULTILINE)


class Checked(NamedTuple):
    """What `--check` left: the exit status, and the lines that it printed."""

    status: int
    lines: list[str]


@cache
def options_of(file: Path) -> dict[str, Any]:
    """Return the options of a file with all that it inherits; they are not to be changed."""
    return resolve(file)


def name_of(file: Path) -> str:
    return str(file.relative_to(OPTIONS))


def bases_of(file: Path) -> Iterator[Path]:
    """Yield the files that a file inherits from, and those that these inherit from."""
    given = yaml.safe_load(file.read_text(encoding="utf-8")).get("_base_", [])
    for base in [given] if isinstance(given, str) else given:
        yield (file.parent / base).resolve()
        yield from bases_of((file.parent / base).resolve())


@pytest.fixture
def check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Checked]:
    """Run what `tools/train.py` or `tools/test.py` runs with `--check`, in this process and without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)

    def run(file: Path, *overrides: str) -> Checked:
        pipeline = engine.test_pipeline if file in TESTS else engine.train_pipeline
        monkeypatch.setattr(sys, "argv", ["x", "-opt", str(file), "--check", "--set", "num_gpu=0", *overrides])
        status = engine.run(pipeline, tmp_path)
        assert list(tmp_path.iterdir()) == [], "a check leaves nothing behind"
        return Checked(status, "".join(capsys.readouterr()).splitlines())

    return run


def on_demo_images(options: dict[str, Any]) -> Iterator[str]:
    """Yield what puts the photographs of scikit-image in the place of data sets that are not at hand."""
    for phase, block in options["datasets"].items():
        assert block["dataroot_gt"] != "demo"
        yield f"datasets:{phase}:dataroot_gt=demo"
        if phase == "train":
            ratio = block["dataset_enlarge_ratio"] * (TRAIN_IMAGES[block["name"]] // DEMO_IMAGES)
            yield f"datasets:train:dataset_enlarge_ratio={ratio}"


def test_they_are_found() -> None:
    names = {file.name for file in RECIPES}
    assert {"train_aacl.yml", "test_aacl.yml", "train_aacl_x4.yml", "srresnet_none.yml", "model1.yml"} <= names
    assert "runtime.yml" not in names


@pytest.mark.parametrize("file", RECIPES, ids=name_of)
def test_they_pass_every_check(file: Path, check: Callable[..., Checked]) -> None:
    options = options_of(file)
    paper = "paper" in file.relative_to(OPTIONS).parts
    status, lines = check(file, *(on_demo_images(options) if paper else ()))
    if file in TESTS:  # what it tests has to be trained first
        assert status == 2
        (line,) = lines
        weights = options["path"]["pretrain_network_g"]
        assert f": path.pretrain_network_g: {weights}: there is no such file" in line
    else:
        assert (status, lines) == (0, [f"{file}: no faults found"])


@pytest.mark.parametrize("file", TESTS, ids=name_of)
def test_a_test_takes_the_weights_of_a_training_run(file: Path) -> None:
    test = options_of(file)
    runs = {options["name"]: options for options in map(options_of, RECIPES) if "train" in options["datasets"]}
    weights = re.fullmatch(r"experiments/(\w+)/models/net_g_latest\.pth", test["path"]["pretrain_network_g"])
    assert weights is not None
    train = runs[weights[1]]
    assert (test["scale"], test["model_type"]) == (train["scale"], train["model_type"])
    assert test["path"]["strict_load_g"] is True
    assert test["path"].get("param_key_g", "params") == ("params_ema" if train["train"]["ema_decay"] > 0 else "params")
    assert test["val"]["metrics"] == train["val"]["metrics"]
    if test["network_g"] != train["network_g"]:
        assert shapes(test) == shapes(train)


def shapes(options: dict[str, Any]) -> dict[str, torch.Size]:
    """Return the shape of every weight of a run's `network_g`."""
    return {key: value.shape for key, value in build_network(options["network_g"]).state_dict().items()}


def test_every_run_has_a_name_to_itself() -> None:
    names = Counter(options_of(file)["name"] for file in RECIPES)
    assert set(names.values()) == {1}


def blocks(options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys that add something to a run, and what they hold."""
    for level in (options, options.get("train", {}), options.get("degradation", {})):
        yield from ((key, value) for key, value in level.items() if BLOCK.match(key))


def test_no_recipe_takes_back_a_block_that_it_inherits() -> None:
    """Baselines are parents: a recipe adds to them, and none has a network or a loss that is null."""
    for file in RECIPES:
        assert [key for key, value in blocks(options_of(file)) if value is None] == [], name_of(file)


@pytest.mark.parametrize("name", FLAT)
def test_stock_basicsr_reads_the_first_example(name: str) -> None:
    text = (OPTIONS / name).read_text(encoding="utf-8")
    assert yaml.load(text, Loader=ordered_yaml()[0]) == options_of(OPTIONS / name)
    assert "_base_" not in text


def test_every_shared_file_is_of_use() -> None:
    shared = set(FILES) - set(RECIPES)
    used = Counter(base for file in RECIPES for base in set(bases_of(file)))
    assert shared
    assert {name_of(file) for file in shared if used[file] < 2} == set()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_editors_find_the_schema(file: Path) -> None:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first == SCHEMA + os.path.relpath(OPTIONS / "schema.json", file.parent).replace(os.sep, "/")


def test_the_readme_lists_every_recipe_once() -> None:
    rows = ROW.findall((OPTIONS / "README.md").read_text(encoding="utf-8"))
    assert sorted(rows) == sorted(file.relative_to(OPTIONS).as_posix() for file in RECIPES)
