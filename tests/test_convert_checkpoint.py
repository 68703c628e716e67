"""The conversion of released checkpoints as a command line, and a test run with what it writes."""

from __future__ import annotations

import importlib.util
import pickle
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
import yaml

from bsr_plugins.archs.released_checkpoints import convert, convert_back
from bsr_plugins.errors import BSRError
from tests.archs import released_networks as released
from tests.archs.released_networks import Hostile, assert_same_file, written

if TYPE_CHECKING:
    from tests.conftest import Outcome, Project

TOOL = "tools/convert_checkpoint.py"
MAKERS: dict[str, Callable[..., dict[str, Any]]] = {"ReDSR": released.redsr_file, "DASR": released.dasr_file}
COMPANIONS = {"ReDSR": "degrader", "DASR": "moco"}


class Done(NamedTuple):
    """What a call of the tool left."""

    status: int
    output: str


Tool = Callable[..., "Done | Outcome"]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], project: Project) -> Tool:
    """Run the tool in this process and in the project's folder; what it prints on stdout and stderr is one text."""
    spec = importlib.util.spec_from_file_location("convert_checkpoint", project.root / TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(project.root)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", [TOOL, *arguments])
        status = module.main()
        return Done(status, "".join(capfd.readouterr()))

    return run


def check_there_and_back(kind: str, root: Path, run: Tool) -> None:
    content, companion = MAKERS[kind](num_block=2, upscale=3), COMPANIONS[kind]
    torch.save(content, root / "released.tar")
    (root / "weights").mkdir()
    outcome = run("released.tar", "--out", "weights/ours")
    assert outcome.status == 0, outcome.output
    assert {file.name for file in root.glob("weights/ours/*")} == {"net_g.pth", f"net_{companion}.pth"}
    options = yaml.safe_load(outcome.output)
    assert list(options) == ["network_g", f"network_{companion}"]
    assert options["network_g"].items() >= {"type": kind, "num_block": 2, "upscale": 3}.items()
    assert "# path.pretrain_network_g: weights/ours/net_g.pth" in outcome.output

    outcome = run("weights/ours", "--back", "--param-key", "params", "--out", "back.tar")
    assert outcome.status == 0, outcome.output
    assert outcome.output == "# back.tar is written.\n"
    assert_same_file(torch.load(root / "back.tar", weights_only=True), content)


def test_there_and_back_as_processes(project: Project) -> None:
    check_there_and_back("ReDSR", project.root, partial(project.python, TOOL))


def test_there_and_back(project: Project, tool: Tool) -> None:
    check_there_and_back("DASR", project.root, tool)


def test_a_hostile_file_is_one_line_and_a_status_as_a_process(project: Project) -> None:
    torch.save(
        {**released.redsr_file(num_block=1), "epoch": Hostile(project.root / "made")}, project.root / "hostile.tar"
    )
    (project.root / "pickle").write_bytes(pickle.dumps(Hostile(project.root / "made"), protocol=4))
    before = everything(project.root)
    for name in ("hostile.tar", "pickle"):
        outcome = project.python(TOOL, name, "--out", "new")
        assert outcome.status == 2, outcome.output
        assert re.fullmatch(
            rf"error: {name}: cannot be loaded safely \(\w+Error: .*\), expected a .*\n", outcome.output
        )
        assert everything(project.root) == before


def everything(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if "__pycache__" not in path.parts)


def test_bad_input_is_one_line_and_a_status(project: Project, tool: Tool) -> None:
    redsr, root = released.redsr_file(num_block=1), project.root
    torch.save(redsr, root / "good.tar")
    convert(root / "good.tar", root / "ours")
    (root / "broken.tar").write_bytes((root / "good.tar").read_bytes()[:-5000])
    redsr["model_DP_state_dict"]["ConvNet.1.bias"] = torch.zeros(7)
    torch.save(redsr, root / "odd.tar")
    torch.save({"params": {}}, root / "other.tar")
    cases = [
        ("missing.tar --out new", r"missing\.tar: cannot be read \(No such file or directory\), expected a checkpoint"),
        ("broken.tar --out new", r"broken\.tar: cannot be loaded safely \(.*\), expected a checkpoint"),
        (
            "odd.tar --out new",
            r"odd\.tar: has misfits: 'model_DP_state_dict\.ConvNet\.1\.bias' is \(7,\) and not \(64,\).*",
        ),
        ("other.tar --out new", r"other\.tar: is no released checkpoint, expected .*"),
        ("good.tar --out ours", r"ours/net_g\.pth: is there already, expected .*"),
        ("other.tar --back --out new", r"other\.tar: holds another network, expected .*"),
        ("ours --back --out new --param-key params_ema", r"ours/net_g\.pth: holds no weights under params_ema, exp.*"),
    ]
    before = everything(root)
    for arguments, message in cases:
        outcome = tool(*arguments.split())
        assert outcome.status == 2, outcome.output
        assert re.fullmatch(f"error: {message}\n", outcome.output), outcome.output
        assert everything(root) == before
    assert tool("good.tar", "--out", "ours", "--force").status == 0


def test_an_option_without_use_is_an_error(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool("good.tar", "--out", "new", "--param-key", "params_ema")
    assert "error: --param-key is for --back alone" in capfd.readouterr().err


def test_files_are_replaced_on_demand_alone(tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    torch.save(released.dasr_file(0, 1), tmp_path / "released.tar")
    convert(tmp_path / "released.tar", folder)
    torch.save(released.dasr_file(1, 1), tmp_path / "other.pt")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(BSRError, match=r"net_g.pth: is there already, expected"):
        convert(tmp_path / "other.pt", folder)
    with pytest.raises(BSRError, match=r"released.tar: is there already, expected"):
        convert_back(folder, tmp_path / "released.tar")
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    convert(tmp_path / "other.pt", folder, force=True)
    convert_back(folder, tmp_path / "released.tar", force=True)
    assert_same_file(torch.load(tmp_path / "released.tar", weights_only=True), released.dasr_file(1, 1))
    assert written(folder) == {"net_g.pth", "net_moco.pth"}
    with pytest.raises(BSRError, match="ours: is there already, expected"):
        convert_back(folder, folder, force=True)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let writing fail in the middle of a file, as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    torch.save(released.redsr_file(num_block=1), tmp_path / "released.tar")
    with no_file_above(6_000_000), pytest.raises(BSRError, match=r"net_g\.pth: cannot be written \(File too large\)"):
        convert(tmp_path / "released.tar", tmp_path / "ours")
    assert written(tmp_path) == {"released.tar"}
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "net_g.pth").write_bytes(b"old")
    with no_file_above(6_000_000), pytest.raises(BSRError, match="cannot be written"):
        convert(tmp_path / "released.tar", tmp_path / "ours", force=True)
    assert written(tmp_path / "ours") == {"net_g.pth"}
    assert (tmp_path / "ours" / "net_g.pth").read_bytes() == b"old"


@pytest.mark.parametrize(("folder", "reason"), [("no/such", "No such file"), ("released.tar", "File exists")])
def test_a_folder_that_cannot_be_made_is_refused(folder: str, reason: str, tmp_path: Path) -> None:
    torch.save(released.redsr_file(num_block=1), tmp_path / "released.tar")
    with pytest.raises(BSRError, match=rf"{folder}: cannot be written to \({reason}"):
        convert(tmp_path / "released.tar", tmp_path / folder)
    assert written(tmp_path) == {"released.tar"}


@pytest.mark.parametrize("model_type", ["SRModel", "BlindSRModel"])
@pytest.mark.parametrize("kind", MAKERS)
def test_converted_weights_are_tested_by_our_tools(
    kind: str, model_type: str, project: Project, photographs: Path, in_process: Callable[..., Outcome]
) -> None:
    content = MAKERS[kind]()
    torch.save(content, project.root / "released.tar")
    options = convert(project.root / "released.tar", project.root / "ours")
    (project.root / "images").mkdir()
    shutil.copy(photographs / "coffee0.png", project.root / "images")
    outcome = in_process(
        "test",
        {
            "name": "converted",
            "model_type": model_type,
            "scale": 4,
            "num_gpu": 0,
            "manual_seed": 0,
            "datasets": {
                "test": {
                    "name": "photographs",
                    "type": "PairedDegradationDataset",
                    "dataroot_gt": str(project.root / "images"),
                    "protocol": "bicubic",
                    "seed": 0,
                }
            },
            "network_g": options["network_g"],
            "path": {"pretrain_network_g": str(project.root / "ours" / "net_g.pth"), "strict_load_g": True},
            "val": {
                "save_img": True,
                "suffix": None,
                "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4}},
            },
        },
    )
    assert outcome.status == 0, outcome.output
    assert re.search(r"# psnr: \d+\.\d+", outcome.output), outcome.output
    (image,) = (project.root / "results").rglob("*.png")
    pixels = cv2.imread(str(image))
    assert pixels is not None
    assert pixels.shape == (96, 96, 3)
    assert np.std(pixels) > 1
