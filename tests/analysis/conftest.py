"""Command lines that are refused, in this process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def refusal(
    load_tool: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Callable[..., str]:
    """Run one of the tools, which must end with status 2; gives the last line that it prints."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        tool, before = load_tool(name), signal.getsignal(signal.SIGTERM)
        try:
            status = tool.main()
        except SystemExit as error:
            status = error.code
        finally:
            signal.signal(signal.SIGTERM, before)
        assert status == 2
        assert not list(tmp_path.glob("*.png"))
        return capsys.readouterr().err.splitlines()[-1]

    return run
