"""Errors that a user can mend: each message is one line that names the key or file, the value and what was expected."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class BSRError(ValueError):
    """Base of every error that is the input's fault and not the program's."""


class OptionError(BSRError):
    """Options ask for something that cannot be.

    Args:
        lines: What is wrong, one line each. A line begins with the key (`num_feat: 0, expected …`); whoever built the
            object from a block of options puts the block's place in front (see `blocks.placed`).
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """What is wrong, one line each."""
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.args)


class BadImageError(BSRError):
    """An image file is missing, unreadable or unfit for what was asked of it."""


def line_of(error: BSRError) -> str:
    """Return the line that an error says; a data worker's error arrives with the worker's traceback before it."""
    last = str(error).strip().splitlines()[-1]
    return last.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")


def described(error: BaseException, placed: bool = False) -> str:
    """Write down an error of any kind in one line, for another one's message: `KeyError: 'scale'`.

    Args:
        error: The error.
        placed: Whether to add the file and line that raised it, where somebody else's code may be at fault.
    """
    # BasicSR raises some errors with several texts in the place of one.
    several = len(error.args) > 1 and all(isinstance(text, str) for text in error.args)
    said = " ".join((" ".join(error.args) if several else str(error)).split())
    frames = traceback.extract_tb(error.__traceback__) if placed else []
    place = f", in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return (f"{type(error).__name__}: {said}" if said else type(error).__name__) + place


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is most like another, whatever the case of its letters, if one is like it at all."""
    lowered = {one.lower(): one for one in known}
    found = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=cutoff)
    return lowered[found[0]] if found else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or an empty string."""
    found = nearest(name, known)
    return f"; did you mean '{found}'?" if found is not None else ""


def unknown_key(place: str, known: Iterable[str]) -> OptionError:
    """Make the error for a key that is not among those that its block may have.

    Args:
        place: The key with its place, e.g. `val.metrics.psnr.crop_bordr`.
        known: The keys that the block may have, in the order in which they are offered.
    """
    known = list(known)
    expected = f"one of {', '.join(known)}" if known else "no such key"
    return OptionError(f"{place}: unknown key, expected {expected}{did_you_mean(place.rpartition('.')[2], known)}")


def unknown_name(what: str, name: object, known: Iterable[str]) -> OptionError:
    """Make the error for a name that is not among the known ones.

    Args:
        what: What was named, with its place, e.g. `degradation.sampler`.
        name: The name that was given.
        known: The names that would have been accepted.
    """
    known = sorted(known)
    return OptionError(f"{what}: unknown name {name!r}, expected one of {', '.join(known)}{did_you_mean(name, known)}")
