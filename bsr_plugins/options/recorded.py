"""Options that record which of their keys are read, whoever is given them and however they are read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

import yaml

from bsr_plugins.options.faults import Place


class Reads:
    """What has been read of options, by all who were given them.

    Attributes:
        asked: The places of all keys that were asked for by name, whether they were there or not.
        taken: The places of all keys that were there and were read, by name or with their whole block.
        lacking: The place that a `KeyError` was last raised for, if there was one.
    """

    def __init__(self) -> None:
        self.asked: set[Place] = set()
        self.taken: set[Place] = set()
        self.lacking: Place | None = None

    def names(self, place: Place) -> set[str]:
        """Return the keys that a block was asked for by name."""
        return {str(asked[-1]) for asked in self.asked if asked[:-1] == place}

    def missing(self, error: Exception) -> Place | None:
        """Return the place of the key that an error is about, if it is about a key that was read and not there."""
        return self.lacking if isinstance(error, KeyError) and (self.lacking or ())[-1:] == error.args else None

    def unread(self, block: Any, place: Place = ()) -> Iterator[Place]:
        """Yield the places of what is in a block and has not been read; what is inside of them is left out."""
        items = block.items() if isinstance(block, Mapping) else enumerate(block) if isinstance(block, list) else ()
        for key, value in items:
            below = (*place, key)
            if isinstance(block, list) or below in self.taken:
                yield from self.unread(value, below)
            else:
                yield below


class Recorded(dict[Any, Any]):
    """A block of options that records reads; the blocks in it, and in its lists, do so too.

    A key is read by `[]`, `get`, `pop`, `setdefault` and `in`. All keys are read by iteration, `keys`, `values`,
    `items`, `popitem`, `**`, `|` and by whatever makes a plain `dict` of the block. Copies, deep ones too, record for
    the original. Pickled, as for another process, it becomes a plain `dict`.
    """

    def __init__(self, block: Mapping[Any, Any], reads: Reads, place: Place = ()) -> None:
        super().__init__({key: _recorded(value, reads, (*place, key)) for key, value in block.items()})
        self._reads, self._place = reads, place

    def copy(self) -> Recorded:
        return self.__copy__()

    def __copy__(self) -> Recorded:
        return self._with(dict(dict.items(self)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorded:
        return self._with({key: copy.deepcopy(value, memo) for key, value in dict.items(self)})

    def _with(self, content: dict[Any, Any]) -> Recorded:
        made = Recorded({}, self._reads, self._place)
        dict.update(made, content)
        return made

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return dict, (plain(self),)


def _asking(name: str) -> Callable[..., Any]:
    """Make a method of `dict` that reads a key."""
    method: Callable[..., Any] = getattr(dict, name)

    @wraps(method)
    def ask(self: Recorded, key: Any, *default: Any) -> Any:
        below = (*self._place, key)
        self._reads.asked.add(below)
        if dict.__contains__(self, key):
            self._reads.taken.add(below)
        try:
            return method(self, key, *default)
        except KeyError:
            self._reads.lacking = below
            raise

    return ask


def _taking_all(name: str) -> Callable[..., Any]:
    """Make a method of `dict` that reads the whole block."""
    method: Callable[..., Any] = getattr(dict, name)

    @wraps(method)
    def take(self: Recorded, *arguments: Any) -> Any:
        self._reads.taken.update((*self._place, key) for key in dict.__iter__(self))
        return method(self, *arguments)

    return take


for _name in ("__getitem__", "get", "pop", "setdefault", "__contains__"):
    setattr(Recorded, _name, _asking(_name))
for _name in ("__iter__", "__reversed__", "keys", "values", "items", "popitem", "__or__", "__ror__"):
    setattr(Recorded, _name, _taking_all(_name))


def plain(value: Any) -> Any:
    """Return options as plain dicts; that is no reading of them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in dict.items(value)}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _recorded(value: Any, reads: Reads, place: Place) -> Any:
    if isinstance(value, Mapping):
        return Recorded(value, reads, place)
    if isinstance(value, list):
        return [_recorded(item, reads, (*place, number)) for number, item in enumerate(value)]
    return value


for _dumper in (yaml.SafeDumper, yaml.Dumper):  # some models write their options down
    _dumper.add_representer(Recorded, yaml.representer.SafeRepresenter.represent_dict)
