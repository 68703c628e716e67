"""Bad images in training: an error that names the file, or another image, the same one for any number of workers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from bsr_plugins.data.bad_images import SKIPPED, Replacement
from bsr_plugins.data.decode import unusual_images
from bsr_plugins.data.patches import calibration_patches
from bsr_plugins.data.positioned_items import PositionedDataset
from bsr_plugins.errors import BadImageError, BSRError, OptionError, line_of
from tests.data.batches import Batch, assert_same
from tests.engine.loading_cases import train_loader

COUNT = 6
EPOCHS = 2

DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-300]),
    "text": lambda file: file.write_text("no image"),
    "empty": lambda file: file.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.fixture
def folder(photographs: Path, tmp_path: Path) -> Path:
    """A folder with `gt` (six images `0.png` …, 96×96) and `lq` (24×24)."""
    for kind, step in (("gt", 1), ("lq", 4)):
        (tmp_path / kind).mkdir()
        for number, file in enumerate(sorted(photographs.iterdir())[:COUNT]):
            pixels: Any = cv2.imread(str(file))
            cv2.imwrite(str(tmp_path / kind / f"{number}.png"), pixels[::step, ::step])
    return tmp_path


def ours(folder: Path) -> Batch:
    degradation = {"type": "ClassicalDegradation", "blur_iso": {"sigma": [0.2, 4.0]}}
    block = {"type": "PairedDegradationDataset", "degrade_on": "worker", "degradation": degradation, "seed": 5}
    return block | {"dataroot_gt": str(folder / "gt")}


def paired(folder: Path) -> Batch:
    roots = {"dataroot_gt": str(folder / "gt"), "dataroot_lq": str(folder / "lq")}
    return {"type": "PairedImageDataset", **roots, "io_backend": {"type": "disk"}}


Kind = Callable[[Path], Batch]
BOTH = pytest.mark.parametrize("kind", [ours, paired])


def options(kind: Kind, folder: Path, workers: int = 0, **changes: Any) -> Batch:
    block = {
        "name": "photographs",
        "phase": "train",
        "scale": 4,
        "gt_size": 48,
        "use_hflip": True,
        "use_rot": True,
        "num_worker_per_gpu": workers,
        "batch_size_per_gpu": 3,
        "dataset_enlarge_ratio": 2,
        **kind(folder),
        **changes,
    }
    return {"manual_seed": 5, "rank": 0, "world_size": 1, "num_gpu": 0, "datasets": {"train": block}}


def load(opt: Batch, damage: Callable[[], object]) -> tuple[list[Batch], int]:
    """Load some epochs of a data set that is damaged after it was built; gives how many were skipped too."""
    loader = train_loader(opt)
    damage()
    batches = []
    try:
        for epoch in range(EPOCHS):
            loader.start(epoch)
            batches += [*iter(loader.next, None)]
    finally:
        loader.close()
    return batches, loader.skipped


@BOTH
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("changes", [{}, {"workers": 1}, {"workers": 1, "prefetch_mode": "cpu"}])
def test_an_error_names_the_file(kind: Kind, damage: str, changes: Batch, folder: Path) -> None:
    bad = folder / "gt" / "2.png"
    with pytest.raises(BadImageError) as caught:
        load(options(kind, folder, **changes), lambda: DAMAGES[damage](bad))
    message = line_of(caught.value)
    assert message.startswith(f"{bad}: cannot be {'read (' if damage == 'missing' else 'decoded, '}")
    assert "\n" not in message


def test_the_bad_one_of_a_pair_is_named(folder: Path) -> None:
    bad = folder / "lq" / "2.png"
    with pytest.raises(BadImageError, match=rf"^{bad}: cannot be decoded"):
        load(options(paired, folder), lambda: DAMAGES["truncated"](bad))


@BOTH
@pytest.mark.parametrize("damage", DAMAGES)
def test_skipping_is_the_same_for_any_number_of_workers(
    kind: Kind, damage: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = [folder / "gt" / f"{number}.png" for number in (2, 4)]
    whole, _ = load(options(kind, folder), lambda: None)
    contents = [file.read_bytes() for file in bad]
    results = []
    for changes in ({}, {"workers": 1, "persistent_workers": True}, {"workers": 2, "prefetch_mode": "cpu"}):
        results.append(
            load(
                options(kind, folder, on_bad_image="skip", **changes),
                lambda: [DAMAGES[damage](file) for file in bad],
            )
        )
        for file, content in zip(bad, contents, strict=True):
            file.write_bytes(content)
        warnings = [line for line in capfd.readouterr().err.splitlines() if "another image is taken" in line]
        assert {name for name in map(str, bad) if any(name in line for line in warnings)} == set(map(str, bad))
        assert changes or len(warnings) == 2, "each is logged once by a process"
    alone, count = results[0]
    assert count >= EPOCHS * 2 * len(bad)
    for batches, again in results[1:]:
        assert_same(alone, batches)
        assert again == count
    for batch, before in zip(alone, whole, strict=True):
        for place, skipped in enumerate(batch[SKIPPED]):
            if skipped:
                assert before["gt_path"][place] in map(str, bad)
                assert set(skipped.splitlines()) <= set(map(str, bad))
                assert batch["gt_path"][place] not in map(str, bad)
            else:
                assert batch["gt_path"][place] == before["gt_path"][place]
                assert torch.equal(batch["gt"][place], before["gt"][place])


@BOTH
def test_skipping_changes_nothing_where_all_is_well(kind: Kind, folder: Path) -> None:
    plain, _ = load(options(kind, folder), lambda: None)
    skipping, count = load(options(kind, folder, on_bad_image="skip"), lambda: None)
    assert count == 0
    assert all(batch.pop(SKIPPED) == ["", "", ""] for batch in skipping)
    assert_same(plain, skipping)


@BOTH
@pytest.mark.parametrize("workers", [0, 1])
def test_all_images_bad(kind: Kind, workers: int, folder: Path) -> None:
    files = sorted((folder / "gt").iterdir())
    with pytest.raises(BadImageError) as caught:
        load(
            options(kind, folder, workers, on_bad_image="skip"),
            lambda: [DAMAGES["truncated"](file) for file in files],
        )
    message = line_of(caught.value)
    assert "cannot be decoded" in message
    assert message.endswith("(and none of the 6 images of dataset 'photographs' can be used)")


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 12), data=st.data())
def test_another_image_is_found_if_there_is_one(count: int, data: st.DataObject) -> None:
    good = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    wanted, position = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, 3))

    def make(number: int) -> int:
        if number not in good:
            raise BadImageError(f"{number}: bad")
        return number

    made, skipped = Replacement("set", count, 1, lambda number, _: str(number)).take(wanted, make, position)
    assert made in good
    assert len(set(skipped)) == len(skipped)
    assert set(map(int, skipped)).isdisjoint(good)
    assert (made == wanted) == (not skipped)
    again = Replacement("set", count, 1, lambda number, _: str(number)).take(wanted, make, position)
    assert again == (made, skipped)


def test_the_place_decides_which_other_image_is_taken() -> None:
    def make(number: int) -> int:
        if number == 0:
            raise BadImageError("0: bad")
        return number

    replacement = Replacement("set", 9, 1, lambda number, _: str(number))
    taken = [replacement.take(0, make, 0, position)[0] for position in range(100)]
    assert set(taken) == set(range(1, 9))


def test_what_is_seen_to_be_bad_at_the_start(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in (0, 1, 2):
        DAMAGES["text"](folder / "gt" / f"{number}.png")
    cv2.imwrite(str(folder / "gt" / "3.png"), np.zeros((40, 96, 3), np.uint8))
    with pytest.raises(BadImageError, match=r"0\.png: cannot be decoded"):
        train_loader(options(ours, folder))
    opt = options(ours, folder, on_bad_image="skip")
    kept = copy.deepcopy(opt)
    loader = train_loader(opt)
    assert opt == kept
    assert loader.num_images == 2
    lines = [line.partition("WARNING: ")[2] for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert len(lines) == 4
    for number in range(3):
        assert lines[number].startswith(
            f"dataset 'photographs': leaves out {folder}/gt/{number}.png: cannot be decoded"
        )
    assert lines[3] == "dataset 'photographs': leaves out 4 of 6 images (and 1 more)"
    for number in (4, 5):
        DAMAGES["text"](folder / "gt" / f"{number}.png")
    with pytest.raises(BadImageError, match=r"\(and none of the 6 images of dataset 'photographs' can be used\)$"):
        train_loader(opt)


def test_calibration_passes_over_bad_images(folder: Path) -> None:
    opt = options(ours, folder, on_bad_image="skip", calibration_images=6)["datasets"]["train"]
    whole = calibration_patches(opt)
    DAMAGES["truncated"](folder / "gt" / "2.png")
    rest = calibration_patches(opt)
    assert [torch.equal(*pair) for pair in zip(whole, rest, strict=True)] == [True, True, False, True, True, True]
    assert torch.equal(rest, calibration_patches(opt))
    with pytest.raises(BadImageError, match=r"2\.png: cannot be decoded"):
        calibration_patches(opt | {"on_bad_image": "error"})


def test_under_basicsrs_own_loader(folder: Path) -> None:
    opt = options(ours, folder, 1, on_bad_image="skip")["datasets"]["train"]
    dataset = build_dataset(opt)
    DAMAGES["truncated"](folder / "gt" / "2.png")
    loader = build_dataloader(dataset, opt, num_gpu=0, sampler=EnlargedSampler(dataset, 1, 0, 2), seed=0)
    batches = list(loader)
    assert sum(str(folder / "gt" / "2.png") in batch[SKIPPED] for batch in batches) > 0
    assert all(str(folder / "gt" / "2.png") not in batch["gt_path"] for batch in batches)


@BOTH
def test_workers_of_any_start_method_can_have_it(kind: Kind, folder: Path) -> None:
    dataset: Any = train_loader(options(kind, folder, on_bad_image="skip")).dataset
    DAMAGES["truncated"](folder / "gt" / "2.png")
    sent = pickle.loads(pickle.dumps(dataset))
    for number in range(COUNT):
        assert_same([sent[number]], [dataset[number]])
        bad = str(folder / "gt" / "2.png")
        assert sent[number][SKIPPED] == (bad if number == 2 else "")


@BOTH
def test_an_unknown_policy(kind: Kind, folder: Path) -> None:
    with pytest.raises(OptionError, match=r"on_bad_image: unknown name 'skp', .*'skip'\?$"):
        train_loader(options(kind, folder, on_bad_image="skp"))


def test_lmdb_keys_are_named(folder: Path) -> None:
    names = [f"{number}.png" for number in range(COUNT)]
    for kind in ("gt", "lq"):
        keys = [name.removesuffix(".png") for name in names]
        make_lmdb_from_imgs(str(folder / kind), str(folder / f"{kind}.lmdb"), names, keys, map_size=1 << 24)
        with (folder / f"{kind}.lmdb" / "meta_info.txt").open("a") as file:
            file.write("9.png (96,96,3) 1\n")
    roots = {"dataroot_gt": str(folder / "gt.lmdb"), "dataroot_lq": str(folder / "lq.lmdb")}
    changes: Batch = {**roots, "io_backend": {"type": "lmdb"}}
    with pytest.raises(BadImageError, match=rf": {folder}/lq\.lmdb/9: the LMDB has no such key, though "):
        load(options(paired, folder, 1, **changes), lambda: None)
    batches, count = load(options(paired, folder, 1, on_bad_image="skip", **changes), lambda: None)
    assert count > 0
    assert {"9" in batch["gt_path"] for batch in batches} == {False}


def test_images_that_are_unfit(folder: Path) -> None:
    """What BasicSR says itself: sizes that do not match, with the files of the pair."""
    cv2.imwrite(str(folder / "lq" / "2.png"), np.zeros((24, 25, 3), np.uint8))
    gt, lq = folder / "gt" / "2.png", folder / "lq" / "2.png"
    with pytest.raises(BadImageError, match=rf"^{lq} and {gt}: cannot be used \(ValueError: Scale mismatches\. .*"):
        load(options(paired, folder), lambda: None)
    _, count = load(options(paired, folder, on_bad_image="skip"), lambda: None)
    assert count > 0


class Stranger(Dataset[Any]):
    """A dataset that tells nothing of its files."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Batch:
        if index == 1:
            raise self.error
        return {"gt": torch.rand(2)}


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("'NoneType' object has no attribute 'astype'"),
        TypeError("'NoneType' object is not subscriptable"),
        OSError("image file is truncated"),
        ValueError("too small"),
        cv2.error("no"),
    ],
)
def test_strangers_datasets(error: Exception) -> None:
    dataset = PositionedDataset(Stranger(error), 1, "error", "theirs")
    with pytest.raises(BadImageError, match=r"^dataset 'theirs', item 1: cannot be used \(.*\)$"):
        dataset[1]
    item = PositionedDataset(Stranger(error), 1, "skip", "theirs")[1]
    assert item[SKIPPED] == "dataset 'theirs', item 1"


