"""Build objects from blocks of an option file, and say what is wrong with a block in one line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from bsr_plugins.errors import OptionError, unknown_key, unknown_name

T = TypeVar("T")


def build_from_block(block: Mapping[str, Any], known: Mapping[str, Callable[..., T]], where: str) -> T:
    """Build the object that a block of options describes; the block itself is left as it was.

    Args:
        block: Options; `type` names the class or function, the other keys are its arguments.
        known: What `type` may name.
        where: The block's place in the option file, for messages.

    Raises:
        OptionError: The block is no mapping, `type` is missing or unknown, a key is unknown, or one is missing.
    """
    if not isinstance(block, Mapping):
        raise OptionError(f"{where}: expected a block with the key 'type', got {block!r}")
    if "type" not in block:
        raise OptionError(f"{where}: the key 'type' is missing, expected one of {', '.join(sorted(known))}")
    if not isinstance(block["type"], str) or block["type"] not in known:
        raise unknown_name(f"{where}.type", block["type"], known)
    arguments = {key: value for key, value in block.items() if key != "type"}
    return call_with(known[block["type"]], arguments, where)


def call_with(factory: Callable[..., T], arguments: Mapping[str, Any], where: str) -> T:
    """Call `factory` with arguments that come from an option file.

    Raises:
        OptionError: See `check_arguments`; or the factory refuses an argument, which it names alone (`num_feat: 0, …`).
    """
    check_arguments(factory, arguments, where)
    with placed(where):
        return factory(**arguments)


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Put a block's place before what a constructor says of its arguments: `num_feat: …` to `network_g.num_feat: …`."""
    try:
        yield
    except OptionError as error:
        # Constructors that still name their own place are left as they are.
        lines = (line if line.startswith((f"{where}.", f"{where}:")) else f"{where}.{line}" for line in error.lines)
        raise OptionError(*lines) from error


def check_arguments(factory: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """Check that `factory` takes arguments that come from an option file.

    Raises:
        OptionError: They are no mapping, one is unknown (the nearest known one is offered), or a needed one is missing.
    """
    if not isinstance(arguments, Mapping):
        raise OptionError(f"{where}: {arguments!r}, expected a block of keys and values")
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for key in arguments:
        if key not in named and not takes_any:
            raise unknown_key(f"{where}.{key}", named)
    for name in named:
        if parameters[name].default is inspect.Parameter.empty and name not in arguments:
            raise OptionError(f"{where}.{name}: the key is missing")


def number(value: object, where: str, low: float = float("-inf"), high: float = float("inf")) -> float:
    """Check that an option is a number in [low, high].

    Raises:
        OptionError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isinf(value):
        bounded = math.isfinite(low) or math.isfinite(high)
        expected = f"a number in [{low:g}, {high:g}]" if bounded else "a finite number"
        raise OptionError(f"{where}: {value!r}, expected {expected}")
    return float(value)


def integer(value: object, where: str, low: int, high: int | None = None) -> int:
    """Check that an option is a whole number in [low, high].

    Raises:
        OptionError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise OptionError(f"{where}: {value!r}, expected a whole number {expected}")
    return value


def boolean(value: object, where: str) -> bool:
    """Check that an option is true or false.

    Raises:
        OptionError: It is not.
    """
    if not isinstance(value, bool):
        raise OptionError(f"{where}: {value!r}, expected true or false")
    return value


def interval(value: object, where: str, low: float, high: float) -> tuple[float, float]:
    """Check that an option is a number or a pair [a, b] with low ≤ a ≤ b ≤ high; a number a means [a, a].

    Raises:
        OptionError: It is not.
    """
    pair = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(pair) != 2:
        raise OptionError(f"{where}: {value!r}, expected a number or a pair [low, high]")
    first, last = (number(end, where, low, high) for end in pair)
    if first > last:
        raise OptionError(f"{where}: {value!r}, expected the lower end first")
    return first, last
