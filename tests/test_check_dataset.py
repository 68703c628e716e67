"""The command line that checks data sets, as a real process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

import bsr_plugins

if TYPE_CHECKING:
    from tests.conftest import Project

MANY = 1000  # takes about 20 seconds
SOON = 10


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Run the tool in this process; gives the status, and what it printed."""
    tool, before = load_tool("check_dataset"), signal.getsignal(signal.SIGTERM)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["check_dataset.py", *map(str, arguments), "--processes", "1"])
        status: int = tool.main()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    yield run
    signal.signal(signal.SIGTERM, before)


def test_bad_images_are_listed_by_a_process_of_its_own(project: Project, with_a_truncated_image: Path) -> None:
    (with_a_truncated_image / "3.png").write_text("no image")
    outcome = project.python("tools/check_dataset.py", "images", "--gt-size", "97", "--processes", "2")
    assert outcome.status == 1
    lines = outcome.output.splitlines()
    assert "Traceback" not in outcome.output
    assert "4/4" in outcome.output, "there is a progress bar"
    assert "images/0.png: is 96x96, expected both sides at least gt_size 97" in lines
    assert "images/3.png: is no image (8 bytes)" in lines
    assert any(line.startswith("images/2.png: is truncated or damaged (PNG, ") for line in lines)
    assert "4 images checked, 4 bad" in lines


def test_a_good_folder_and_its_pairs(call: Call, photographs: Path) -> None:
    status, out, err = call(photographs, "--gt-size", "64", "--scale", "1", "--lq", photographs)
    assert (status, out) == (0, "16 images checked, 0 bad\nsizes: 1, from 96x96 to 96x96\n")
    assert "16/16" in err
    status, out, _ = call(photographs, "--scale", "2", "--lq", photographs, "--lq-name", "{}x2")
    assert status == 1
    assert out.startswith(f"{photographs}/astronaut0.png: has no LQ image astronaut0x2 in {photographs}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: folder: 'nowhere' is missing or no folder, expected a folder of images or an LMDB"),
        (["tools", "--scale", "0"], "error: scale: 0, expected a whole number at least 1"),
        (["tools"], "error: folder: 'tools' holds no image, expected files ending in "),
    ],
)
def test_bad_arguments_are_one_line_and_a_status(
    call: Call, project: Project, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(project.root)
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_its_processes(number: signal.Signals, project: Project) -> None:
    (project.root / "many").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), np.uint8)
    cv2.imwrite(str(project.root / "0.png"), noise)
    for name in range(MANY):
        (project.root / "many" / f"{name}.png").hardlink_to(project.root / "0.png")
    process = subprocess.Popen(
        [sys.executable, "tools/check_dataset.py", "many", "--processes", "2"],
        cwd=project.root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(bsr_plugins.__file__).parents[1])},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    seen = b""
    while not re.search(rb" [1-9]\d*/1000", seen):
        more = os.read(process.stderr.fileno(), 1000)
        assert more, seen
        seen += more
    began = time.monotonic()
    if number is signal.SIGINT:  # from a terminal it reaches the whole group
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, rest = process.communicate(timeout=20)
    assert time.monotonic() - began < SOON
    assert process.returncode == 130, seen + rest
    assert rest.endswith(b"interrupted: not all images were checked\n")
    assert b"Traceback" not in rest
    end = time.monotonic() + 3
    while _members(process.pid):
        assert time.monotonic() < end, "processes are left behind"
        time.sleep(0.05)


def _members(group: int) -> list[str]:
    """Return the processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if its_group == str(group) and state != "Z":
            found.append(stat.parent.name)
    return found
