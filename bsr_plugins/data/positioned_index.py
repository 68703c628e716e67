"""An index that also says where in the run it is drawn."""

from __future__ import annotations


class PositionedIndex(int):
    """The index of a sample, with the epoch and the place in it at which the training loader asks for it.

    It is the plain index in every other way: equal to it, hashing like it, printing like it, good for
    indexing, and arithmetic on it gives plain integers. A dataset that draws its random numbers from `epoch`
    and `position` draws the same ones for any number of workers, and other ones in the next epoch. The engine's loop
    goes on at the position at which a run was stopped. (BasicSR's own trainer resumes at the beginning of an epoch,
    also where it had stopped in the middle of it.)

    Attributes:
        epoch: The epoch, from 0.
        position: The place in the epoch's shuffled order over all ranks, from 0. It differs between the ranks
            and between the repeats of a sample by `dataset_enlarge_ratio`, so (epoch, position) does not
            occur twice in a run, unless BasicSR's own trainer resumes it.
    """

    epoch: int
    position: int

    def __new__(cls, index: int, epoch: int, position: int) -> PositionedIndex:
        """Make the index `index` (from 0) that is drawn at `position` of `epoch`."""
        self = super().__new__(cls, index)
        self.epoch = epoch
        self.position = position
        return self

    def __reduce__(self) -> tuple[type[PositionedIndex], tuple[int, int, int]]:
        return type(self), (int(self), self.epoch, self.position)