@pytest.mark.parametrize("error", [KeyError("gt_size"), AttributeError("no such"), RuntimeError("x"), IndexError("x")])
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_faults_of_programs_are_not_taken_for_bad_images(error: Exception, policy: str) -> None:
    with pytest.raises(type(error)):
        PositionedDataset(Stranger(error), 1, policy, "theirs")[1]


def test_own_errors_pass_unchanged() -> None:
    with pytest.raises(BSRError, match=r"^mine$"):
        PositionedDataset(Stranger(BSRError("mine")), 1, "skip", "theirs")[1]


def test_a_dataset_that_takes_another_file_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BasicSR's RealESRGANDataset waits and takes a random other image, and the run goes on as if nothing were."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    (folder / "meta.txt").write_text("".join(f"{number}.png\n" for number in range(COUNT)))
    kernels: Batch = {"kernel_list": ["iso"], "kernel_prob": [1], "blur_sigma": [0.2, 3], "sinc_prob": 0.1}
    kernels |= {"blur_kernel_size": 21, "betag_range": [0.5, 4], "betap_range": [1, 2]}
    block: Batch = {"type": "RealESRGANDataset", "meta_info": str(folder / "meta.txt"), "final_sinc_prob": 0.8}
    block |= kernels | {f"{key}2": value for key, value in kernels.items()}
    opt = options(paired, folder, **block)
    bad = folder / "gt" / "2.png"
    with pytest.raises(BadImageError, match=rf"^{bad}: cannot be read \(.*No such file"):
        load(opt, bad.unlink)
    opt["datasets"]["train"]["on_bad_image"] = "skip"
    batches, count = load(opt, lambda: None)
    assert count >= 2 * EPOCHS
    assert sum(skipped == str(bad) for batch in batches for skipped in batch[SKIPPED]) == count


