"""Test sets on disk: the dataset's own pixels, for any reader, whatever happened while they were written."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from skimage import data

from bsr_plugins import __version__
from bsr_plugins.data import testset_writer as module
from bsr_plugins.data.testset_writer import MANIFEST, UNFINISHED, Count, SetRequest, make_test_set
from bsr_plugins.errors import BadImageError, BSRError, OptionError

NAMES = ["b.x.png", "sub_a.png", "sub_deep.png"]
NOISY = ("noise", "blur_noise_jpeg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three small photographs of other sizes, one of 16 bits and one a JPEG."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    part = data.coffee()[100:150, 150:201, ::-1]
    assert cv2.imwrite(str(root / "b.x.png"), part)
    assert cv2.imwrite(str(root / "sub" / "deep.PNG"), part[:44, :48].astype(np.uint16) * 257 + 5)
    assert cv2.imwrite(str(root / "sub" / "a.jpg"), part[:47])
    return root


@pytest.fixture
def request_(folder: Path, tmp_path: Path) -> SetRequest:
    return SetRequest(roots=(str(folder),), out=tmp_path / "set", protocol="align8", scale=4, settings=NOISY, seed=3)


def contents(out: Path) -> dict[str, bytes]:
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


def on_the_fly(request: SetRequest) -> Any:
    options = {"name": "Test", "type": "PairedDegradationDataset", "phase": "test", "scale": request.scale}
    settings = None if request.settings is None else list(request.settings)
    options |= {"dataroot_gt": list(request.roots), "protocol": request.protocol, "seed": request.seed}
    return build_dataset(options | ({} if settings is None else {"settings": settings}))


def stock(request: SetRequest, setting: str) -> Any:
    """Read a set with BasicSR's own dataset."""
    return build_dataset(
        {
            "name": "Test",
            "type": "PairedImageDataset",
            "phase": "test",
            "scale": request.scale,
            "dataroot_gt": str(request.out / "HR"),
            "dataroot_lq": str(request.out / f"LR_{setting}" / f"X{request.scale}"),
            "io_backend": {"type": "disk"},
        }
    )


def test_the_folders_and_the_manifest(request_: SetRequest, folder: Path) -> None:
    assert make_test_set(request_) == Count(kept=0, written=9)
    folders = ("HR", "LR_blur_noise_jpeg/X4", "LR_noise/X4")
    assert list(contents(request_.out)) == [*(f"{place}/{name}" for place in folders for name in NAMES), MANIFEST]
    manifest = json.loads((request_.out / MANIFEST).read_text())
    images = manifest.pop("images")
    clean = {"lambda1": 0.0, "lambda2": 0.0, "theta": 0.0, "noise_level": 0.0, "jpeg_quality": 0.0}
    assert manifest == {
        "format": 1,
        "version": __version__,
        "protocol": "align8",
        "scale": 4,
        "seed": 3,
        "settings": {
            "noise": {**clean, "noise_level": 20.0},
            "blur_noise_jpeg": {**clean, "lambda1": 2.0, "lambda2": 2.0, "noise_level": 20.0, "jpeg_quality": 50.0},
        },
    }
    sources = ("b.x.png", "sub/a.jpg", "sub/deep.PNG")
    sizes = ([48, 48], [44, 48], [44, 48])
    for image, name, source, (height, width) in zip(images, NAMES, sources, sizes, strict=True):
        assert image == {
            "name": name,
            "source": source,
            "sha256": hashlib.sha256((folder / source).read_bytes()).hexdigest(),
            "hr": [height, width],
            "lr": [height // 4, width // 4],
        }


def test_hr_images_are_cropped_and_nothing_else(request_: SetRequest, folder: Path) -> None:
    make_test_set(request_)
    for name, source in zip(NAMES, ("b.x.png", "sub/a.jpg", "sub/deep.PNG"), strict=True):
        found = cv2.imread(str(request_.out / "HR" / name), cv2.IMREAD_UNCHANGED)
        expected = cv2.imread(str(folder / source), cv2.IMREAD_UNCHANGED)
        assert found is not None
        assert expected is not None
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected[: found.shape[0], : found.shape[1]])
        assert max(a - b for a, b in zip(expected.shape, found.shape, strict=True)) < 4


