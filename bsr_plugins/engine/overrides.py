"""Options from the command line, `--set KEY:KEY=VALUE`, in place of those of the file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bsr_plugins.engine.faults import Faults, dotted
from bsr_plugins.engine.inheritance import Resolved
from bsr_plugins.engine.option_yaml import read_value


def apply_overrides(resolved: Resolved, entries: Iterable[str], faults: Faults) -> None:
    """Set options, in the order of the entries; blocks that are not there, or null, are made.

    Args:
        resolved: What the file says; it is changed.
        entries: Values are read as YAML, keys may be new.
        faults: For entries that cannot be used.
    """
    for entry in entries:
        message = _apply(resolved, entry)
        if message:
            faults.add(f"--set {entry}: {message}")
        else:
            resolved.data = None


def _apply(resolved: Resolved, entry: str) -> str:
    """Apply an entry; return what is wrong with it, if anything."""
    name, equals, text = entry.partition("=")
    keys = tuple(key.strip() for key in name.split(":"))
    if not equals or not all(keys):
        return "expected KEY=VALUE or KEY:KEY=VALUE"
    try:
        value = read_value(text)
    except ValueError as error:
        return f"the value cannot be read as YAML: {error}"
    block: dict[str, Any] = resolved.options
    for depth, key in enumerate(keys[:-1]):
        inner = block.get(key)
        if inner is None:
            inner = block[key] = {}
            resolved.positions[keys[: depth + 1]] = f"--set {entry}"
        if not isinstance(inner, dict):
            return f"{dotted(keys[: depth + 1])} is {inner!r}, expected a block of keys"
        block = inner
    block[keys[-1]] = value
    for below in [place for place in resolved.positions if place[: len(keys)] == keys]:
        del resolved.positions[below]
    resolved.positions[keys] = f"--set {entry}"
    return ""
