"""Option files that say only what differs from others.

The rules are those of mmengine's Config, which the field knows: `_base_: other.yml` at the top of a file names what it
inherits from, relative to the file itself; mappings merge deeply, all else replaces; `_delete_: true` in a mapping
replaces the inherited one. The code is ours, as mmengine reads YAML with the loader that can construct any Python
object; every file here is read by `yaml.safe_load`. What mmengine refuses and we take: bases that share keys, of which
the last one wins, and a mapping in place of an inherited value that is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bsr_plugins.errors import OptionError

BASE, DELETE = "_base_", "_delete_"
# PyYAML lets these out where a value does not fit its tag, as in `!!float x`, and where nesting is too deep.
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
_WIDTH = 120


def resolve(file: Path) -> dict[str, Any]:
    """Read an option file with all that it inherits.

    Keys stand where the first file to name them has them. Anchors hold within one file and are resolved before merging.

    Args:
        file: An option file.

    Returns:
        dict[str, Any]: The options, in which neither `_base_` nor `_delete_` is left and nothing is shared.

    Raises:
        OptionError: This file or one that it inherits from is missing, no YAML or no mapping, inherits from itself, or
            uses `_base_` or `_delete_` wrongly. The message names the files from this one to the one at fault.
    """
    options: dict[str, Any] = {}
    for where, layer in _layers(file, str(file), ()):
        try:
            options = _merge(options, layer, where, "")
        except RecursionError as error:
            raise OptionError(f"{where}: a value contains itself, expected values of finite depth") from error
    return options


def flatten(file: Path) -> bytes:
    """Return an option file that says what this one says, and inherits from none.

    Args:
        file: An option file.

    Returns:
        bytes: YAML. A file that uses neither `_base_` nor `_delete_` is returned as it is.

    Raises:
        OptionError: See `resolve`.
    """
    options = resolve(file)
    if not _mentions(_read(file, str(file))):
        return file.read_bytes()
    return as_yaml(options)


def as_yaml(options: dict[str, Any]) -> bytes:
    """Write resolved options as YAML of the plainest kind, without anchors, aliases and merge keys."""
    text: str = yaml.safe_dump(options, sort_keys=False, default_flow_style=None, width=_WIDTH)
    return text.encode()


def _layers(file: Path, where: str, heirs: tuple[Path, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is to be merged, in order, each with its place: what the bases yield, then the file itself."""
    if file.resolve() in heirs:
        raise OptionError(f"{where}: inherits from itself, expected bases that do not lead back to it")
    content = _read(file, where)
    bases = content.pop(BASE, [])
    names = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(name, str) for name in names):
        raise OptionError(f"{where}: {BASE}: {bases!r}, expected the path of an option file or a list of paths")
    for name in names:
        yield from _layers(file.parent / name, f"{where}: {BASE}: {name}", (*heirs, file.resolve()))
    yield where, content


def _read(file: Path, where: str) -> dict[str, Any]:
    if not file.is_file():
        raise OptionError(f"{where}: there is no such file")
    try:
        content = yaml.safe_load(file.read_bytes())
    except _YAML_ERRORS as error:
        raise OptionError(f"{where}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{where}: the file: {content!r}, expected a block of keys")
    return content


def _merge(inherited: object, own: Any, where: str, place: str) -> Any:
    """Return `own`, over `inherited` if both are mappings; what is returned shares no mapping or list with `own`."""
    if isinstance(own, list):
        return [_merge(None, value, where, f"{place}{number}.") for number, value in enumerate(own)]
    if not isinstance(own, dict):
        return own
    if BASE in own:
        raise OptionError(f"{where}: {place}{BASE}: {own[BASE]!r}, expected at the top of a file only")
    delete = own.get(DELETE, False)
    if not isinstance(delete, bool):
        raise OptionError(f"{where}: {place}{DELETE}: {delete!r}, expected true or false")
    merged = dict(inherited) if isinstance(inherited, dict) and not delete else {}
    for key, value in own.items():
        if key != DELETE:
            merged[key] = _merge(merged.get(key), value, where, f"{place}{key}.")
    return merged


def _mentions(value: object) -> bool:
    """Whether `_base_` or `_delete_` is a key anywhere in `value`."""
    if isinstance(value, dict):
        return BASE in value or DELETE in value or any(map(_mentions, value.values()))
    return isinstance(value, list) and any(map(_mentions, value))