def test_unusual_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = {
        "rgb.png": rng.integers(0, 255, (8, 8, 3), np.uint8),
        "rgb.jpg": rng.integers(0, 255, (8, 8, 3), np.uint8),
        "grey.png": rng.integers(0, 255, (8, 8), np.uint8),
        "grey.jpg": rng.integers(0, 255, (8, 8), np.uint8),
        "grey16.png": rng.integers(0, 65535, (8, 8), np.uint16),
        "alpha.png": rng.integers(0, 255, (8, 8, 4), np.uint8),
        "deep.png": rng.integers(0, 65535, (8, 8, 3), np.uint16),
        "deep.tiff": rng.integers(0, 65535, (8, 8, 3), np.uint16),
        "deep_alpha.png": rng.integers(0, 65535, (8, 8, 4), np.uint16),
    }
    for name, pixels in made.items():
        cv2.imwrite(str(tmp_path / name), pixels)
    (tmp_path / "text.png").write_text("no image")
    files = sorted(tmp_path.iterdir())
    assert unusual_images(files) == (
        "among the first 10 files are 3 greyscale, 2 with an alpha channel, 4 of 16 bits or more a channel; "
        "they are read as RGB of 8 bits without alpha"
    )
    assert unusual_images(files, keeps_depth=True) == (
        "among the first 10 files are 3 greyscale, 2 with an alpha channel; they are read as RGB without alpha"
    )
    assert unusual_images([tmp_path / "deep.png"], keeps_depth=True) is None
    assert unusual_images([tmp_path / "rgb.png", tmp_path / "rgb.jpg", tmp_path / "text.png"]) is None


def test_not_all_of_many_files_are_looked_at(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((8, 8), np.uint8))
    asked = iter([tmp_path / "grey.png"] * 2005)
    complaint = unusual_images(asked)
    assert complaint is not None
    assert complaint.startswith("among the first 2000 files are 2000 greyscale;")
    assert len(list(asked)) >= 4
