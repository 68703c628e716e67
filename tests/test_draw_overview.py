"""The pictures of the documentation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

WIDTH = 1400
MOST_BYTES = 300_000
PICTURES = ("data_flow.png", "overview.png")


def test_the_pictures_are_small_and_the_same_every_time(
    load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = load_tool("draw_overview")
    for name in ("first", "second"):
        monkeypatch.setattr(sys, "argv", ["draw_overview.py", "--out", str(tmp_path / name)])
        assert tool.draw() == 0
    for name in PICTURES:
        file = tmp_path / "first" / name
        assert file.read_bytes() == (tmp_path / "second" / name).read_bytes()
        assert file.stat().st_size <= MOST_BYTES
        with Image.open(file) as image:
            assert image.width == WIDTH
            colours = image.convert("RGB").getcolors(image.width * image.height)
        assert colours is not None
        assert len(colours) > 100, "there are photographs in it"


def test_the_pictures_of_the_documentation_are_there() -> None:
    docs = Path(__file__).parents[1] / "docs"
    for name in PICTURES:
        with Image.open(docs / name) as image:
            assert image.width == WIDTH
