"""Which files an item of BasicSR's datasets comes from, and what is wrong with them when it cannot be made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import lmdb

from bsr_plugins.data.decode import decode
from bsr_plugins.errors import BadImageError, BSRError

_PATH_KEYS = ("gt_path", "lq_path")


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
    """Tell which files an item comes from, as far as the dataset says so in the way of BasicSR's.

    These have a list `paths` of paths, or of mappings with keys like `gt_path`; in an LMDB the paths are its keys.

    Returns:
        The files; none if the dataset does not tell.
    """
    paths = getattr(dataset, "paths", None)
    if not isinstance(paths, list | tuple) or not 0 <= index < len(paths):
        return []
    entry = paths[index]
    folders = _lmdb_folders(dataset)
    if isinstance(entry, Mapping):
        ending = "_path"
        named = {key.removesuffix(ending): path for key, path in entry.items() if str(key).endswith(ending)}
    else:
        named = {next(iter(folders), "gt"): entry}
    return [
        _item_file(str(path), client, folders.get(client))
        for client, path in named.items()
        if isinstance(path, str | Path)
    ]


def _item_file(key: str, client: str, folder: str | None) -> ItemFile:
    return ItemFile(key if folder is None else f"{folder}/{key}", key, Path(key) if folder is None else None, client)


def _lmdb_folders(dataset: Any) -> dict[str, str]:
    """Return the LMDB folder of every storage of a dataset, by its name; none for one that reads from disk."""
    backend = getattr(dataset, "io_backend_opt", None)
    if not isinstance(backend, Mapping) or "db_paths" not in backend:
        return {}
    folders, clients = (
        value if isinstance(value, list | tuple) else [value]
        for value in (backend["db_paths"], backend.get("client_keys", "default"))
    )
    return dict(zip(clients, map(str, folders), strict=False))


def bad_files(dataset: Any, index: int, error: Exception, where: str) -> BSRError | None:
    """Find out whether an item could not be made because of its files; they are read again for that.

    Args:
        dataset: The dataset.
        index: The item.
        error: What was raised when the item was to be made.
        where: The dataset's name, for messages.

    Returns:
        A BadImageError that names the file, or all files of the item, and the reason; a BSRError for an LMDB that
        cannot be read; None if the error has nothing to do with files.
    """
    files = item_files(dataset, index)
    for file in files:
        try:
            _try_to_read(dataset, file, decoded=True)
        except BadImageError as bad:
            return bad
    names = " and ".join(file.name for file in files) or f"{where}, item {index}"
    # BasicSR raises some with a tuple of texts in the place of one.
    texts = [str(error)] if isinstance(error, OSError) else map(str, error.args)
    reason = " ".join(f"{type(error).__name__}: {' '.join(texts)}".split())
    if isinstance(error, lmdb.Error):
        return BSRError(f"{names}: cannot be read ({reason})")
    # OpenCV returns None in the place of an image that it cannot decode.
    of_none = not files and isinstance(error, AttributeError | TypeError) and "NoneType" in str(error)
    if of_none or isinstance(error, OSError | ValueError | cv2.error):
        return BadImageError(f"{names}: cannot be used ({reason})")
    return None


def check_is_asked_for(dataset: Any, index: int, item: Any) -> None:
    """Check that an item comes from the files of its index: some datasets take others for files that they cannot read.

    Raises:
        BadImageError: It does not, as one of those cannot be read.
    """
    if not isinstance(item, Mapping):
        return
    files = item_files(dataset, index)
    given = {item[key] for key in _PATH_KEYS if isinstance(item.get(key), str)}
    if given <= {file.key for file in files}:
        return
    for file in files:
        _try_to_read(dataset, file, decoded=False)


def _try_to_read(dataset: Any, file: ItemFile, decoded: bool) -> None:
    """Read a file as the dataset does.

    Raises:
        BadImageError: It cannot be read or, if it is to be `decoded`, is no whole image.
    """
    try:
        if file.path is not None:
            data = file.path.read_bytes()
        elif getattr(dataset, "file_client", None) is not None:
            data = dataset.file_client.get(file.key, file.client)
        else:
            return  # an LMDB that this process has not opened, nor may it twice
    except (OSError, lmdb.Error) as error:
        raise BadImageError(f"{file.name}: cannot be read ({error})") from error
    if data is None:
        raise BadImageError(f"{file.name}: the LMDB has no such key, though its meta_info.txt lists it")
    if decoded:
        decode(data, file.name)
