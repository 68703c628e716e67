"""Blocks of options as pydantic models: what keys there are, of what type and range, by default what, and for what.

A class declares its keys by a subclass of `OptionBlock`; checks, messages, the option reference and the JSON schema
follow from it. Messages are ours: `KEY: VALUE, expected …`, a line for each fault.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from bsr_plugins.errors import OptionError, did_you_mean, unknown_key

T = TypeVar("T", bound="OptionBlock")

_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


class OptionBlock(BaseModel):
    """A block of an option file. Unknown keys are faults unless a subclass allows extra ones.

    Every key has a `Field` with a description. A validator of one key raises `ValueError("expected …")`, to which key
    and value are added; one of several keys raises `OptionError("key: value, expected …")`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


def _as_whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_as_whole)]
"""A whole number, which may be written as `5e3`."""


def read_block(kind: type[T], block: object, where: str = "") -> T:
    """Read a block of options as what a class declares.

    Args:
        kind: The class.
        block: The block.
        where: The block's place in the option file, put before every key in messages.

    Raises:
        OptionError: A key is unknown or missing, or a value is not what is declared; a line for each.
    """
    if not isinstance(block, Mapping):
        raise OptionError(f"{where}: {block!r}, expected a block of keys" if where else f"{block!r}, expected a block")
    try:
        return kind.model_validate(dict(block))
    except ValidationError as error:
        raise OptionError(*dict.fromkeys(_lines(kind, error, where))) from error


def _lines(kind: type[OptionBlock], error: ValidationError, where: str) -> Iterator[str]:
    for found in error.errors():
        place, owner, field, value = where, kind, None, found["input"]
        keys = list(found["loc"])
        while keys:
            key = str(keys.pop(0))
            place = f"{place}.{key}" if place else key
            field = owner.model_fields.get(key)
            inner = _block_in(field.annotation) if field is not None else None
            if inner is None:
                break
            owner = inner
            while keys and not (str(keys[0]) in owner.model_fields or found["type"] == "extra_forbidden"):
                keys.pop(0)  # names of a union's members, as pydantic has them
        if found["type"] == "missing":
            yield f"{place}: the key is missing"
        elif found["type"] == "extra_forbidden":
            yield from unknown_key(place, owner.model_fields).lines
        elif found["type"] == "value_error":
            reason = found["ctx"]["error"]
            if isinstance(reason, OptionError):  # of several keys together; it names them
                yield from (f"{place}.{line}" if place else line for line in reason.lines)
            else:
                yield f"{place}: {value!r}, {reason}"
        elif found["type"] == "finite_number":
            yield f"{place}: {value!r}, expected a finite number"
        elif literal := [one for one in _members(field and field.annotation) if get_origin(one) is Literal]:
            names = [str(name) for name in get_args(literal[0])]
            expected = f"expected one of {', '.join(names)}{did_you_mean(value, names)}"
            yield f"{place}: unknown name {value!r}, {expected}"
        else:
            below, expected = _inside(field, keys)
            yield f"{place}{below}: {value!r}, expected {expected}"


def _inside(field: FieldInfo | None, keys: list[Any]) -> tuple[str, str]:
    """Return how the place of a value inside of a list or mapping goes on, and what is expected there."""
    if field is None:
        return "", "another value"
    annotation = field.annotation
    if keys and get_origin(annotation) is dict and isinstance(keys[0], str):
        return f".{keys[0]}", _expected(get_args(annotation)[1], [])
    if keys and get_origin(annotation) is list:
        return "", _expected(get_args(annotation)[0], [])
    return "", expected_of(field)


def expected_of(field: FieldInfo) -> str:
    """Say in words what a declared key may hold: `a whole number at least 1, or null`."""
    return _expected(field.annotation, field.metadata)


def _expected(annotation: Any, metadata: list[Any]) -> str:
    origin = get_origin(annotation)
    if annotation is Any:
        return "a value"
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _expected(inner, [*more, *metadata])
    if origin in (Union, types.UnionType):
        words = [_expected(member, metadata if member is not type(None) else []) for member in get_args(annotation)]
        return ", or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if origin in (list, tuple):
        arguments = [one for one in get_args(annotation) if one is not Ellipsis]
        return f"a list, each {_expected(arguments[0], [])}" if arguments else "a list"
    if annotation in _PLAIN:
        return _PLAIN[annotation] + _range(metadata)
    return "a block of keys"


def _range(metadata: list[Any]) -> str:
    entries = [part for entry in metadata for part in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    found = [(name, getattr(one, name, None)) for one in entries for name in ("ge", "gt", "le", "lt")]
    bounds = {name: value if isinstance(value, int) else f"{value:g}" for name, value in found if value is not None}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None:
        return f" in {'(' if 'gt' in bounds else '['}{low}, {high}{')' if 'lt' in bounds else ']'}"
    if low is not None:
        return f" above {low}" if "gt" in bounds else f" at least {low}"
    if high is not None:
        return f" below {high}" if "lt" in bounds else f" at most {high}"
    return ""


def _members(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and all that is in it."""
    yield annotation
    for member in get_args(annotation):
        yield from _members(member)


def _block_in(annotation: Any) -> type[OptionBlock] | None:
    """Return the declared block that an annotation has in it, if there is one."""
    members = _members(annotation)
    return next((one for one in members if isinstance(one, type) and issubclass(one, OptionBlock)), None)