@pytest.mark.parametrize(
    ("protocol", "scale", "settings"), [("align8", 4, None), ("aniso9", 3, ("k4_noise10",)), ("gaussian8", 2, None)]
)
def test_stock_basicsr_reads_what_our_dataset_makes_on_the_fly(
    protocol: str, scale: int, settings: tuple[str, ...] | None, request_: SetRequest, folder: Path
) -> None:
    (folder / "sub" / "deep.PNG").unlink()  # the stock dataset reads 16 bits as 8
    request = replace(request_, protocol=protocol, scale=scale, settings=settings)
    make_test_set(request)
    ours = {item["lq_path"]: item for item in on_the_fly(request)}
    names = list(json.loads((request.out / MANIFEST).read_text())["settings"])
    assert len(names) == (1 if settings else 8)
    for setting in names:
        theirs = stock(request, setting)
        assert {Path(item["gt_path"]).name for item in theirs} == {"b.x.png", "sub_a.png"}
        for item in theirs:
            expected = ours[f"{Path(item['gt_path']).stem}_{setting}.png"]
            assert torch.equal(item["lq"], expected["lq"]), setting
            assert torch.equal(item["gt"], expected["gt"]), setting


def test_the_bytes_depend_neither_on_processes_nor_on_interruptions(request_: SetRequest) -> None:
    make_test_set(request_)
    expected = contents(request_.out)
    other = replace(request_, out=request_.out.with_name("other"))
    assert make_test_set(other, processes=2) == Count(kept=0, written=9)
    assert contents(other.out) == expected
    assert contents(request_.out)["LR_noise/X4/b.x.png"] != contents(request_.out)["LR_noise/X4/sub_a.png"]


def test_an_interrupted_set_is_taken_up(request_: SetRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = module._write_png

    def interrupted(file: Path, pixels: Any) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(file.name)
        write(file, pixels)

    monkeypatch.setattr(module, "_write_png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_test_set(request_)
    assert (request_.out / UNFINISHED).is_file()
    assert not (request_.out / MANIFEST).exists()
    monkeypatch.undo()
    (request_.out / "HR" / ".b.x.png.1.tmp").write_bytes(b"left by a process that was killed")
    assert make_test_set(request_) == Count(kept=4, written=5)
    other = replace(request_, out=request_.out.with_name("other"))
    make_test_set(other)
    assert contents(request_.out) == contents(other.out)
    assert make_test_set(request_) == Count(kept=9, written=0)


def test_a_full_disk_leaves_no_half_file(request_: SetRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, written = os.fsync, []

    def until_full(file: int) -> None:
        written.append(file)
        if len(written) == 7:  # every file is followed by its folder
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", until_full)
    with pytest.raises(BSRError, match=rf"{NAMES[0]}: cannot be written \(No space left on device\)$"):
        make_test_set(request_)
    monkeypatch.undo()
    assert len(contents(request_.out)) == 3
    assert make_test_set(request_) == Count(kept=2, written=7)


def test_files_that_are_not_whole_are_made_again(request_: SetRequest) -> None:
    make_test_set(request_)
    expected = contents(request_.out)
    files = [request_.out / "HR" / NAMES[0], *(request_.out / "LR_noise" / "X4" / name for name in NAMES)]
    whole = files[1].read_bytes()
    files[0].write_bytes(files[0].read_bytes()[:-20])
    files[1].write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    files[2].unlink()
    assert cv2.imwrite(str(files[3]), np.zeros((7, 7, 3), np.uint8))
    times = {file: file.stat().st_mtime_ns for file in request_.out.rglob("*.png") if file not in files}
    assert make_test_set(request_) == Count(kept=5, written=4)
    assert contents(request_.out) == expected
    assert times == {file: file.stat().st_mtime_ns for file in times}


@pytest.mark.parametrize("length", [0, 5, 8, 20, 60, -12, -1])
def test_no_beginning_of_a_png_is_whole(length: int, tmp_path: Path) -> None:
    _, encoded = cv2.imencode(".png", data.coffee()[:9, :7])
    (tmp_path / "a.png").write_bytes(encoded.tobytes())
    assert module._is_whole(tmp_path / "a.png", 9, 7)
    assert not module._is_whole(tmp_path / "a.png", 7, 9)
    (tmp_path / "a.png").write_bytes(encoded.tobytes()[:length])
    assert not module._is_whole(tmp_path / "a.png", 9, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "six", "settings": None}, "protocol 'align8', expected 'six'"),
        ({"scale": 2}, "scale 4, expected 2"),
        ({"seed": 4}, "seed 3, expected 4"),
        ({"settings": ("noise",)}, "other settings, expected the same"),
    ],
)
def test_another_set_in_the_folder_is_refused(change: dict[str, Any], message: str, request_: SetRequest) -> None:
    make_test_set(request_)
    before = contents(request_.out)
    with pytest.raises(OptionError) as error:
        make_test_set(replace(request_, **change))
    assert str(error.value) == f"{request_.out / MANIFEST}: is of a test set with {message} (or another folder)"
    assert contents(request_.out) == before


