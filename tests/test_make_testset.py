"""The command line that writes test sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from bsr_plugins.data.testset_writer import MANIFEST

if TYPE_CHECKING:
    from tests.conftest import Project


@pytest.fixture
def call(
    load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the tool in this process; gives the status, and what it printed."""
    tool = load_tool("make_testset")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["make_testset.py", *map(str, arguments), "--processes", "1"])
        status: int = tool.main()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_writes_a_set_in_a_process_of_its_own(project: Project, photographs: Path) -> None:
    arguments = (photographs, "--out", "set", "--protocol", "six", "--settings", "iso", "--processes", "2")
    outcome = project.python("tools/make_testset.py", *arguments)
    assert outcome.status == 0, outcome.output
    count = len(list(photographs.iterdir()))
    assert f"set: {2 * count} images written, 0 were there." in outcome.output
    assert f"{count}/{count}" in outcome.output, "there is a progress bar"
    assert len(list((project.root / "set" / "LR_iso" / "X4").glob("*.png"))) == count
    assert not (Path(__file__).parents[1] / "set").exists()


def test_goes_on_and_takes_the_demo_photographs(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    arguments = ("demo", "--out", tmp_path / "set", "--protocol", "bicubic", "--scale", "3", "--seed", "5")
    assert call(*arguments)[:2] == (0, f"{tmp_path / 'set'}: 4 images written, 0 were there.\n")
    assert call(*arguments)[:2] == (0, f"{tmp_path / 'set'}: 0 images written, 4 were there.\n")
    manifest = json.loads((tmp_path / "set" / MANIFEST).read_text())
    assert (manifest["scale"], manifest["seed"], list(manifest["settings"])) == (3, 5, ["bicubic"])
    assert sorted(file.name for file in (tmp_path / "set" / "LR_bicubic" / "X3").iterdir()) == [
        "chelsea.png",
        "rocket.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "align"], "protocol: unknown name 'align', expected one of align8, "),
        (["--protocol", "align8", "--settings", "blurr"], "settings: unknown name 'blurr'"),
        (["--protocol", "align8", "--scale", "0"], "scale: 0, expected a whole number at least 1"),
        (["--protocol", "gaussian8", "--scale", "5"], "protocol: gaussian8 at scale 5"),
    ],
)
def test_bad_input_is_one_line_and_a_status(
    arguments: list[str], message: str, call: Callable[..., tuple[int, str, str]], photographs: Path, tmp_path: Path
) -> None:
    status, out, err = call(photographs, "--out", tmp_path / "set", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "set").exists()


def test_an_image_that_breaks_off_is_named(
    call: Callable[..., tuple[int, str, str]], with_a_truncated_image: Path, tmp_path: Path
) -> None:
    status, _, err = call(with_a_truncated_image, "--out", tmp_path / "set", "--protocol", "align8")
    assert status == 2
    error = err.splitlines()[-1]
    assert error.startswith(f"error: {with_a_truncated_image / '2.png'}: cannot be decoded")
    assert "Traceback" not in err
    assert not (tmp_path / "set").exists()


def test_an_interruption_says_how_to_go_on(
    call: Callable[..., tuple[int, str, str]], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bsr_plugins.data.testset_writer._write_png", interrupt)
    status, _, err = call(photographs, "--out", tmp_path / "set", "--protocol", "bicubic")
    assert status == 130
    assert err.splitlines()[-1] == "interrupted: the same command goes on from here"
