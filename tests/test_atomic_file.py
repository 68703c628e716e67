"""Files are there whole or not at all: writers that fail, disks that are full, processes that are killed."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsr_plugins.atomic_file import StagedFile, fingerprint, remove_leftovers, write_atomically
from bsr_plugins.errors import BSRError
from tests.engine.tiny_training import KILLED, in_child

LIMIT = 10_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that there is."""
    path = tmp_path / "file.pth"
    path.write_bytes(b"old")
    return path


def assert_untouched(file: Path) -> None:
    assert file.read_bytes() == b"old"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("name", ["file.pth", "new.pth"])
def test_the_content_is_that_which_was_written(file: Path, name: str) -> None:
    path = file.with_name(name)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    write_atomically(path, lambda stream: torch.save({"a": torch.arange(3)}, stream))
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(3))
    assert {path.name for path in file.parent.iterdir()} == {"file.pth", name}


@given(st.lists(st.binary(max_size=50), max_size=8))
@settings(deadline=None, max_examples=30)
def test_the_fingerprint_is_that_of_the_file(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "parts"

    def write(stream: BinaryIO) -> None:
        for part in parts:
            assert stream.write(part) == len(part)

    staged = StagedFile(path, write)
    staged.commit()
    assert path.read_bytes() == b"".join(parts)
    assert staged.fingerprint == fingerprint(path)
    assert staged.fingerprint.size == sum(map(len, parts))
    if parts and parts[0]:
        path.write_bytes(b"".join([bytes([parts[0][0] ^ 1]), parts[0][1:], *parts[1:]]))
        assert fingerprint(path).digest != staged.fingerprint.digest


def test_a_staged_file_has_its_name_only_once_committed(file: Path) -> None:
    staged = StagedFile(file, b"new")
    assert file.read_bytes() == b"old"
    assert staged.temporary.read_bytes() == b"new"
    assert staged.temporary.name.startswith("."), "BasicSR's own search leaves such files out"
    assert not staged.temporary.name.endswith((".pth", ".state"))
    staged.discard()
    assert_untouched(file)
    staged.discard()


def test_it_is_on_the_disk_before_it_has_its_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        done.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').resolve().name}")
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name} to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_atomically(file, b"new")
    temporary = f".file.pth.{os.getpid()}.tmp"
    assert done == [f"fsync {temporary}", f"rename {temporary} to file.pth", f"fsync {file.parent.name}"]


def test_an_error_of_the_writer_is_handed_on(file: Path) -> None:
    def write(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write_atomically(file, write)
    assert_untouched(file)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_of_the_system_names_the_file(file: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(BSRError, match=r"file\.pth: cannot be written \(No space left on device\)$"):
        write_atomically(file, b"new")
    assert_untouched(file)


def test_a_folder_that_is_missing_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BSRError, match=r"missing/file: cannot be written \(No such file or directory\)$"):
        write_atomically(tmp_path / "missing" / "file", b"new")


@pytest.mark.parametrize("writer", ["bytes", "torch", "deaf"])
def test_a_disk_that_takes_no_more(file: Path, tmp_path: Path, writer: str) -> None:
    def deaf(stream: BinaryIO) -> None:
        for _ in range(100):
            try:
                stream.write(bytes(1000))
            except OSError:
                continue

    report = tmp_path.parent / f"{tmp_path.name}_report"
    content = {
        "bytes": bytes(100_000),
        "torch": lambda stream: torch.save({"a": torch.zeros(50_000)}, stream),
        "deaf": deaf,
    }[writer]

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
        try:
            write_atomically(file, content)  # type: ignore[arg-type]
        except BSRError as error:
            report.write_text(str(error))

    assert in_child(work) == 0
    assert report.read_text() == f"{file}: cannot be written (File too large)"
    assert_untouched(file)


def test_a_killed_writer_leaves_the_old_file_and_a_leftover(file: Path) -> None:
    def work() -> None:
        def write(stream: BinaryIO) -> None:
            while True:
                stream.write(bytes(1000))
                time.sleep(0.001)

        write_atomically(file, write)

    def kill(child: int) -> None:
        leftover = file.with_name(f".file.pth.{child}.tmp")
        while not leftover.exists():
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)

    assert in_child(work, kill) == KILLED
    others = {".hidden", ".file.tmp", "a.1.tmp", ".file.pth.12.tmp2"}
    for name in others:
        file.with_name(name).touch()
    file.with_name(".folder.1.tmp").mkdir()
    assert file.read_bytes() == b"old"
    assert [path.name.split(".")[1:3] for path in remove_leftovers(file.parent)] == [["file", "pth"]]
    assert {path.name for path in file.parent.iterdir()} == {"file.pth", ".folder.1.tmp", *others}
    assert remove_leftovers(file.parent) == []
    assert remove_leftovers(file.parent / "missing") == []
