"""Any dataset, with its random draws made a function of the position and its bad files found."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import lmdb
from torch.utils.data import Dataset, get_worker_info

from bsr_plugins.data.bad_images import ON_BAD_IMAGE, SKIPPED, Replacement
from bsr_plugins.data.decode import decode
from bsr_plugins.data.positions import PositionedIndex
from bsr_plugins.errors import BadImageError, BSRError, described, unknown_name
from bsr_plugins.random_states import random_states_kept, seed_random_states
from bsr_plugins.seeding import derive_seed

_PATH_KEYS = ("gt_path", "lq_path")


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
        place = index if isinstance(index, PositionedIndex) else PositionedIndex(index, 0, index)
        if self._replacement is None:
            return self._item(place, place)
        item, skipped = self._replacement.take(
            place, lambda other: self._item(other, place), place.epoch, place.position
        )
        return item | {SKIPPED: "\n".join(skipped)}

    def _item(self, index: int, place: PositionedIndex) -> Any:
        try:
            # In the main process the model may draw from the same generators.
            with nullcontext() if get_worker_info() is not None else random_states_kept():
                seed_random_states(derive_seed(self._seed, "sample", place.epoch, place.position), devices=False)
                item = self.dataset[PositionedIndex(index, place.epoch, place.position)]
        except BSRError:
            raise
        except Exception as error:
            bad = self._why_bad(index, error)
            if bad is None:
                raise
            raise bad from error
        if isinstance(item, Mapping):
            # Some datasets take another file for one that they cannot read.
            files = item_files(self.dataset, index)
            given = {item[key] for key in _PATH_KEYS if isinstance(item.get(key), str)}
            if not given <= {file.key for file in files}:
                for file in files:
                    _read(self.dataset, file)
        return item

    def _bad_files(self, index: int, error: Exception) -> str:
        """Name the file that an error is about, or all files of the item."""
        names = [file.name for file in item_files(self.dataset, index)] or [f"{self._where}, item {index}"]
        return next((name for name in names if str(error).startswith(f"{name}: ")), " and ".join(names))

    def _why_bad(self, index: int, error: Exception) -> BSRError | None:
        """Read an item's files again to say which is at fault; None if the error has nothing to do with files."""
        files = item_files(self.dataset, index)
        for file in files:
            try:
                data = _read(self.dataset, file)
                if data is not None:
                    decode(data, file.name)
            except BadImageError as bad:
                return bad
        names = self._bad_files(index, error)
        if isinstance(error, lmdb.Error):
            return BSRError(f"{names}: cannot be read ({described(error)})")
        # OpenCV returns None in the place of an image that it cannot decode.
        of_none = not files and isinstance(error, AttributeError | TypeError) and "NoneType" in str(error)
        if of_none or isinstance(error, OSError | ValueError | cv2.error):
            return BadImageError(f"{names}: cannot be used ({described(error)})")
        return None


class ItemFile(NamedTuple):
    """A file that an item comes from.

    Attributes:
        name: What users know it by: the file, or the LMDB folder and the key.
        key: What the dataset calls it.
        path: The file on disk; None in an LMDB.
        client: What BasicSR's file client calls its storage: `gt`, `lq` …
    """

    name: str
    key: str
    path: Path | None
    client: str


def item_files(dataset: Any, index: int) -> list[ItemFile]:
    """Name the files that an item comes from, if the dataset is like BasicSR's; none if it is not.

    These have a list `paths` of paths, or of mappings with keys like `gt_path`; in an LMDB the paths are its keys.
    """
    paths = getattr(dataset, "paths", None)
    if not isinstance(paths, list | tuple) or not 0 <= index < len(paths):
        return []
    named, folders = paths[index], dict[str, str]()
    backend = getattr(dataset, "io_backend_opt", None)
    if isinstance(backend, Mapping) and "db_paths" in backend:
        storages = (backend.get("client_keys", "default"), backend["db_paths"])
        clients, places = (value if isinstance(value, list | tuple) else [value] for value in storages)
        folders = dict(zip(clients, map(str, places), strict=False))
    if not isinstance(named, Mapping):
        named = {f"{next(iter(folders), 'gt')}_path": named}
    files = []
    for key, path in named.items():
        client = str(key).removesuffix("_path")
        if client == key or not isinstance(path, str | Path):
            continue
        if client in folders:
            files.append(ItemFile(f"{folders[client]}/{path}", str(path), None, client))
        else:
            files.append(ItemFile(str(path), str(path), Path(path), client))
    return files


def _read(dataset: Any, file: ItemFile) -> bytes | None:
    """Read a file as the dataset does; None where that is not possible here. A BadImageError if it cannot be read."""
    try:
        if file.path is not None:
            return file.path.read_bytes()
        if getattr(dataset, "file_client", None) is None:
            return None  # an LMDB that this process has not opened, nor may it twice
        data: bytes | None = dataset.file_client.get(file.key, file.client)
    except (OSError, lmdb.Error) as error:
        raise BadImageError(f"{file.name}: cannot be read ({error})") from error
    if data is None:
        raise BadImageError(f"{file.name}: the LMDB has no such key, though its meta_info.txt lists it")
    return data
