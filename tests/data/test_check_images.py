"""The check of a whole data set: every kind of bad file with its reason, pairs, counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from skimage import data

from bsr_plugins.data.check_images import CheckRequest, Report, check_images
from bsr_plugins.data.decode import ALPHA, DEEP, GREY
from bsr_plugins.errors import OptionError


def write(file: Path, height: int = 40, width: int = 48, step: int = 1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), data.coffee()[: height * step : step, : width * step : step, ::-1])
    return file


def check(*roots: Path, processes: int = 1, **options: Any) -> Report:
    return check_images(CheckRequest(roots=tuple(map(str, roots)), **options), processes)


def reasons(report: Report) -> dict[str, str]:
    assert len({fault.path for fault in report.faults}) == len(report.faults)
    return {Path(fault.path).name: fault.reason for fault in report.faults}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `gt` of good images, one in a sub-folder."""
    for name in ("a.png", "b.jpg", "sub/c.png"):
        write(tmp_path / "gt" / name)
    return tmp_path / "gt"


def test_all_good(folder: Path) -> None:
    report = check(folder, gt_size=40, scale=4)
    assert report == Report(3, (), Counter(), Counter({(40, 48): 3}), ())
    assert list(report.lines()) == ["3 images checked, 0 bad", "sizes: 1, from 48x40 to 48x40"]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_kind_of_bad_file(folder: Path, processes: int) -> None:
    whole = (folder / "a.png").read_bytes()
    jpeg = (folder / "b.jpg").read_bytes()
    (folder / "cut.png").write_bytes(whole[:-200])
    (folder / "cut2.jpg").write_bytes(jpeg[:-200])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    cv2.imwrite(str(folder / "float.tiff"), np.zeros((40, 48, 3), np.float32))
    write(folder / "small.png", 39, 48)
    write(folder / "odd.png", 41, 48)
    (folder / "folder.png").mkdir()
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "sub" / "C.bmp").write_bytes(write(folder.parent / "c.bmp").read_bytes())
    report = check(folder, processes=processes, gt_size=40, scale=4)
    assert reasons(report) == {
        "cut.png": f"is truncated or damaged (PNG, {len(whole) - 200} bytes)",
        "cut2.jpg": f"is truncated or damaged (JPEG, {len(jpeg) - 200} bytes)",
        "text.png": "is no image (8 bytes)",
        "empty.png": "is empty (0 bytes)",
        "float.tiff": "has float32 pixels, expected 8 or 16 bits unsigned",
        "small.png": "is 48x39, expected both sides at least gt_size 40",
        "odd.png": "is 48x41, expected multiples of scale 4",
        "gone.png": f"cannot be read ([Errno 2] No such file or directory: '{folder}/gone.png')",
        "c.png": f"has the same name as {folder}/sub/C.bmp",
    }
    assert report.count == 12
    assert f"{folder}/text.png: is no image (8 bytes)" in report.lines()
    assert "12 images checked, 9 bad" in report.lines()


def test_sizes_matter_only_if_asked_for(folder: Path) -> None:
    write(folder / "odd.png", 7, 9)
    assert not check(folder).faults
    assert reasons(check(folder, gt_size=8)) == {"odd.png": "is 9x7, expected both sides at least gt_size 8"}
    assert reasons(check(folder, scale=3)).keys() == {"a.png", "b.jpg", "c.png", "odd.png"}


def test_kinds_and_other_files_are_counted(folder: Path) -> None:
    cv2.imwrite(str(folder / "grey.png"), np.zeros((40, 48), np.uint8))
    cv2.imwrite(str(folder / "alpha.png"), np.zeros((40, 48, 4), np.uint8))
    cv2.imwrite(str(folder / "deep.png"), np.zeros((80, 48, 3), np.uint16))
    for number in range(7):
        (folder / f"note{number}.txt").write_text("mine")
    (folder / ".hidden.png").write_text("no image")
    report = check(folder)
    assert report.faults == ()
    assert report.kinds == {GREY: 1, ALPHA: 1, DEEP: 1}
    assert report.sizes == {(40, 48): 5, (80, 48): 1}
    assert len(report.others) == 7
    text = list(report.lines())
    assert text[1] == "sizes: 2, from 48x40 to 48x80"
    assert text[2] == "unusual: 1 greyscale, 1 of 16 bits or more a channel, 1 with an alpha channel"
    assert text[3].endswith(f"{folder}/note4.txt and 2 more")


