"""Which options a class reads, learned from its code.

The code of the class and of its bases is gone through without running it. What it takes out of what its constructor is
given, of `opt`, of `self.opt`, of parameters named after blocks (`train_opt`) and of whatever these are assigned or
handed to, its own helpers included, is what it reads. Where the code does not tell, more counts as read rather than
less.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import FunctionType
from typing import Any

from bsr_plugins.engine.code_source import CodeClass, block_given, node_of, parameters_of
from bsr_plugins.engine.code_values import ANY, NOTHING, Reads, Value, block
from bsr_plugins.engine.code_walk import Walker
from bsr_plugins.engine.option_yaml import Place

__all__ = ["Reads", "reads_of", "unread_keywords"]

_ROUNDS = 6
_CONVENTIONS: dict[str, Place] = {
    "opt": (),
    "train_opt": ("train",),
    "val_opt": ("val",),
    "path_opt": ("path",),
    "logger_opt": ("logger",),
    "dataset_opt": ("datasets", ANY),
}
_CONVENTIONS_OF_DATASETS: dict[str, Place] = {"opt": (), "dataset_opt": ()}


@cache
def reads_of(kind: type, is_dataset: bool = False) -> Reads:
    """Learn what a model or dataset reads out of the options that its constructor is given.

    Args:
        kind: The class.
        is_dataset: Whether it is a dataset, which is given its own block, and not all options as a model is.
    """
    learner = _Learner()
    conventions = _CONVENTIONS_OF_DATASETS if is_dataset else _CONVENTIONS
    for learner.guesses in (False, True):
        learner.learn_class(kind, block_given(kind), conventions)
    return learner.reads


@cache
def unread_keywords(function: Callable[..., Any]) -> bool:
    """Whether a function takes any keyword arguments (`**kwargs`) and has no use for them."""
    code = inspect.unwrap(function)
    code = code.__init__ if isinstance(code, type) else code  # type: ignore[misc]
    node = node_of(code) if isinstance(code, FunctionType) else None
    if node is None or node.args.kwarg is None:
        return False
    name = node.args.kwarg.arg
    return not any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


class _Learner:
    """Goes through classes and functions and notes what they read.

    It does so twice. What nothing is known of at first may become known on the way; only what is unknown in the end may
    be anything.
    """

    def __init__(self) -> None:
        self.reads = Reads()
        self.guesses = False
        self._functions: dict[tuple[FunctionType, frozenset[tuple[str, Value]], bool], Value] = {}
        self._classes: dict[tuple[type, frozenset[tuple[str, Value]]], CodeClass] = {}
        self._done: set[tuple[CodeClass, bool]] = set()

    def learn_class(self, kind: type, given: Mapping[str, Value], conventions: Mapping[str, Place]) -> None:
        """Go through a class until nothing new is found."""
        unit = self._classes.setdefault((kind, frozenset(given.items())), CodeClass(kind))
        if (unit, self.guesses) in self._done:
            return
        self._done.add((unit, self.guesses))
        for function in unit.methods.get("__init__", ()):
            unit.given[function] = dict(given)
        for _ in range(_ROUNDS):
            before = unit.state()
            for name, functions in unit.methods.items():
                for function in functions:
                    names = dict(unit.given.get(function, {}))
                    for parameter in parameters_of(function):
                        if parameter in conventions:
                            names[parameter] = names.get(parameter, NOTHING) | block(conventions[parameter])
                    returned = Walker(self, function, names, unit).run()
                    unit.returned[name] = unit.returned.get(name, NOTHING) | returned
            if unit.state() == before:
                return

    def call(self, function: FunctionType, given: Mapping[str, Value]) -> Value:
        """Go through a function that is handed something; return what it returns."""
        key = (function, frozenset(given.items()), self.guesses)
        if key not in self._functions:
            self._functions[key] = NOTHING
            self._functions[key] = Walker(self, function, dict(given), None).run()
        return self._functions[key]
