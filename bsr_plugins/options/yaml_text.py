"""YAML as option files have it: plain values only, `1e-4` is a number, no key twice, and every key knows its line."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

from bsr_plugins.errors import OptionError
from bsr_plugins.options.faults import Place

_MISFITS = (ValueError, LookupError, AttributeError, TypeError)  # PyYAML lets them out
_YAML_ERRORS = (yaml.YAMLError, *_MISFITS, RecursionError)
_MAX_VALUES = 100_000  # a few aliases of aliases come to more than any memory holds
_WIDTH = 120
_FLOAT, _MERGE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:merge"
_EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+\Z")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, to which `1e-4` is a number as in YAML 1.2; in YAML 1.1 it is text."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Make a value; where it does not fit its tag, as in `!!float x`, say in which line that is."""
        try:
            return super().construct_object(node, deep)
        except _MISFITS as error:
            reason = f"does not fit {node.tag} ({error})"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """Writes quotes around text that `_Loader` would take for a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))


class Marked(NamedTuple):
    """What a file says, and where.

    Attributes:
        value: The value.
        lines: The line, from 1, of every key and list item in it.
        twice: Places of keys that stand twice in their mapping, with the lines of both.
    """

    value: Any
    lines: dict[Place, int]
    twice: list[tuple[Place, int, int]]


def read_yaml(data: bytes, where: str) -> Marked:
    """Read a file's content; an `OptionError` that begins with `where` says why it is no YAML, or too much of it."""
    try:
        return _marked(data)
    except _YAML_ERRORS as error:
        raise OptionError(f"{where}: cannot be read as YAML: {' '.join(str(error).split())}") from error


def read_value(text: str) -> Any:
    """Read one value as behind a key of an option file; a `ValueError` says why that cannot be."""
    try:
        marked = _marked(text.encode())
        value = _unshared(marked.value)
    except _YAML_ERRORS as error:
        raise ValueError(" ".join(str(error).split())) from error
    if marked.twice:
        raise ValueError(f"the key {marked.twice[0][0][-1]} is there already")
    return value


def _marked(data: bytes) -> Marked:
    loader = _Loader(data)
    try:
        node = loader.get_single_node()
        if node is None:
            return Marked(None, {}, [])
        walk = _Walk(loader)
        walk.visit(node, (), frozenset())
        return Marked(loader.construct_document(node), walk.lines, walk.twice)
    finally:
        loader.dispose()


def _unshared(value: Any) -> Any:
    """Copy a value so that no part of it is in two places, as anchors make them."""
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return {key: _unshared(item) for key, item in value.items()} if isinstance(value, dict) else value


def as_yaml(options: dict[str, Any]) -> bytes:
    """Write resolved options as YAML of the plainest kind, without anchors, aliases and merge keys."""
    text: str = yaml.dump(options, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=_WIDTH)
    return text.encode()


class _Walk:
    """Collects the lines of all keys of a document, in which merge keys are put in place on the way."""

    def __init__(self, loader: _Loader) -> None:
        self.lines: dict[Place, int] = {}
        self.twice: list[tuple[Place, int, int]] = []
        self._loader = loader
        self._seen: set[int] = set()
        self._count = 0

    def visit(self, node: yaml.Node, place: Place, above: frozenset[int]) -> None:
        """Go through a node; one that contains itself is not entered again."""
        self._count += 1
        if self._count > _MAX_VALUES:
            raise ValueError(f"more than {_MAX_VALUES} values, aliases included")
        if id(node) in above:
            return
        above |= {id(node)}
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.lines[(*place, number)] = item.start_mark.line + 1
                self.visit(item, (*place, number), above)
        elif isinstance(node, yaml.MappingNode):
            self._check_keys(node, place)
            self._loader.flatten_mapping(node)
            for key_node, value_node in node.value:
                if isinstance(key_node, yaml.ScalarNode):
                    key = self._loader.construct_object(key_node)
                    self.lines[(*place, key)] = key_node.start_mark.line + 1
                    self.visit(value_node, (*place, key), above)

    def _check_keys(self, node: yaml.MappingNode, place: Place) -> None:
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        first: dict[tuple[str, str], int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                if isinstance(value_node, yaml.MappingNode):
                    self._check_keys(value_node, place)
                continue
            key = (key_node.tag, key_node.value)
            if key in first:
                self.twice.append(((*place, key_node.value), line, first[key]))
            first.setdefault(key, line)