def test_pairs(folder: Path) -> None:
    lq = folder.parent / "lq"
    write(lq / "ax4.png", 10, 12)
    write(lq / "bx4.png", 10, 13)
    write(lq / "sub" / "dx4.png", 10, 12)
    report = check(folder, lq=str(lq), lq_name="{}x4", scale=4)
    assert reasons(report) == {
        "bx4.png": f"is 13x10, expected 1/4 of {folder}/b.jpg, which is 48x40",
        "c.png": f"has no LQ image sub/cx4 in {lq}",
        "dx4.png": f"has no GT image in {folder}",
    }
    (lq / "ax4.png").write_bytes(b"")
    assert reasons(check(folder, lq=str(lq), lq_name="{}x4", scale=4))["ax4.png"] == "is empty (0 bytes)"
    write(lq / "ax4.png", 11, 12)
    report = check(folder, lq=str(lq), lq_name="{}x4", scale=4, gt_size=40)
    assert reasons(report)["ax4.png"] == f"is 12x11, expected 1/4 of {folder}/a.png, which is 48x40"


def make_lmdb(folder: Path, names: list[str]) -> Path:
    lmdb = folder.with_suffix(".lmdb")
    make_lmdb_from_imgs(str(folder), str(lmdb), names, [Path(name).stem for name in names], map_size=1 << 24)
    return lmdb


def test_lmdbs(folder: Path) -> None:
    lmdb = make_lmdb(folder, ["a.png", "sub/c.png"])
    assert not check(lmdb, gt_size=40).faults
    with (lmdb / "meta_info.txt").open("a") as file:
        file.write("d.png (40,48,3) 1\n")
    (lmdb / "meta_info.txt").write_text((lmdb / "meta_info.txt").read_text().replace("c.png (40,", "c.png (80,"))
    assert reasons(check(lmdb)) == {
        "c": "is 48x40, but was listed as 48x80",
        "d": "the LMDB has no such key, though its meta_info.txt lists it",
    }


def test_several_folders(folder: Path) -> None:
    other = folder.parent / "other"
    write(other / "a.png")
    (other / "z.png").write_bytes(b"")
    report = check(folder, other)
    assert report.count == 5
    assert reasons(report) == {"z.png": "is empty (0 bytes)"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gt_size": 0}, r"^gt_size: 0, expected a whole number at least 1$"),
        ({"scale": -1}, r"^scale: -1, expected a whole number at least 1$"),
        ({"lq": "lq"}, r"^scale: is missing, expected one with lq$"),
        ({"lq": "nowhere", "scale": 4}, r"^folder: 'nowhere' is missing or no folder"),
        ({"lq_name": "x4"}, r"^lq_name: 'x4', expected \{\} in it"),
        ({"processes": 0}, r"^processes: 0, expected a whole number at least 1$"),
    ],
)
def test_bad_requests(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(OptionError, match=message):
        check(folder, **options)


def test_folders_that_cannot_be_checked(folder: Path) -> None:
    (folder.parent / "empty").mkdir()
    (folder.parent / "bare.lmdb").mkdir()
    for root, message in (
        ("empty", "holds no image"),
        ("none", "is missing or no folder"),
        ("bare.lmdb", "lacks data"),
    ):
        with pytest.raises(OptionError, match=rf"^folder: '.*{root}' {message}"):
            check(folder, folder.parent / root)
    with pytest.raises(OptionError, match=r"^lq: .* with 2 folders, expected one folder of GT images$"):
        check(folder, folder, lq=str(folder), scale=1)
