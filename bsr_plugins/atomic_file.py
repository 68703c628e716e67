"""Files that are there whole or not at all, whatever becomes of the process, the disk or the machine."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

from bsr_plugins.errors import BSRError

_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
_DIGEST_BYTES = 32
_CHUNK = 1 << 20  # bytes read at a time


class Fingerprint(NamedTuple):
    """What tells a file's content from another: its BLAKE2b, hexadecimal, and its size in bytes."""

    digest: str
    size: int


class StagedFile:
    """A file that lies whole on the disk, under another name next to the one that it is to have.

    The name is `.NAME.PID.tmp`, which no search for checkpoints takes for one. Where it cannot be written or named, a
    BSRError says so, and nothing is left of it.

    Args:
        file: The name that it is to have; the folder exists.
        write: Writes the content into a stream that cannot seek, or is the content.

    Attributes:
        temporary: The name that it has.
        fingerprint: Of its content.
    """

    def __init__(self, file: Path, write: Callable[[BinaryIO], None] | bytes) -> None:
        self.file = file
        self.temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        with self._discarded_on_failure(), self.temporary.open("wb") as opened:
            stream = _Stream(opened)
            if isinstance(write, bytes):
                stream.write(write)
            else:
                write(cast(BinaryIO, stream))
            if stream.error is not None:
                raise stream.error
            opened.flush()
            os.fsync(opened.fileno())
        self.fingerprint = stream.fingerprint

    def commit(self) -> None:
        """Give it its name, over whatever has had it."""
        with self._discarded_on_failure():
            self.temporary.replace(self.file)
        sync_folder(self.file.parent)

    def discard(self) -> None:
        """Remove it, unless it has its name already."""
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)

    @contextmanager
    def _discarded_on_failure(self) -> Iterator[None]:
        try:
            with reported(self.file, "written"):
                yield
        except BaseException:
            self.discard()
            raise


class _Stream(io.RawIOBase):
    """Passes bytes on to a file and fingerprints them on the way.

    An error of the file is kept, as not every writer hands on what it meets; what follows it is dropped.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._size, self._hash = file, 0, hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self.error: OSError | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._hash.hexdigest(), self._size)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if self.error is None:
            try:
                self._file.write(view)
            except OSError as error:
                self.error = error
        self._hash.update(view)
        self._size += view.nbytes
        return view.nbytes


def write_atomically(file: Path, write: Callable[[BinaryIO], None] | bytes) -> None:
    """Write a file, as a `StagedFile`: at any moment there is either what there was or all of the new content."""
    StagedFile(file, write).commit()


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what writers have left in a folder that were killed, and return it in the order of names.

    Raises:
        BSRError: A file cannot be removed.
    """
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    leftovers = [file for file in files if _LEFTOVER.fullmatch(file.name) and file.is_file()]
    for file in leftovers:
        remove(file)
    return leftovers


def remove(file: Path) -> None:
    """Remove a file that may be missing, or raise a BSRError."""
    with reported(file, "removed"):
        file.unlink(missing_ok=True)


def fingerprint(file: Path) -> Fingerprint:
    """Return the fingerprint of a file."""
    with file.open("rb") as stream:
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
        return Fingerprint(digest.hexdigest(), stream.tell())


def unused(path: Path) -> Path:
    """Return a path that does not exist: this one, or this with a number before its suffix."""
    candidate, number = path, 1
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}_{number}{path.suffix}"), number + 1
    return candidate


def sync_folder(folder: Path) -> None:
    """Have what was renamed or removed in a folder on the disk before going on, or raise a BSRError."""
    if not hasattr(os, "O_DIRECTORY"):  # a system on which folders cannot be opened
        return
    with reported(folder, "written"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def reported(file: Path, what: str) -> Iterator[None]:
    """Turn an error of the system into a BSRError: the file cannot be `what`, e.g. `written`."""
    try:
        yield
    except OSError as error:
        raise BSRError(f"{file}: cannot be {what} ({error.strerror or error})") from error
