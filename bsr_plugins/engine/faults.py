"""All that is wrong with a run's options, gathered, so that it can be said at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bsr_plugins.engine.option_yaml import Place
from bsr_plugins.errors import BSRError, OptionError


class OptionFaults(OptionError):
    """The options of a run have faults; every line has its file and line."""


def dotted(place: Place) -> str:
    """Write a place as messages have it: `train.optim_g.lr`."""
    return ".".join(map(str, place))


class Faults:
    """Gathers faults, each with the file and line of its key.

    Args:
        file: The option file, for faults of no key's.
        positions: Where every key was set.
    """

    def __init__(self, file: str, positions: Mapping[Place, str] | None = None) -> None:
        self._file, self._positions = file, positions or {}
        self._found: dict[str, Place] = {}

    @property
    def lines(self) -> tuple[str, ...]:
        """All faults so far."""
        return tuple(self._found)

    def add(self, message: str, block: Place = ()) -> None:
        """Note a fault.

        Args:
            message: It begins with the key, from the top (`train.ema_decay: …`) or from `block`.
            block: Where the fault is, if the message does not tell.
        """
        place = self._place(message.partition(": ")[0], block)
        self._found.setdefault(f"{self._position(place)}: {message}", place)

    def at(self, place: Place, message: str) -> None:
        """Note a fault of the key at a place."""
        self._found.setdefault(f"{self._position(place)}: {dotted(place)}: {message}", place)

    @contextmanager
    def noted(self, *block: Any) -> Iterator[None]:
        """Note what is raised, as a fault of a block, and go on after it.

        What is no `BSRError` comes from somebody else's class, or from a value of a kind that nobody thought of.
        """
        try:
            yield
        except OptionFaults as error:
            for line in error.lines:
                self.add(line, block)
        except BSRError as error:
            self.add(" ".join(str(error).split("\n")), block)
        except RecursionError:
            self.at(block, "its values are nested too deeply")
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.at(block, f"cannot be used ({reason})")

    def free(self, *places: Place) -> bool:
        """Whether nothing is wrong at any of the places, above or below them."""
        return not any(_related(place, found) for place in places for found in self._found.values())

    def raise_any(self) -> None:
        """Raise what was found.

        Raises:
            OptionFaults: Something was.
        """
        if self._found:
            raise OptionFaults(*self._found)

    def _place(self, head: str, block: Place) -> Place:
        """Return the place that a message's head names, or the block if it names none."""
        keys: Place = tuple(head.split("."))
        if (keys[0],) in self._positions:
            return keys
        for number in range(len(keys) if block else 0):
            for end in range(len(keys), number, -1):
                if (*block, *keys[number:end]) in self._positions:
                    return (*block, *keys[number:end])
        return block or keys

    def _position(self, place: Place) -> str:
        for length in range(len(place), 0, -1):
            if place[:length] in self._positions:
                return self._positions[place[:length]]
        return self._file


def _related(one: Place, other: Place) -> bool:
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def listed(names: Iterable[Any]) -> str:
    """Write names as messages have them."""
    return ", ".join(map(str, sorted(names, key=str)))
