"""Option files that say only what differs from others, and options from the command line in place of theirs.

The rules are those of mmengine's Config, which the field knows: `_base_: other.yml` at the top of a file names what it
inherits from, relative to the file itself; mappings merge deeply, all else replaces; `_delete_: true` in a mapping
replaces the inherited one. The code is ours, as mmengine reads YAML with the loader that can construct any Python
object; every file here is read by a safe one. What mmengine refuses and we take: bases that share keys, of which the
last one wins, and a mapping in place of an inherited value that is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bsr_plugins.errors import OptionError
from bsr_plugins.options.faults import Faults, OptionFaults, Place, dotted
from bsr_plugins.options.yaml_text import Marked, as_yaml, read_value, read_yaml

BASE, DELETE = "_base_", "_delete_"


@dataclass
class Resolved:
    """An option file with all that it inherits.

    Attributes:
        options: The options, in which neither `_base_` nor `_delete_` is left and nothing is shared.
        positions: Where every key was set last, as `FILE:LINE`.
        switched_off: Keys that one file gives and a later one sets to null.
        data: The file itself, if it is the only one and uses neither `_base_` nor `_delete_`.
    """

    options: dict[str, Any] = field(default_factory=dict)
    positions: dict[Place, str] = field(default_factory=dict)
    switched_off: set[Place] = field(default_factory=set)
    data: bytes | None = None

    def as_bytes(self) -> bytes:
        """Return a file that says this and inherits from none."""
        return as_yaml(self.options) if self.data is None else self.data


def resolve_marked(file: Path) -> Resolved:
    """Read an option file with all that it inherits.

    Keys stand where the first file to name them has them. Anchors hold within one file and are resolved before merging.

    Raises:
        OptionError: This file or one that it inherits from is missing, no YAML or no mapping, has a key twice, inherits
            from itself, or uses `_base_` or `_delete_` wrongly. The message names the files from this one to the one at
            fault.
    """
    resolved = Resolved()
    for layer in _layers(file, str(file), ()):
        merge = _Merge(resolved, layer)
        try:
            layer.content.value.pop(BASE, None)
            resolved.options = merge.run(resolved.options, layer.content.value, ())
        except RecursionError as error:
            raise OptionError(f"{layer.where}: a value contains itself, expected values of finite depth") from error
    data = file.read_bytes()
    resolved.data = None if any(key.encode() in data for key in (BASE, DELETE)) else data
    return resolved


def resolve(file: Path) -> dict[str, Any]:
    """Return the options of `resolve_marked`."""
    return resolve_marked(file).options


def apply_overrides(resolved: Resolved, entries: Iterable[str], faults: Faults) -> None:
    """Set options from the command line, in the order of the entries; blocks that are missing or null are made."""
    for entry in entries:
        message = _apply(resolved, entry)
        if message:
            faults.add(f"--set {entry}: {message}")
        else:
            resolved.data = None


def _apply(resolved: Resolved, entry: str) -> str:
    """Apply an entry, and return what is wrong with it."""
    name, equals, text = entry.partition("=")
    keys = tuple(key.strip() for key in name.split(":"))
    if not equals or not all(keys):
        return "expected KEY=VALUE or KEY:KEY=VALUE"
    try:
        value = read_value(text)
    except ValueError as error:
        return f"the value cannot be read as YAML: {error}"
    block: dict[str, Any] = resolved.options
    for depth, key in enumerate(keys[:-1], 1):
        if block.get(key) is None:
            block[key] = {}
            resolved.positions[keys[:depth]] = f"--set {entry}"
        if not isinstance(block[key], dict):
            return f"{dotted(keys[:depth])} is {block[key]!r}, expected a block of keys"
        block = block[key]
    block[keys[-1]] = value
    for below in [place for place in resolved.positions if place[: len(keys)] == keys]:
        del resolved.positions[below]
    resolved.positions[keys] = f"--set {entry}"
    return ""


class _Layer(NamedTuple):
    """One file of those that an option file comes from, and the files that lead to it, for messages."""

    where: str
    file: str
    content: Marked


def _layers(file: Path, where: str, heirs: tuple[Path, ...]) -> Iterator[_Layer]:
    """Yield what is to be merged, in order: what the bases yield, then the file itself."""
    if file.resolve() in heirs:
        raise OptionError(f"{where}: inherits from itself, expected bases that do not lead back to it")
    layer = _Layer(where, os.path.normpath(file), _read(file, where))
    bases = layer.content.value.get(BASE, [])
    names = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(name, str) for name in names):
        raise OptionError(f"{where}: {BASE}: {bases!r}, expected the path of an option file or a list of paths")
    for name in names:
        yield from _layers(file.parent / name, f"{where}: {BASE}: {name}", (*heirs, file.resolve()))
    yield layer


def _read(file: Path, where: str) -> Marked:
    if file.is_dir():
        raise OptionError(f"{where}: is a folder, expected an option file")
    if not file.is_file():
        raise OptionError(f"{where}: there is no such file")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise OptionError(f"{where}: cannot be read ({error.strerror})") from error
    content = read_yaml(data, where)
    if not isinstance(content.value, dict):
        raise OptionError(f"{where}: the file: {content.value!r}, expected a block of keys")
    if content.twice:
        raise OptionFaults(
            *(
                f"{os.path.normpath(file)}:{line}: {dotted(place)}: the key is there already, in line {first}"
                for place, line, first in sorted(content.twice, key=lambda found: found[1])
            )
        )
    return content


class _Merge:
    """Puts one file over what is there."""

    def __init__(self, resolved: Resolved, layer: _Layer) -> None:
        self._resolved, self._layer = resolved, layer

    def run(self, inherited: object, own: Any, place: Place) -> Any:
        """Return a copy of `own`, laid over `inherited` if both are mappings."""
        if isinstance(own, list):
            for number in range(len(own)):
                self._mark((*place, number))
            return [self.run(None, value, (*place, number)) for number, value in enumerate(own)]
        if not isinstance(own, dict):
            return own
        if BASE in own:
            raise OptionError(
                f"{self._layer.where}: {dotted((*place, BASE))}: {own[BASE]!r}, expected at the top of a file only"
            )
        delete = own.get(DELETE, False)
        if not isinstance(delete, bool):
            raise OptionError(f"{self._layer.where}: {dotted((*place, DELETE))}: {delete!r}, expected true or false")
        merged = dict(inherited) if isinstance(inherited, dict) and not delete else {}
        if not merged:
            self._forget(place)
        for key, value in own.items():
            if key == DELETE:
                continue
            below = (*place, key)
            if value is None and merged.get(key) is not None:
                self._resolved.switched_off.add(below)
            elif value is not None:
                self._resolved.switched_off.discard(below)
            if not isinstance(value, dict):
                self._forget(below)
            self._mark(below)
            merged[key] = self.run(merged.get(key), value, below)
        return merged

    def _mark(self, place: Place) -> None:
        line = self._layer.content.lines.get(place)
        self._resolved.positions[place] = self._layer.file if line is None else f"{self._layer.file}:{line}"

    def _forget(self, place: Place) -> None:
        """Drop what is known of what was below a place."""
        positions = self._resolved.positions
        for below in [known for known in positions if len(known) > len(place) and known[: len(place)] == place]:
            del positions[below]
