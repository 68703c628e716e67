"""What is found of pairs of images before a run, in folders and in LMDBs: by their names, headers and sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from PIL import Image

from bsr_plugins.options.datasets import header_sizes
from tests.options.stock_options import write_image
from tests.options.test_bad_options import MISSING, assert_refused, change

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

Run = Callable[..., "Outcome"]


def test_pairs_run(pairs: Options, in_process: Run) -> None:
    assert in_process("train", pairs).status == 0


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("datasets.train.dataroot_lq", "nowhere", "datasets.train.dataroot_lq: 'nowhere' is missing or no folder"),
        ("datasets.val.dataroot_gt", "empty", "datasets.val: PairedImageDataset .*different number of images: 2, 0"),
        ("datasets.train.dataroot_lq", "one", "datasets.train: PairedImageDataset .*different number of images: 1, 2"),
        ("datasets.train.filename_tmpl", "{}x4", "datasets.train: PairedImageDataset .*: ax4.png is not in lq_paths"),
        ("datasets.train.gt_size", 30, "datasets.train.gt_size: 30, expected a multiple of scale 4"),
        ("datasets.train.gt_size", 64, "gt/a.png: is 64x48, expected both sides at least gt_size 64"),
        ("datasets.val.dataroot_lq", "small", "gt/a.png: is 64x48, expected 64x40, 4 times the 16x10 of small/a.png"),
        ("datasets.val.dataroot_lq", "text", "text/b.png: cannot be read .UnidentifiedImageError: .*b.png'., expected"),
        ("datasets.val.dataroot_lq", ["lq"], "datasets.val.dataroot_lq: ..lq.., expected one folder"),
        ("datasets.val.mean", [0.5, "x"], "datasets.val: PairedImageDataset cannot be used with this block"),
        ("datasets.val.io_backend", {"type": "dsk"}, "datasets.val.io_backend.type: unknown name 'dsk'"),
        ("datasets.val.io_backend", None, "datasets.val.io_backend: None, expected a block"),
        ("datasets.val.io_backend", {"typ": "disk"}, "val.io_backend: the key 'type' is missing"),
        ("datasets.val.io_backend", {}, "val.io_backend: the key 'type' is missing"),
        ("datasets.val.io_backend", {"type": "disk", "tpe": 1}, "io_backend.tpe: unknown key, expected no such key"),
        ("datasets.val.io_backend", {"type": "memcached", "client_cfg": "x"}, "server_list_cfg: the key is missing"),
        ("datasets.train.filename_tmpl", 3, "datasets.train.filename_tmpl: 3, expected text that holds '{}' once"),
        ("datasets.train.filename_tmpl", None, "datasets.train.filename_tmpl: None, expected text that holds '{}'"),
        ("datasets.val.filename_tmpl", "x4", "datasets.val.filename_tmpl: 'x4', expected text that holds '{}'"),
        ("datasets.val.filename_tmpl", "{}{}", "datasets.val.filename_tmpl: '{}{}', expected text that holds '{}'"),
        ("datasets.val.persistent_workers", True, "datasets.val.persistent_workers: true, expected false"),
        ("datasets.val.meta_info_file", "no.txt", "datasets.val: .*No such file or directory: 'no.txt'"),
        ("datasets.train.batch_size_per_gpu", 3, "batch_size_per_gpu: 3 in all, expected at most 2, as an epoch"),
        ("datasets.train.dataset_enlarge_ratio", 1e15, "dataset_enlarge_ratio: .*, which makes epochs that do not fit"),
        ("datasets.train.use_hflip", "yes", "datasets.train.use_hflip: 'yes', expected true or false"),
    ],
)  # fmt: skip
def test_pairs_are_refused(
    project: Project, pairs: Options, in_process: Run, place: str, value: Any, message: str
) -> None:
    (project.root / "empty").mkdir()
    write_image(project.root / "one" / "a.png", 12, 16)
    for name in ("a", "b"):
        write_image(project.root / "small" / f"{name}.png", 10, 16)
        write_image(project.root / "text" / f"{name}.png", 12, 16)
    (project.root / "text" / "b.png").write_text("no image")
    change(pairs, place, value)
    assert_refused(in_process("train", pairs), message)
    assert project.experiments == []


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_single_images_are_a_fault_unless_they_are_to_be_skipped(
    project: Project, pairs: Options, in_process: Run, on_bad_image: str
) -> None:
    (project.root / "lq" / "a.png").write_text("no image")
    pairs["datasets"] = {"train": pairs["datasets"]["train"] | {"on_bad_image": on_bad_image}}
    outcome = in_process("train", pairs, "--check")
    if on_bad_image == "skip":
        assert outcome.status == 0, outcome.output
    else:
        assert_refused(outcome, "lq/a.png: cannot be read")


def test_an_image_that_only_seems_whole_is_named(project: Project, pairs: Options, in_process: Run) -> None:
    for file in (project.root / "gt").iterdir():
        file.write_bytes(file.read_bytes()[:2000])
    del pairs["datasets"]["val"]
    outcome = in_process("train", pairs, "--check")
    lines = [line for line in outcome.output.splitlines() if line.startswith("error: ")]  # less what OpenCV says
    assert_refused(outcome._replace(output="\n".join(lines)), "gt/[ab].png: cannot be decoded")


@pytest.mark.parametrize("own", [False, True])
def test_all_that_is_wrong_with_a_dataset_is_said_at_once(
    pairs: Options, aacl_options: Options, in_process: Run, own: bool
) -> None:
    options = aacl_options if own else pairs
    del options["datasets"]["val"]
    train = options["datasets"]["train"]
    wrong = {"dataroot_gt": "nowhere", "gt_size": 30, "num_worker_per_gpu": "two", "gt_sze": 3}
    options["datasets"]["train"] = train | wrong
    outcome = in_process("train", options, "--check")
    assert outcome.status == 2
    begin = "datasets.train"
    for expected in (
        f"{begin}.dataroot_gt: 'nowhere' is missing or no folder",
        f"{begin}.gt_size: 30, expected a multiple of scale 4",
        "datasets.train.num_worker_per_gpu: 'two', expected a whole number in [0, 1024]",
        "datasets.train.gt_sze: unknown key, ",
    ):
        assert outcome.output.count(expected) == 1, (expected, outcome.output)
    options["datasets"]["train"] = train | {"gt_size": 30, "batch_size_per_gpu": 40000}
    outcome = in_process("train", options, "--check")
    assert outcome.output.count("expected a multiple of scale 4") == 1
    assert "datasets.train.batch_size_per_gpu: 40000 in all, expected at most " in outcome.output


def test_folders_of_folders_are_no_fault(project: Project, pairs: Options, in_process: Run) -> None:
    write_image(project.root / "clips" / "000" / "0.png", 48, 64)
    video = {"type": "REDSDataset", "dataroot_gt": "clips", "dataroot_lq": "clips", "num_frame": "five"}
    pairs["datasets"] = {"train": pairs["datasets"]["train"] | video}
    outcome = in_process("train", pairs, "--check")
    assert outcome.status == 2
    assert "holds no image" not in outcome.output


@pytest.mark.parametrize("kind", ["folder", "link"])
@pytest.mark.parametrize(
    ("root", "line"),
    [
        ("gt", "different number of images: 2, 1"),
        ("lq", "different number of images: 1, 2"),
    ],
)
def test_images_without_a_partner_are_a_fault(
    project: Project, pairs: Options, in_process: Run, root: str, kind: str, line: str
) -> None:
    file = project.root / root / "b.png"
    file.unlink()
    if kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("nowhere.png")
    del pairs["datasets"]["val"]
    outcome = in_process("train", pairs)
    assert_refused(outcome, f"datasets.train: PairedImageDataset cannot be used .*{line}")


def test_sizes_are_read_without_the_pixels(tmp_path: Path) -> None:
    noise = Image.effect_noise((64, 48), 50)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    noise.save(tmp_path / "b.png", exif=turned)
    noise.save(tmp_path / "c.jpg", exif=turned)
    noise.save(tmp_path / "d.jpg")
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    assert header_sizes(files) == [(48, 64), (64, 48), (64, 48), (48, 64)]


@pytest.fixture
def lmdb_pairs(project: Project, pairs: Options) -> Options:
    """Options of a run as `pairs` has it, on LMDBs; `few` has one of the LR images, `small` others than fit."""
    write_image(project.root / "few" / "a.png", 12, 16)
    for name in ("a", "b"):
        write_image(project.root / "small" / f"{name}.png", 10, 16)
    for folder in ("gt", "lq", "few", "small"):
        names = sorted(file.name for file in (project.root / folder).iterdir())
        root = str(project.root / folder)
        make_lmdb_from_imgs(root, f"{root}.lmdb", names, [name[0] for name in names], map_size=1 << 20)
    for block in pairs["datasets"].values():
        backend = {"type": "lmdb", "readahead": True, "max_readers": 8}
        block |= {"dataroot_gt": "gt.lmdb", "dataroot_lq": "lq.lmdb", "io_backend": backend}
    return pairs


def test_lmdb_pairs_pass(lmdb_pairs: Options, in_process: Run) -> None:
    outcome = in_process("train", lmdb_pairs, "--check")
    assert outcome.status == 0, outcome.output


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("datasets.train.gt_size", 30, "datasets.train.gt_size: 30, expected a multiple of scale 4"),
        ("datasets.train.gt_size", 64, "gt.lmdb/a: is 64x48, expected both sides at least gt_size 64"),
        ("datasets.val.dataroot_lq", "small.lmdb", "gt.lmdb/a: is 64x48, expected 64x40, 4 times the 16x10 of small.l"),
        ("datasets.val.dataroot_lq", "few.lmdb", "datasets.val: .*Keys in lq_folder and gt_folder are different"),
        ("datasets.val.dataroot_gt", "few.lmdb", "datasets.val: .*Keys in lq_folder and gt_folder are different"),
        ("datasets.train.use_rot", MISSING, "datasets.train.use_rot: the key is missing"),
        ("datasets.train.gt_size", None, "datasets.train.gt_size: the key is missing"),
        ("datasets.val.dataroot_lq", "lq", "datasets.val: .*lq folder and gt folder should both in lmdb formats"),
        ("datasets.val.dataroot_lq", ["lq.lmdb"], "datasets.val.dataroot_lq: ..lq.lmdb.., expected one folder"),
        ("datasets.val.io_backend.readahed", True, "val.io_backend.readahed: unknown key, .*did you mean 'readahead'"),
        ("datasets.val.io_backend.max_reader", 9, "io_backend.max_reader: unknown key, .*did you mean 'max_readers'"),
        ("datasets.val.io_backend.db_paths", "x", "datasets.val.io_backend.db_paths: unknown key, expected one of"),
        ("val.metrics.psnr.crop_border", 24, "crop_border: 24, which leaves nothing of the smallest image, 64x48"),
    ],
)  # fmt: skip
def test_lmdb_pairs_are_refused(
    project: Project, lmdb_pairs: Options, in_process: Run, place: str, value: Any, message: str
) -> None:
    change(lmdb_pairs, place, value)
    if place.startswith("val.metrics"):
        del lmdb_pairs["val"]["metrics"]["ssim"]
    assert_refused(in_process("train", lmdb_pairs), message)
    assert project.experiments == []


def test_two_sets_of_one_name(pairs: Options, in_process: Run) -> None:
    pairs["datasets"]["val_2"] = pairs["datasets"]["val"]
    assert_refused(in_process("train", pairs), "datasets.val_2.name: 'val' is the name of datasets.val too")
    pairs["datasets"] = {"train": pairs["datasets"]["train"], "train_2": pairs["datasets"]["train"]}
    assert_refused(in_process("train", pairs), "datasets.train_2: expected the name 'train'; there is one training")
