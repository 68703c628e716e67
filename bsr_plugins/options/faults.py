"""All that is wrong with a run's options, gathered with the file and line of each, so that it can be said at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bsr_plugins.errors import BSRError, OptionError, described

Place = tuple[Any, ...]
"""The keys, and numbers of list items, that lead to a value."""


class OptionFaults(OptionError):
    """The options of a run have faults; every line has its file and line."""


def dotted(place: Place) -> str:
    """Write a place as messages have it: `train.optim_g.lr`."""
    return ".".join(map(str, place))


class Faults:
    """Gathers faults."""

    def __init__(self, file: str, positions: Mapping[Place, str] | None = None) -> None:
        self._file, self._positions = file, positions or {}
        self._found: dict[str, Place] = {}

    @property
    def lines(self) -> tuple[str, ...]:
        """All faults so far."""
        return tuple(self._found)

    def add(self, message: str) -> None:
        """Add a fault, whose message begins with the place of its key from the top: `train.optim_g.lr: …`."""
        place = tuple(message.partition(": ")[0].split("."))
        self._found.setdefault(self.positioned(place, message), place)

    def at(self, place: Place, message: str) -> None:
        """Add a fault of the key at a place."""
        self._found.setdefault(self.positioned(place, f"{dotted(place)}: {message}"), place)

    def positioned(self, place: Place, message: str) -> str:
        """Put the file and line of a key, or of the block that it is in, before a message."""
        for length in range(len(place), 0, -1):
            if place[:length] in self._positions:
                return f"{self._positions[place[:length]]}: {message}"
        return f"{self._file}: {message}"

    def take(self, error: BSRError, *block: Any) -> None:
        """Add the lines of an `OptionError`, which begin with their places, or one line about `block`."""
        if isinstance(error, OptionError):
            for line in error.lines:
                self.add(line)
            return
        text = " ".join(str(error).split("\n"))
        self.add(text) if not block or text.startswith(f"{dotted(block)}: ") else self.at(block, text)

    @contextmanager
    def gathered(self, *block: Any) -> Iterator[None]:
        """Add what is raised, and go on after it; what is no `BSRError` becomes one line about `block`."""
        try:
            yield
        except BSRError as error:
            self.take(error, *block)
        except RecursionError:
            self.at(block, "its values are nested too deeply")
        except Exception as error:
            self.at(block, f"cannot be used ({described(error, placed=True)})")

    def clear(self, *places: Place) -> bool:
        """Whether nothing is wrong at any of the places, above or below them."""
        return not any(_related(place, found) for place in places for found in self._found.values())

    def raise_any(self) -> None:
        """Raise `OptionFaults` if there are any."""
        if self._found:
            raise OptionFaults(*self._found)


def _related(one: Place, other: Place) -> bool:
    length = min(len(one), len(other))
    return one[:length] == other[:length]
