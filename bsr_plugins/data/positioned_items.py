"""Any dataset, with what it draws from the global random states made a function of the position."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch.utils.data import Dataset, get_worker_info

from bsr_plugins.data.bad_images import ON_BAD_IMAGE, SKIPPED, Replacement
from bsr_plugins.data.item_files import bad_files, check_is_asked_for, item_files
from bsr_plugins.data.positioned_index import PositionedIndex
from bsr_plugins.errors import BSRError, unknown_name
from bsr_plugins.random_states import random_states_kept, seed_random_states
from bsr_plugins.seeding import derive_seed


class PositionedDataset(Dataset[Any]):
    """A dataset whose items are a function of the position at which they are asked for.

    Before each item the generators of Python's `random`, NumPy and torch (on the CPU) are seeded from the seed, the
    epoch and the position of the `PositionedIndex`; a plain index counts as the position in epoch 0. In a worker
    process that is all, in the main process they are put back afterwards. All attributes but special methods are those
    of the wrapped dataset.

    Args:
        dataset: Any dataset with indices, BasicSR's or a stranger's.
        seed: The run's `manual_seed`.
        on_bad_image: `error` raises a BadImageError that names the file; `skip` takes another image, and items have the
            key `skipped`: the bad files, one a line.
        name: What the dataset is called in messages.

    Raises:
        OptionError: `on_bad_image` is neither.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, on_bad_image: str = "error", name: str = "train") -> None:
        if on_bad_image not in ON_BAD_IMAGE:
            raise unknown_name(f"dataset '{name}'.on_bad_image", on_bad_image, ON_BAD_IMAGE)
        self.dataset = dataset
        self._where = f"dataset '{name}'"
        self._seed = seed
        self._replacement: Replacement | None = None
        if on_bad_image == "skip":
            self._replacement = Replacement(self._where, len(self), seed, self._bad_files)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # a Dataset's length is optional

    def __getattr__(self, name: str) -> Any:
        # Not special methods: torch looks for some, and would pass by this class.
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> Any:
        """Make the item of an index.

        Raises:
            BadImageError: The item's image cannot be read or used, and no other takes its place.
        """
        place = index if isinstance(index, PositionedIndex) else PositionedIndex(index, 0, index)
        if self._replacement is None:
            return self._item(place, place)
        item, skipped = self._replacement.take(
            place, lambda other: self._item(other, place), place.epoch, place.position
        )
        return item | {SKIPPED: "\n".join(skipped)}

    def _item(self, index: int, place: PositionedIndex) -> Any:
        try:
            with _global_states(derive_seed(self._seed, "sample", place.epoch, place.position)):
                item = self.dataset[PositionedIndex(index, place.epoch, place.position)]
        except BSRError:
            raise
        except Exception as error:
            bad = bad_files(self.dataset, index, error, self._where)
            if bad is None:
                raise
            raise bad from error
        check_is_asked_for(self.dataset, index, item)
        return item

    def _bad_files(self, index: int, error: BSRError) -> str:
        """Name the file that an error is about, or all files of the item."""
        names = [file.name for file in item_files(self.dataset, index)] or [f"{self._where}, item {index}"]
        return next((name for name in names if str(error).startswith(f"{name}: ")), " and ".join(names))


@contextmanager
def _global_states(seed: int) -> Iterator[None]:
    """Seed the global random states; where a model may draw from them too, put them back afterwards."""
    with nullcontext() if get_worker_info() is not None else random_states_kept():
        seed_random_states(seed, devices=False)
        yield
