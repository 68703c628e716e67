"""The code of functions and classes as it is written."""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from bsr_plugins.engine.code_values import NOTHING, Value, block, boxed, constant

_NOT_FOLLOWED = frozenset(
    {*sys.stdlib_module_names, "cv2", "mmengine", "numpy", "torch", "torchvision", "tqdm", "yaml"}
)


class CodeClass:
    """A class whose code is gone through, with what its attributes may be."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.methods: dict[str, list[FunctionType]] = {}
        self.attributes: dict[str, Value] = {}
        self.given: dict[FunctionType, dict[str, Value]] = {}
        self.returned: dict[str, Value] = {}
        self.properties: set[str] = set()
        self.called: set[FunctionType] = set()
        for base in reversed(kind.__mro__):
            if not is_followed(base):
                continue
            for name, member in vars(base).items():
                function = function_of(member)
                if function is not None:
                    self.methods.setdefault(name, []).append(function)
                    if isinstance(member, property):
                        self.properties.add(name)
                elif not name.startswith("__"):
                    self.attributes[name] = self.attributes.get(name, NOTHING) | constant(member)

    def attribute(self, name: str) -> Value:
        """Return what an attribute of an object may be."""
        value = self.attributes.get(name, NOTHING)
        return value | self.returned.get(name, NOTHING) if name in self.properties else value

    def state(self) -> tuple[Any, ...]:
        """Return what another round may add to."""
        return (
            dict(self.attributes),
            {function: dict(names) for function, names in self.given.items()},
            dict(self.returned),
            len(self.called),
        )


def function_of(member: object) -> FunctionType | None:
    """Return the function of a class's member."""
    if isinstance(member, classmethod | staticmethod):
        member = member.__func__
    elif isinstance(member, property):
        member = member.fget
    member = inspect.unwrap(member) if callable(member) and not isinstance(member, type) else member
    return member if isinstance(member, FunctionType) else None


def raw_member(kind: type, function: FunctionType) -> object:
    for base in kind.__mro__:
        member = vars(base).get(function.__name__)
        if function_of(member) is function:
            return member
    return None


def is_followed(called: type | FunctionType) -> bool:
    return (called.__module__ or "").partition(".")[0] not in _NOT_FOLLOWED


def parameters_of(function: FunctionType) -> list[str]:
    code = function.__code__
    return list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def block_given(kind: type) -> dict[str, Value]:
    """Return what the parameters of a class's constructor stand for when it is given a block of options alone."""
    init = function_of(inspect.getattr_static(kind, "__init__"))
    if init is None or not is_followed(init):
        return {}
    code = init.__code__
    if code.co_argcount > 1:
        return {code.co_varnames[1]: block(())}
    if code.co_flags & inspect.CO_VARARGS:
        return {code.co_varnames[code.co_argcount + code.co_kwonlyargcount]: boxed([block(())])}
    return {}


def words_of(code: CodeType) -> Iterator[str]:
    """Yield the strings of compiled code."""
    for value in code.co_consts:
        if isinstance(value, str):
            yield value
        elif isinstance(value, CodeType):
            yield from words_of(value)
        elif isinstance(value, tuple | frozenset):
            yield from (item for item in value if isinstance(item, str))


def node_of(function: FunctionType) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """Return a function's code as it is written, where it can be found."""
    found = _nodes_of(function.__code__.co_filename)
    return found.get((function.__code__.co_firstlineno, function.__code__.co_name))


@cache
def _nodes_of(file: str) -> dict[tuple[int, str], ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the functions of a file, by the lines that they or their decorators begin in, and their names."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return {}
    return {
        (min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), node.name): node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