def test_other_hr_images_are_refused(request_: SetRequest, folder: Path) -> None:
    make_test_set(request_)
    assert cv2.imwrite(str(folder / "b.x.png"), data.coffee()[200:250, 150:201])
    with pytest.raises(OptionError, match=r"with other images, expected the same"):
        make_test_set(request_)
    (folder / "b.x.png").unlink()
    with pytest.raises(OptionError, match=r"with other images, expected the same"):
        make_test_set(request_)
    (request_.out / MANIFEST).write_text("{")
    with pytest.raises(OptionError, match=r"manifest\.json: cannot be read, expected the manifest of a test set$"):
        make_test_set(request_)


def test_folders_that_cannot_be_written_to(request_: SetRequest, folder: Path, tmp_path: Path) -> None:
    for out in (folder, folder / "new"):
        with pytest.raises(OptionError, match=r"^out: '.*' lies in '.*', expected a folder outside the HR images$"):
            make_test_set(replace(request_, out=out))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"^out: '.*notes' is not empty and has no manifest\.json"):
        make_test_set(replace(request_, out=tmp_path / "notes"))
    with pytest.raises(OptionError, match=r"^out: '.*mine\.txt' is no folder"):
        make_test_set(replace(request_, out=tmp_path / "notes" / "mine.txt"))
    assert contents(tmp_path / "notes") == {"mine.txt": b"mine"}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_truncated_image_is_named_before_anything_is_written(
    processes: int, request_: SetRequest, folder: Path
) -> None:
    broken = folder / "sub" / "broken.png"
    broken.write_bytes((folder / "b.x.png").read_bytes()[:-1000])
    with pytest.raises(BadImageError, match=r"broken\.png: cannot be decoded, expected a whole image file") as error:
        make_test_set(request_, processes)
    assert "\n" not in str(error.value)
    assert not request_.out.exists()


def test_bad_requests(request_: SetRequest, folder: Path) -> None:
    with pytest.raises(OptionError, match=r"^protocol: unknown name 'aling8', .*; did you mean 'align8'\?$"):
        make_test_set(replace(request_, protocol="aling8"))
    with pytest.raises(OptionError, match=r"settings: unknown name 'nose', .*; did you mean 'noise'\?$"):
        make_test_set(replace(request_, settings=("nose",)))
    with pytest.raises(OptionError, match=r"scale: 0, expected a whole number at least 1$"):
        make_test_set(replace(request_, scale=0))
    with pytest.raises(OptionError, match=r"seed: -1, expected a whole number at least 0$"):
        make_test_set(replace(request_, seed=-1))
    with pytest.raises(OptionError, match=r"^processes: 0, expected a whole number at least 1$"):
        make_test_set(request_, processes=0)
    with pytest.raises(OptionError, match=r"'.*nowhere' is missing or no folder"):
        make_test_set(replace(request_, roots=(str(folder / "nowhere"),)))
    with pytest.raises(OptionError, match=r"^folder: 'hr\.lmdb' is an LMDB, expected a folder of image files$"):
        make_test_set(replace(request_, roots=("hr.lmdb",)))
    assert cv2.imwrite(str(folder / "small.png"), np.zeros((10, 60, 3), np.uint8))
    with pytest.raises(BadImageError, match=r"small\.png: is 60x10, expected both sides at least 11"):
        make_test_set(request_)
    assert not request_.out.exists()


def test_a_process_that_dies_is_one_line(request_: SetRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Maker, "inspect", _die)
    with pytest.raises(BSRError, match=r"^processes: one of 2 ended abruptly, expected enough memory"):
        make_test_set(request_, processes=2)


def _die(*_: object) -> None:
    os._exit(1)


def test_the_number_of_threads_is_put_back(request_: SetRequest) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        make_test_set(request_)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
