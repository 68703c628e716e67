"""What an expression in somebody's code may stand for, as far as options go, and which options are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product

from bsr_plugins.engine.option_yaml import Place

ANY = "*"
"""In place of a key that the code does not tell."""

Text = tuple[str, str | None]
"""A string: (itself, None), or what it begins with and what it ends with."""

UNKNOWN: Text = ("", "")
_DEEPEST = 4  # no further keys are looked at


@dataclass(frozen=True)
class Value:
    """What an expression may stand for.

    Attributes:
        blocks: Places of options.
        texts: Strings.
        inner_blocks: Places of options that it holds, as a list or a mapping would.
        inner_texts: Strings that it holds.
        empty: Whether it is a list or a mapping with nothing in it.
    """

    blocks: frozenset[Place] = frozenset()
    texts: frozenset[Text] = frozenset()
    inner_blocks: frozenset[Place] = frozenset()
    inner_texts: frozenset[Text] = frozenset()
    empty: bool = False

    def __or__(self, other: Value) -> Value:
        if other in (NOTHING, self):
            return self
        if self == NOTHING:
            return other
        return Value(
            self.blocks | other.blocks,
            self.texts | other.texts,
            self.inner_blocks | other.inner_blocks,
            self.inner_texts | other.inner_texts,
        )

    @property
    def has_blocks(self) -> bool:
        """Whether options are in it."""
        return bool(self.blocks or self.inner_blocks)

    def items(self) -> Value:
        """Return what going through it gives."""
        below = {(*place, ANY) for place in self.blocks if len(place) < _DEEPEST}
        texts = self.inner_texts | ({UNKNOWN} if self.blocks else frozenset())
        return Value(self.inner_blocks | below, texts)


NOTHING = Value()


def union(values: Iterable[Value]) -> Value:
    """Return what any of the values may stand for."""
    result = NOTHING
    for value in values:
        result |= value
    return result


def block(*places: Place) -> Value:
    """Return the value of options at places."""
    return Value(blocks=frozenset(places))


def constant(value: object) -> Value:
    """Return the value of a constant of the code, or of one that is there when it runs."""
    if isinstance(value, str):
        return Value(texts=frozenset({(value, None)}))
    if isinstance(value, tuple | list | set | frozenset | dict):
        texts = frozenset((item, None) for item in value if isinstance(item, str))
        return Value(inner_texts=texts, empty=not value)
    return NOTHING


def boxed(values: Iterable[Value]) -> Value:
    """Return the value of a list or mapping of values."""
    all_ = union(values)
    return Value(inner_blocks=all_.blocks | all_.inner_blocks, inner_texts=all_.texts | all_.inner_texts)


def joined(parts: list[Value], guess: bool) -> Value:
    """Return the value of strings put one behind the other.

    Args:
        parts: The strings.
        guess: Whether a part of which nothing is known may be any string, or is one that nothing is known of yet.
    """
    if not guess and not all(part.texts for part in parts):
        return NOTHING
    choices = [part.texts or frozenset({UNKNOWN}) for part in parts]
    texts: set[Text] = set()
    for chosen in product(*choices):
        if all(end is None for _, end in chosen):
            texts.add(("".join(begin for begin, _ in chosen), None))
            continue
        texts.add((_beginning(chosen), _ending(chosen)))
    return Value(texts=frozenset(texts))


def _beginning(chosen: tuple[Text, ...]) -> str:
    begin = ""
    for text, end in chosen:
        begin += text
        if end is not None:
            break
    return begin


def _ending(chosen: tuple[Text, ...]) -> str:
    tail = ""
    for text, end in reversed(chosen):
        tail = (text if end is None else end) + tail
        if end is not None:
            break
    return tail


@dataclass
class Reads:
    """What is read.

    Attributes:
        exact: Places of options; `*` stands for any key.
        patterns: Blocks whose keys are read that begin and end so; the code does not tell the rest.
        whole: Blocks all of whose keys are read.
        loose: Keys that are read out of what is named like options, of which block cannot be told.
    """

    exact: set[Place] = field(default_factory=set)
    patterns: set[tuple[Place, str, str]] = field(default_factory=set)
    whole: set[Place] = field(default_factory=set)
    loose: set[str] = field(default_factory=set)

    def keys_of(self, place: Place) -> set[str]:
        """Return the keys of a block that are read by name."""
        return {known[len(place)] for known in self.exact if len(known) > len(place) and _leads(known, place)} - {ANY}

    def knows(self, place: Place) -> bool:
        """Whether the last key of a place is read."""
        *above, key = place
        if key in self.loose or self.takes_all(tuple(above)):
            return True
        return any(len(known) >= len(place) and _leads(known, place) for known in self.exact) or any(
            _leads(at, tuple(above)) and len(at) == len(above) and str(key).startswith(begin) and str(key).endswith(end)
            for at, begin, end in self.patterns
        )

    def names(self, place: Place) -> bool:
        """Whether the last key of a place is read by its name."""
        return any(
            len(known) >= len(place) and _leads(known, place) and known[len(place) - 1] != ANY for known in self.exact
        )

    def takes_all(self, place: Place) -> bool:
        """Whether every key of a block is read."""
        return any(len(known) <= len(place) and _leads(place, known) for known in self.whole)


def _leads(place: Place, start: Place) -> bool:
    """Whether a place begins with the keys of another, of which either may have `*`."""
    return len(place) >= len(start) and all(
        ANY in (one, other) or one == other for one, other in zip(place, start, strict=False)
    )
