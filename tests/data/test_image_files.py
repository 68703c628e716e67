"""Finding and reading images on disk, in LMDBs and among the demo photographs."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import cv2
import numpy as np
import pytest
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from skimage import data

from bsr_plugins.data import image_files
from bsr_plugins.data.image_files import (
    TRAIN_PHOTOGRAPHS,
    VALIDATION_PHOTOGRAPHS,
    ImageFile,
    distinct_names,
    find_images,
    read_image,
)
from bsr_plugins.errors import BadImageError, OptionError


def write(path: Path, height: int = 6, width: int = 8, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph = data.coffee()[level : level + height, level : level + width, ::-1]
    assert cv2.imwrite(str(path), photograph)
    return path


def find(*roots: Path | str, backend: str = "disk", phase: str = "train") -> list[ImageFile]:
    return find_images([str(root) for root in roots], backend, phase, "dataroot_gt")


def make_lmdb(folder: Path, files: list[Path], keys: list[str]) -> Path:
    lmdb = folder / "images.lmdb"
    make_lmdb_from_imgs(
        str(folder), str(lmdb), [str(file.relative_to(folder)) for file in files], keys, map_size=1 << 24
    )
    return lmdb


def test_disk_folders(tmp_path: Path) -> None:
    for name in ("b.png", "sub/c.v2 x.PNG", "sub/deeper/a.jpg", ".hidden.png", ".git/d.png", "._b.png"):
        write(tmp_path / "one" / name, 6, 8)
    write(tmp_path / "two" / "a.bmp", 9, 7)
    (tmp_path / "one" / "notes.txt").write_text("no image")
    images = find(tmp_path / "two", tmp_path / "one")
    assert [image.name for image in images] == ["a", "b", "sub/c.v2 x", "sub/deeper/a"]
    assert [(image.height, image.width) for image in images] == [(9, 7), (6, 8), (6, 8), (6, 8)]
    assert images[2].path == str(tmp_path / "one/sub/c.v2 x.PNG")
    assert read_image(images[0]).shape == (9, 7, 3)


def test_linked_folders_are_searched(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    assert [image.name for image in find(tmp_path / "root")] == ["link/a"]


@pytest.mark.parametrize(
    ("phase", "names"),
    [("train", TRAIN_PHOTOGRAPHS), ("val", VALIDATION_PHOTOGRAPHS), ("test", VALIDATION_PHOTOGRAPHS)],
)
def test_demo(phase: str, names: tuple[str, ...]) -> None:
    images = find("demo", phase=phase)
    assert tuple(Path(image.path).name for image in images) == names
    colourful = [read_image(image) for image in images]
    assert all((pixels[..., 0] != pixels[..., 2]).any() for pixels in colourful)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write(tmp_path / "root" / "a" / "1.png")
    (tmp_path / "root" / "a" / "back").symlink_to(tmp_path / "root")
    assert [image.name for image in find(tmp_path / "root")] == ["a/1"]


def test_demo_photographs_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    with pytest.raises(OptionError, match=r"^dataroot_gt: 'demo' needs .*astronaut\.png"):
        find("demo")


def test_lmdb_equals_disk(tmp_path: Path) -> None:
    keys = ["plain", "with.dots.v2", "with space (1,2,3) 1", "sub/x"]
    files = [write(tmp_path / f"{key}.png", 6 + n, 8, level=n) for n, key in enumerate(keys)]
    grey16 = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1001
    cv2.imwrite(str(tmp_path / "deep.png"), grey16)
    lmdb = make_lmdb(tmp_path, [*files, tmp_path / "deep.png"], [*keys, "deep"])
    stored, on_disk = find(lmdb, backend="lmdb"), find(tmp_path)
    assert [image[1:2] + image[4:] for image in stored] == [image[1:2] + image[4:] for image in on_disk]
    for one, other in zip(stored, on_disk, strict=True):
        np.testing.assert_array_equal(read_image(one), read_image(other))
    assert read_image(stored[0]).dtype == np.uint16
    assert stored[0].path == f"{lmdb}/deep"


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_forked_processes_open_lmdbs_anew(tmp_path: Path) -> None:
    lmdb = make_lmdb(tmp_path, [write(tmp_path / "a.png")], ["a"])
    (image,) = find(lmdb, backend="lmdb")
    pixels = read_image(image)
    client = image_files._client(image.lmdb)
    assert image_files._client(image.lmdb) is client

    def child() -> None:
        np.testing.assert_array_equal(read_image(image), pixels)
        assert image_files._client(image.lmdb) is not client

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_unusable_roots(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare.lmdb").mkdir()
    file = write(tmp_path / "file" / "a.png")
    for backend, root, message in (
        ("disk", tmp_path / "absent", r"absent' is missing or no folder"),
        ("disk", file, r"a\.png' is missing or no folder"),
        ("disk", tmp_path / "empty", r"empty' holds no image"),
        ("disk", tmp_path / "bare.lmdb", r"bare\.lmdb' is an LMDB, which needs io_backend: \{type: lmdb\}"),
        ("lmdb", tmp_path / "bare.lmdb", r"bare\.lmdb' lacks data\.mdb"),
        ("lmdb", tmp_path / "file", r"file' is missing or no LMDB"),
        ("lmdb", "demo", r"demo' is missing or no LMDB"),
    ):
        with pytest.raises(OptionError, match=rf"^dataroot_gt: '.*{message}") as caught:
            find(root, backend=backend)
        assert "\n" not in str(caught.value)


def test_bad_meta_info(tmp_path: Path) -> None:
    lmdb = make_lmdb(tmp_path, [write(tmp_path / "a.png")], ["a"])
    (lmdb / "meta_info.txt").write_text("a.png 6x8\n")
    with pytest.raises(OptionError, match=r"meta_info\.txt' says 'a\.png 6x8', expected"):
        find(lmdb, backend="lmdb")
    (lmdb / "meta_info.txt").write_text("b.png (6,8,3) 1\na.png (60,8,3) 1\n")
    known, unknown = find(lmdb, backend="lmdb")
    with pytest.raises(BadImageError, match=r"images\.lmdb/a: is 8x6, but was listed as 8x60"):
        read_image(known)
    with pytest.raises(BadImageError, match=r"images\.lmdb/b: the LMDB has no such key"):
        read_image(unknown)


def test_unreadable_headers_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(BadImageError, match=r"b\.png: cannot be decoded"):
        find(tmp_path)


def test_headers_that_pillow_does_not_know(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.tiff"), np.zeros((6, 8, 3), np.float32))
    with pytest.raises(BadImageError, match=r"a\.tiff: has float32 pixels"):
        find(tmp_path)


def test_file_changes_after_listing(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png")
    (image,) = find(tmp_path)
    write(file, 4, 8)
    with pytest.raises(BadImageError, match=r"a\.png: is 8x4, but was listed as 8x6"):
        read_image(image)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadImageError, match=r"a\.png: cannot be decoded"):
        read_image(image)
    file.unlink()
    with pytest.raises(BadImageError, match=r"a\.png: cannot be read \(.*No such file"):
        read_image(image)


def test_distinct_names() -> None:
    names = ["a", "sub/a", "sub_a", "A", "a", "a-2"]
    images = [ImageFile(name, name, name, "", 1, 1) for name in names]
    assert distinct_names(images) == ["a", "sub_a", "sub_a-2", "A-2", "a-3", "a-2-2"]
