"""Read an image from where it is stored, through BasicSR's FileClient."""

from __future__ import annotations

import os
import threading

import lmdb
from basicsr.utils import FileClient

from bsr_plugins.data.decode import Pixels, decode
from bsr_plugins.data.image_files import ImageFile
from bsr_plugins.errors import BadImageError


class _FileClients:
    """The clients of this process, opened at the first use.

    They are shared by all datasets of a process, because LMDB lets a process open a folder only once, and a forked
    worker closes those it inherits, because LMDB wants a folder used by the process that opened it.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process_id = os.getpid()
        self._lock = threading.Lock()
        self._clients: dict[str, FileClient] = {}

    def _begin_after_fork(self) -> None:
        for lmdb_folder, client in self._clients.items():
            if lmdb_folder:
                for environment in client.client._client.values():
                    environment.close()
        self._begin()

    def get(self, lmdb_folder: str) -> FileClient:
        """Return the client of an LMDB folder, or that of the disk for an empty string."""
        if self._process_id != os.getpid():
            self._begin_after_fork()
        with self._lock:
            if lmdb_folder not in self._clients:
                self._clients[lmdb_folder] = (
                    FileClient("lmdb", db_paths=lmdb_folder) if lmdb_folder else FileClient("disk")
                )
            return self._clients[lmdb_folder]


_clients = _FileClients()


def read_image(image: ImageFile) -> Pixels:
    """Read an image.

    Returns:
        (H, W, 3) RGB pixels, 8 or 16 bits unsigned; see `decode`.

    Raises:
        BadImageError: The image is missing, unreadable, truncated, of an unknown depth, or not of the size it
            was listed with.
    """
    pixels = decode(read_bytes(image), image.path)
    height, width, _ = pixels.shape
    if sorted((height, width)) != sorted((image.height, image.width)):
        raise BadImageError(f"{image.path}: is {width}x{height}, but was listed as {image.width}x{image.height}")
    return pixels


def read_bytes(image: ImageFile) -> bytes:
    """Read what is stored of an image.

    Raises:
        BadImageError: It is missing or cannot be read.
    """
    try:
        data: bytes | None = _clients.get(image.lmdb).get(image.key)
    except (OSError, lmdb.Error) as error:
        raise BadImageError(f"{image.path}: cannot be read ({error})") from error
    if data is None:
        raise BadImageError(f"{image.path}: the LMDB has no such key, though its meta_info.txt lists it")
    return data
