"""The position of a sample in a run, and the order of the samples: a function of the seed and the epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from bsr_plugins.seeding import generator_at


class PositionedIndex(int):
    """The index of a sample, with the epoch and the place in it at which the training loader asks for it.

    In every other way it is the plain index, and arithmetic on it gives plain integers.

    Attributes:
        epoch: The epoch, from 0.
        position: The place in the epoch's shuffled order over all ranks, from 0. It differs between the ranks and
            between the repeats of a sample by `dataset_enlarge_ratio`, so (epoch, position) does not occur twice in a
            run, unless BasicSR's trainer resumes it.
    """

    epoch: int
    position: int

    def __new__(cls, index: int, epoch: int, position: int) -> PositionedIndex:
        self = super().__new__(cls, index)
        self.epoch = epoch
        self.position = position
        return self

    def __reduce__(self) -> tuple[type[PositionedIndex], tuple[int, int, int]]:
        return type(self), (int(self), self.epoch, self.position)


class RunSampler(Sampler[PositionedIndex]):
    """Yields the indices of a rank in an epoch, each with its position.

    An epoch shuffles `num_samples` · `ratio` places (`ratio` is `dataset_enlarge_ratio`), over which the images are
    spread as evenly as by BasicSR's `EnlargedSampler`; the order is a function of the seed and the epoch. Only whole
    batches of all ranks are taken: batch k of rank r are the positions r + `world_size` · (k · `batch_size` …), so that
    all ranks together see what one process with their batches together sees.
    """

    def __init__(
        self, num_samples: int, world_size: int, rank: int, seed: int, ratio: float = 1, batch_size: int = 1
    ) -> None:
        self._images = num_samples
        self._world_size = world_size
        self._rank = rank
        self._seed = seed
        self._batch_size = batch_size
        self._places = math.ceil(num_samples * ratio)
        self._epoch = 0
        self._first_batch = 0
        self._underway: object | None = object()  # of the iterators that still have to go on

    @property
    def batches_per_epoch(self) -> int:
        return self._places // (self._batch_size * self._world_size)

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch and the batch in it, both from 0, that the next iterator begins with."""
        if epoch < 0 or not 0 <= first_batch <= self.batches_per_epoch:
            raise ValueError(f"epoch {epoch}, batch {first_batch}: expected a batch up to {self.batches_per_epoch}")
        self._epoch, self._first_batch = epoch, first_batch
        self._underway = object()

    def stop(self) -> None:
        """End the iterators that are underway; those to come are empty until the position is set."""
        self._underway = None

    def __len__(self) -> int:
        return (self.batches_per_epoch - self._first_batch) * self._batch_size

    def __iter__(self) -> Iterator[PositionedIndex]:
        # The position is taken now, not when the first index is asked for.
        return self._indices(self._epoch, self._first_batch, self._underway)

    def _indices(self, epoch: int, first_batch: int, underway: object | None) -> Iterator[PositionedIndex]:
        first, last = (batch * self._batch_size for batch in (first_batch, self.batches_per_epoch))
        positions = range(self._rank + self._world_size * first, self._world_size * last, self._world_size)
        order = torch.randperm(self._places, generator=generator_at(self._seed, "order", epoch))
        mine = order[positions.start : positions.stop : positions.step]
        for position, place in zip(positions, mine.tolist(), strict=True):
            if underway is None or self._underway is not underway:
                return
            yield PositionedIndex(place % self._images, epoch, position)
