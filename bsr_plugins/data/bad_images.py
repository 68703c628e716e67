"""Take another image in the place of a bad one, the same one in every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from basicsr.utils import get_root_logger

from bsr_plugins.errors import BadImageError
from bsr_plugins.seeding import generator_at

T = TypeVar("T")

ON_BAD_IMAGE = ("error", "skip")
SKIPPED = "skipped"
"""The key of an item under which the bad files are, one a line, in whose place it came; empty if there were none."""


class Replacement:
    """Replaces bad images: with which other one is a function of the seed and of where in the run it is wanted.

    A bad image is logged once by every process that meets it.

    Args:
        where: What the images belong to, for messages.
        count: Number of images.
        seed: The run's `manual_seed`.
        file_of: Names the file that an error is about, given the image's number and the error.
    """

    def __init__(self, where: str, count: int, seed: int, file_of: Callable[[int, BadImageError], str]) -> None:
        self._where = where
        self._count = count
        self._seed = seed
        self._file_of = file_of
        self._logged: set[str] = set()

    def take(self, number: int, make: Callable[[int], T], *position: int | str) -> tuple[T, list[str]]:
        """Make something of an image, or of another one if that is bad, and name the bad files in whose place it is.

        Args:
            number: The image that is wanted.
            make: Makes it of an image, given its number.
            position: Where in the run it is wanted.

        Raises:
            BadImageError: All images are bad.
        """
        try:
            return make(number), []
        except BadImageError as error:
            first = error
        skipped = [self._skip(number, first)]
        generator = generator_at(self._seed, "another image", *position)
        for other in torch.randperm(self._count, generator=generator).tolist():
            if other == number:
                continue
            try:
                return make(other), skipped
            except BadImageError as error:
                skipped.append(self._skip(other, error))
        raise BadImageError(f"{first} (and none of the {self._count} images of {self._where} can be used)")

    def _skip(self, number: int, error: BadImageError) -> str:
        message = str(error)
        if message not in self._logged:
            self._logged.add(message)
            get_root_logger().warning(f"{self._where}: another image is taken, as {message}")
        return self._file_of(number, error)
