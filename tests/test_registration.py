"""Registering: under BasicSR's own registries' rules, again after a reload, and never over somebody else's name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from basicsr.utils.registry import ARCH_REGISTRY, Registry

from bsr_plugins.errors import BSRError
from bsr_plugins.registration import register

FOREIGN = """
class Encoder:
    pass
"""
RELOADED = """
from basicsr.utils.registry import ARCH_REGISTRY
from bsr_plugins.registration import register

@register(ARCH_REGISTRY)
class EncoderThatIsReloaded:
    pass
"""


@pytest.fixture
def registry() -> Registry:
    return Registry("arch")


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of another package, which has a class of its own called Encoder."""
    (tmp_path / "foreign_encoders.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "foreign_encoders", raising=False)
    return importlib.import_module("foreign_encoders")


class Encoder:
    pass


def test_registers_and_returns_the_class(registry: Registry) -> None:
    assert register(registry)(Encoder) is Encoder
    assert registry.get("Encoder") is Encoder


def test_registers_functions(registry: Registry) -> None:
    def calculate() -> float:
        return 1.0

    register(registry)(calculate)
    assert registry.get("calculate") is calculate


def test_a_taken_name_says_by_whom(registry: Registry, foreign: ModuleType) -> None:
    registry.register(foreign.Encoder)
    with pytest.raises(BSRError) as caught:
        register(registry)(Encoder)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("'Encoder'", "arch registry", "foreign_encoders.Encoder", str(foreign.__file__)):
        assert part in message
    assert registry.get("Encoder") is foreign.Encoder, "the holder keeps its name"


def test_a_holder_that_has_no_file_is_named_too(registry: Registry) -> None:
    registry.register(type("Encoder", (), {"__module__": "made_up"}))
    with pytest.raises(BSRError, match=r"taken by made_up\.Encoder \(no file\)"):
        register(registry)(Encoder)


def test_a_reloaded_module_replaces_its_own_class(foreign: ModuleType) -> None:
    name = "EncoderThatIsReloaded"
    Path(str(foreign.__file__)).write_text(RELOADED)
    try:
        before = importlib.reload(foreign).EncoderThatIsReloaded
        after = importlib.reload(foreign).EncoderThatIsReloaded
        assert after is not before
        assert ARCH_REGISTRY.get(name) is after
    finally:
        ARCH_REGISTRY._obj_map.pop(name, None)
