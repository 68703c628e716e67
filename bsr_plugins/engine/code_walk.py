"""Goes through code without running it, and notes which options it reads."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import FunctionType, ModuleType
from typing import Protocol

from bsr_plugins.engine.code_source import (
    CodeClass,
    function_of,
    is_followed,
    node_of,
    parameters_of,
    raw_member,
    words_of,
)
from bsr_plugins.engine.code_values import ANY, NOTHING, UNKNOWN, Reads, Value, boxed, constant, joined, union
from bsr_plugins.engine.option_yaml import Place

_TAKING = ("get", "pop", "setdefault", "__getitem__", "__contains__")
_GOING_THROUGH = ("items", "values")
_SAME = frozenset(
    {"dict", "OrderedDict", "deepcopy", "copy", "list", "tuple", "sorted", "cast", "iter", "reversed", "set"}
)
_LOOKING = frozenset(
    {"isinstance", "len", "bool", "str", "repr", "print", "type", "id", "any", "all", "dict2str", "hasattr"}
)
_LIKE_OPTIONS = re.compile(r"(^|_)(opts?|options?|cfg|conf|config|settings?|h?params|args|kwargs)_?$")
_BOXING = frozenset({"enumerate", "zip"})


class Learner(Protocol):
    """Whoever goes through all the code there is."""

    reads: Reads
    guesses: bool

    def learn_class(self, kind: type, given: Mapping[str, Value], conventions: Mapping[str, Place]) -> None:
        """Go through a class whose constructor is given something."""

    def call(self, function: FunctionType, given: Mapping[str, Value]) -> Value:
        """Go through a function that is given something; return what it returns."""


class Walker:
    """Goes through one function."""

    def __init__(
        self, learner: Learner, function: FunctionType, names: dict[str, Value], unit: CodeClass | None
    ) -> None:
        self.learner, self.reads, self.function, self.names, self.unit = learner, learner.reads, function, names, unit
        self.globals = function.__globals__
        parameters = parameters_of(function)
        self.own = parameters[0] if unit is not None and parameters else None
        unused = unit is not None and function.__name__.startswith("_") and function not in unit.called
        self.guess = learner.guesses and (not unused or function.__name__ == "__init__")
        self.returned = NOTHING

    def run(self) -> Value:
        """Note what the function reads; return what it returns."""
        node = node_of(self.function)
        if node is None:
            if self.unit is None or not is_dataclass(self.unit.kind):  # whose methods are written by Python
                self.reads.loose.update(words_of(self.function.__code__))
            return NOTHING
        for _ in range(2):  # for names that a loop sets at its end and uses at its beginning
            for statement in node.body:
                self.statement(statement)
        return self.returned

    def statement(self, node: ast.AST) -> None:
        """Go through a statement."""
        if isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                self.bind(target, value, node.value)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            if node.value is not None:
                self.bind(node.target, self.value(node.value), node.value)
        elif isinstance(node, ast.For | ast.AsyncFor):
            value = self.value(node.iter)
            if not value.empty:
                self.bind(node.target, value.items(), None)
                self.statements(node.body)
            self.statements(node.orelse)
        elif isinstance(node, ast.Return):
            if node.value is not None:
                self.returned |= self.value(node.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.statements(node.body)
        elif isinstance(node, ast.Match):
            value = self.value(node.subject)
            for case in node.cases:
                self.pattern(case.pattern, value, node.subject)
                self.children(case)
        else:
            self.children(node)

    def pattern(self, node: ast.pattern, value: Value, source: ast.expr) -> None:
        """Match a value with a pattern; `source` is the value's code."""
        if isinstance(node, ast.MatchMapping):
            for key, part in zip(node.keys, node.patterns, strict=True):
                self.pattern(part, self.take(value, self.value(key), source), source)
            self.name(node.rest, value)
        elif isinstance(node, ast.MatchAs):
            self.name(node.name, value)
            if node.pattern is not None:
                self.pattern(node.pattern, value, source)
        elif isinstance(node, ast.MatchStar):
            self.name(node.name, boxed([value]))
        elif isinstance(node, ast.MatchSequence | ast.MatchOr | ast.MatchClass):
            inner = value.items() if isinstance(node, ast.MatchSequence) else value
            for part in (*node.patterns, *getattr(node, "kwd_patterns", ())):
                self.pattern(part, inner, source)

    def name(self, name: str | None, value: Value) -> None:
        """Let a name stand for a value."""
        if name is not None:
            self.names[name] = self.names.get(name, NOTHING) | value

    def statements(self, nodes: list[ast.stmt]) -> None:
        """Go through statements."""
        for node in nodes:
            self.statement(node)

    def children(self, node: ast.AST) -> None:
        """Go through whatever is in a node."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
            else:
                self.statement(child)

    def bind(self, target: ast.expr, value: Value, source: ast.expr | None) -> None:
        """Let a target of an assignment stand for a value."""
        if isinstance(target, ast.Name):
            self.name(target.id, value)
        elif isinstance(target, ast.Attribute):
            if self.is_own(target.value) and self.unit is not None:
                known = self.unit.attributes
                known[target.attr] = known.get(target.attr, NOTHING) | value
        elif isinstance(target, ast.Tuple | ast.List):
            if isinstance(source, ast.Tuple | ast.List) and len(source.elts) == len(target.elts):
                for part, from_ in zip(target.elts, source.elts, strict=True):
                    self.bind(part, self.value(from_), from_)
                return
            spread = value if source is None else value.items()
            for part in target.elts:
                self.bind(part, spread, None)
        elif isinstance(target, ast.Subscript):
            self.value(target.value)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, boxed([value]), None)

    def is_own(self, node: ast.expr) -> bool:
        """Whether an expression is `self` or `cls`."""
        return isinstance(node, ast.Name) and node.id == self.own

    def value(self, node: ast.expr) -> Value:
        """Return what an expression may stand for, noting what it reads."""
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            self.children(node)
            return NOTHING
        result: Value = method(node)
        return result

    def _constant(self, node: ast.Constant) -> Value:
        return constant(node.value)

    def _name(self, node: ast.Name) -> Value:
        if node.id in self.names:
            return self.names[node.id]
        return constant(self.globals.get(node.id))

    def _attribute(self, node: ast.Attribute) -> Value:
        if self.is_own(node.value) and self.unit is not None:
            return self.unit.attribute(node.attr)
        base = self.value(node.value)
        if hasattr(dict, node.attr):  # a method that is not called here reads what nobody knows
            self.reads.whole.update(base.blocks)
        return constant(self.object_of(node))

    def _subscript(self, node: ast.Subscript) -> Value:
        return self.take(self.value(node.value), self.value(node.slice), node.value)

    def _boolop(self, node: ast.BoolOp) -> Value:
        return union([self.value(part) for part in node.values])

    def _ifexp(self, node: ast.IfExp) -> Value:
        self.value(node.test)
        return self.value(node.body) | self.value(node.orelse)

    def _namedexpr(self, node: ast.NamedExpr) -> Value:
        value = self.value(node.value)
        self.bind(node.target, value, node.value)
        return value

    def _binop(self, node: ast.BinOp) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.Add) and (left.texts or right.texts):
            return joined([left, right], self.guess)
        return left | right if isinstance(node.op, ast.BitOr | ast.Add) else NOTHING

    def _joinedstr(self, node: ast.JoinedStr) -> Value:
        return joined([self.value(part) for part in node.values], self.guess)

    def _formattedvalue(self, node: ast.FormattedValue) -> Value:
        return Value(texts=self.value(node.value).texts)

    def _compare(self, node: ast.Compare) -> Value:
        left = self.value(node.left)
        for operator, right in zip(node.ops, node.comparators, strict=True):
            value = self.value(right)
            if isinstance(operator, ast.In | ast.NotIn) and value.blocks:
                self.take(value, Value(texts=frozenset(text for text in left.texts if text[1] is None)), right)
        return NOTHING

    def _tuple(self, node: ast.Tuple | ast.List | ast.Set) -> Value:
        return boxed([self.value(part) for part in node.elts])

    _list = _set = _tuple

    def _starred(self, node: ast.Starred) -> Value:
        return self.value(node.value).items()

    def _dict(self, node: ast.Dict) -> Value:
        keys = [self.value(key) for key in node.keys if key is not None]
        values = [self.value(value) for value in node.values]
        for key, value in zip(node.keys, values, strict=True):
            if key is None:
                self.reads.whole.update(value.blocks)
        blocks = Value(inner_blocks=boxed(values).inner_blocks)
        return blocks | Value(inner_texts=boxed(keys).inner_texts)

    def _listcomp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> Value:
        return boxed([self.value(node.elt)]) if self.loops(node.generators) else NOTHING

    _setcomp = _generatorexp = _listcomp

    def _dictcomp(self, node: ast.DictComp) -> Value:
        return boxed([self.value(node.key), self.value(node.value)]) if self.loops(node.generators) else NOTHING

    def _lambda(self, node: ast.Lambda) -> Value:
        self.value(node.body)
        return NOTHING

    def loops(self, generators: list[ast.comprehension]) -> bool:
        """Bind what comprehensions go through; return whether there may be anything."""
        for generator in generators:
            value = self.value(generator.iter)
            if value.empty:
                return False
            self.bind(generator.target, value.items(), None)
            for test in generator.ifs:
                self.value(test)
        return True

    def _call(self, node: ast.Call) -> Value:
        arguments = [self.value(argument) for argument in node.args]
        named = [(keyword.arg, self.value(keyword.value)) for keyword in node.keywords]
        if isinstance(node.func, ast.Attribute):
            base = self.value(node.func.value)
            if node.func.attr == "removeprefix" and len(node.args) == 1:
                return _without_prefix(base, arguments[0])
            if base.has_blocks:
                return self.of_block(base, node.func, arguments)
            own = self.is_own(node.func.value) or _is_super(node.func.value)
            if own and self.unit is not None and node.func.attr in self.unit.methods:
                return self.of_own(node.func.attr, arguments, named)
            if node.func.attr in _TAKING and arguments and self.object_of(node.func) is None:
                return self.take(NOTHING, arguments[0], node.func.value)
            if self.is_of_base(node):
                return self.of_own(node.func.attr, arguments[1:], named)
        else:
            self.value(node.func)
        if self.unit is not None and _is_getattr(node) and self.is_own(node.args[0]):
            return union([*map(self.unit.attribute, _exact(arguments[1])), *arguments[2:]])
        name = _last_name(node.func)
        if name in _LOOKING:
            return NOTHING
        if name in _SAME:
            return union(arguments)
        if name in _BOXING:
            return boxed([argument.items() for argument in arguments])
        return self.hand(self.object_of(node.func), arguments, named)

    def of_block(self, base: Value, called: ast.Attribute, arguments: list[Value]) -> Value:
        """Call a method of a block of options."""
        method = called.attr
        if method in _TAKING and arguments:
            return self.take(base, arguments[0], called.value) | union(arguments[1:])
        if method in _GOING_THROUGH:
            self.reads.whole.update(base.blocks)
            items = base.items()
            return Value(inner_blocks=items.blocks, inner_texts=items.texts)
        return base if method in ("copy", "keys") else NOTHING

    def is_of_base(self, node: ast.Call) -> bool:
        """Whether a call is `Base.method(self, ...)`."""
        if self.unit is None or not (isinstance(node.func, ast.Attribute) and node.args and self.is_own(node.args[0])):
            return False
        holder = self.object_of(node.func.value)
        return node.func.attr in self.unit.methods and any(holder is base for base in self.unit.kind.__mro__)

    def of_own(self, name: str, arguments: list[Value], named: list[tuple[str | None, Value]]) -> Value:
        """Call a method of this class or of a base."""
        assert self.unit is not None
        for function in self.unit.methods[name]:
            self.unit.called.add(function)
            skipped = 0 if isinstance(raw_member(self.unit.kind, function), staticmethod) else 1
            for parameter, value in self.matched(parameters_of(function)[skipped:], arguments, named).items():
                given = self.unit.given.setdefault(function, {})
                given[parameter] = given.get(parameter, NOTHING) | value
        return self.unit.returned.get(name, NOTHING)

    def hand(self, called: object, arguments: list[Value], named: list[tuple[str | None, Value]]) -> Value:
        """Call something else, which may read what it is handed."""
        if not any(value.has_blocks for value in (*arguments, *(value for _, value in named))):
            return NOTHING
        followed = inspect.unwrap(called) if isinstance(called, FunctionType) else called
        if isinstance(followed, type) and is_followed(followed):
            init = function_of(vars(followed).get("__init__"))
            if init is not None:
                self.learner.learn_class(followed, self.matched(parameters_of(init)[1:], arguments, named), {})
                return NOTHING
        if isinstance(followed, FunctionType) and is_followed(followed):
            return self.learner.call(followed, self.matched(parameters_of(followed), arguments, named))
        for value in (*arguments, *(value for _, value in named)):
            self.reads.whole.update(value.blocks | value.inner_blocks)
        return NOTHING

    def matched(
        self, parameters: list[str], arguments: list[Value], named: list[tuple[str | None, Value]]
    ) -> dict[str, Value]:
        """Return what a function's parameters stand for in a call."""
        given = dict(zip(parameters, arguments, strict=False))
        for name, value in named:
            if name is not None:
                given[name] = given.get(name, NOTHING) | value
                continue
            self.reads.whole.update(value.blocks)
        return {name: value for name, value in given.items() if value != NOTHING}

    def take(self, base: Value, key: Value, node: ast.expr) -> Value:
        """Take a key out of a block, or an item out of something that holds blocks; `node` is that block's code."""
        exact = _exact(key)
        if not base.has_blocks:
            if self.unit is not None and _LIKE_OPTIONS.search(_last_name(node)):
                self.reads.loose.update(exact)
            return Value(texts=base.inner_texts)
        below: set[Place] = {(*place, name) for place in base.blocks for name in exact}
        self.reads.exact.update(below)
        if len(exact) < len(key.texts) or (not key.texts and self.guess):
            for begin, end in (text for text in key.texts or {UNKNOWN} if text[1] is not None):
                self.reads.patterns.update((place, begin, end or "") for place in base.blocks)
            below |= {(*place, ANY) for place in base.blocks}
        return Value(blocks=frozenset(below) | base.inner_blocks, texts=base.inner_texts)

    def object_of(self, node: ast.expr) -> object:
        """Return what a name of the function's module stands for, where it is a module, a class or a function."""
        if isinstance(node, ast.Name):
            return None if node.id in self.names else self.globals.get(node.id)
        if isinstance(node, ast.Attribute):
            holder = self.object_of(node.value)
            return getattr(holder, node.attr, None) if isinstance(holder, ModuleType | type) else None
        return None


def _exact(value: Value) -> set[str]:
    return {text for text, end in value.texts if end is None}


def _without_prefix(base: Value, prefix: Value) -> Value:
    texts = {(text.removeprefix(begin), None) for text in _exact(base) for begin in _exact(prefix)}
    return Value(texts=frozenset(texts))


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _is_getattr(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
