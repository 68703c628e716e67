"""The complete files of docs/extending.md, and the option blocks that go with them."""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
_FENCED = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```\n(?:\n```yaml\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A file of the guide.

    Attributes:
        code: Its content.
        options: What an option file says to use it; empty where the guide has nothing.
    """

    code: str
    options: dict[str, Any]


def examples() -> dict[str, Example]:
    """Return the guide's files by name."""
    found = _FENCED.findall(GUIDE.read_text(encoding="utf-8"))
    return {name: Example(code, yaml.safe_load(block) if block else {}) for name, code, block in found}


def example_file(name: str) -> Path:
    """Write one of the guide's files into a folder outside the package, and return its path."""
    file = Path(_folder().name) / f"{name}.py"
    file.write_text(examples()[file.name].code, encoding="utf-8")
    return file


def load_example(name: str) -> ModuleType:
    """Import one of the guide's files, once in a process."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, example_file(name))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()
