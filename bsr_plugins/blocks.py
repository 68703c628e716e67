"""Build objects from blocks of an option file, and say what is wrong with a block in one line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from bsr_plugins.errors import BSRError, OptionError, described, did_you_mean, unknown_key, unknown_name

T = TypeVar("T")
_OWN = ("basicsr", "bsr_plugins")


def is_own(kind: Any) -> bool:
    """Whether a class or function is BasicSR's or this package's."""
    return (getattr(kind, "__module__", "") or "").partition(".")[0] in _OWN


def named_in(known: Mapping[str, T], name: object) -> T | None:
    """Return what a registry has under a name, as BasicSR finds it, or None."""
    return (known.get(name) or known.get(f"{name}_basicsr")) if isinstance(name, str) else None


def named_by(block: Mapping[str, Any], known: Mapping[str, T], where: str) -> T:
    """Return what the `type` of a block names.

    Raises:
        OptionError: The block is no mapping, or `type` is missing or unknown.
    """
    if not isinstance(block, Mapping):
        raise OptionError(f"{where}: expected a block with the key 'type', got {block!r}")
    if "type" not in block:
        raise OptionError(f"{where}: the key 'type' is missing, expected one of {', '.join(sorted(known))}")
    found = named_in(known, block["type"])
    if found is None:
        raise unknown_name(f"{where}.type", block["type"], known)
    return found


def build_from_block(
    block: Mapping[str, Any],
    known: Mapping[str, Callable[..., T]],
    where: str,
    given: Mapping[str, Any] | None = None,
) -> T:
    """Build the object that a block of options describes; the block itself is left as it was.

    Args:
        block: Options; `type` names the class or function, the other keys are its arguments.
        known: What `type` may name.
        where: The block's place in the option file, for messages.
        given: Arguments that are not the block's to give.

    Raises:
        OptionError: See `named_by` and `call_with`.
    """
    factory = named_by(block, known, where)
    return call_with(factory, {key: value for key, value in block.items() if key != "type"}, where, given)


def call_with(
    factory: Callable[..., T], arguments: Mapping[str, Any], where: str, given: Mapping[str, Any] | None = None
) -> T:
    """Call `factory` with arguments that come from an option file, and those given.

    Raises:
        OptionError: See `check_arguments`; or the factory refuses an argument, which it names alone (`num_feat: 0, …`).
    """
    given = given or {}
    check_arguments(factory, arguments, where, given)
    with placed(where):
        return factory(**given, **arguments)


def build_on_trial(
    block: Mapping[str, Any],
    known: Mapping[str, Callable[..., T]],
    where: str,
    given: Mapping[str, Any] | None = None,
) -> T:
    """Build as `build_from_block` does, with one line for whatever a class raises, somebody else's too.

    Raises:
        OptionError: It raised something, or see `build_from_block`.
    """
    factory = named_by(block, known, where)
    defaults = {name: parameter.default for name, parameter in inspect.signature(factory).parameters.items()}
    texts = [
        f"{name}: {value!r}"
        for name, value in block.items()
        if isinstance(value, str) and isinstance(defaults.get(name), int | float)
    ]
    suspects = f" with {', '.join(texts)}, expected numbers" if texts else ""
    with one_line(f"{where}: {block['type']} cannot be built from this block{suspects}"):
        return build_from_block(block, known, where, given)


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Make an `OptionError` of one line, which begins with `what`, of whatever somebody else's code raises."""
    try:
        yield
    except BSRError:
        raise
    except Exception as error:
        raise OptionError(f"{what} ({described(error)})") from error


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Put a block's place before what a constructor says of its arguments: `num_feat: …` to `network_g.num_feat: …`."""
    try:
        yield
    except OptionError as error:
        raise OptionError(*(f"{where}.{line}" for line in error.lines)) from error


def check_arguments(
    factory: Callable[..., Any], arguments: Mapping[str, Any], where: str, given: Iterable[str] = ()
) -> None:
    """Check that `factory` takes arguments that come from an option file with those given.

    Arguments of any name (`**kwargs`) may be anything in other people's classes, unless they are near a name that the
    signature has. In BasicSR's and ours they are swallowed, so that the names of the signature are all.

    Raises:
        OptionError: They are no mapping, or some are unknown (the nearest known one is offered) or missing.
    """
    if not isinstance(arguments, Mapping):
        raise OptionError(f"{where}: {arguments!r}, expected a block of keys and values")
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and not is_own(factory)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [name for name, p in parameters.items() if p.kind in by_name and name not in given]
    wrong: list[str] = []
    for key in arguments:
        if key not in named and (not takes_any or did_you_mean(key, named)):
            wrong += unknown_key(f"{where}.{key}", named).lines
    for name in named:
        meant = any(line.endswith(f"did you mean '{name}'?") for line in wrong)
        if parameters[name].default is inspect.Parameter.empty and name not in arguments and not meant:
            wrong.append(f"{where}.{name}: the key is missing")
    if wrong:
        raise OptionError(*wrong)


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
