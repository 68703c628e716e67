"""The items of the dataset, in every phase and mode."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from basicsr.data import build_dataset
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from skimage import data
from torch import Tensor

from bsr_plugins.data.image_files import find_images, read_image
from bsr_plugins.data.patches import calibration_patches
from bsr_plugins.data.positions import PositionedIndex
from bsr_plugins.degradations import SecondOrderDegradation
from bsr_plugins.errors import BadImageError, OptionError
from tests.degradations.reference import blur_bicubic, gaussian_kernel

NOISY = {"type": "ClassicalDegradation", "blur_iso": {"sigma": [0.2, 4.0]}, "noise": {"level": [5, 25]}}


def train(**changes: Any) -> dict[str, Any]:
    """Make the options of a training dataset; a change to None leaves the key out."""
    options = {
        "name": "Train",
        "type": "PairedDegradationDataset",
        "phase": "train",
        "scale": 4,
        "dataroot_gt": "demo",
        "io_backend": {"type": "disk"},
        "degrade_on": "worker",
        "gt_size": 64,
        "use_hflip": True,
        "use_rot": True,
        "degradation": NOISY,
        "num_worker_per_gpu": 0,
        "batch_size_per_gpu": 2,
        **changes,
    }
    return {key: value for key, value in options.items() if value is not None}


def device(**changes: Any) -> dict[str, Any]:
    return train(**{"degrade_on": "device", "degradation": None, "num_views": 2, **changes})


def val(**changes: Any) -> dict[str, Any]:
    options = {
        "name": "Val",
        "type": "PairedDegradationDataset",
        "phase": "val",
        "scale": 4,
        "dataroot_gt": "demo",
        "protocol": "six",
        **changes,
    }
    return {key: value for key, value in options.items() if value is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two small photographs whose sides are no multiples of 4."""
    for name, height in (("b.x.png", 50), ("sub/a.png", 47)):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "images" / name), data.coffee()[100 : 100 + height, 150:201, ::-1])
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def _global_random_states_stay() -> Iterator[None]:
    def states() -> list[str]:
        numpy_state = np.random.get_state()  # noqa: NPY002  (the global state is what must not change)
        return [repr(torch.get_rng_state().tolist()), repr(random.getstate()), repr(numpy_state)]

    before = states()
    yield
    assert states() == before


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
        for key, value in one.items()
    )


def assert_image(image: Tensor, *shape: int) -> None:
    assert image.shape == shape
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert 0 <= float(image.min()) < float(image.max()) <= 1


def test_worker_item() -> None:
    dataset = build_dataset(train())
    assert len(dataset) == 7
    item = dataset[1]
    assert set(item) == {"lq", "gt", "lq_path", "gt_path"}
    assert_image(item["lq"], 3, 16, 16)
    assert_image(item["gt"], 3, 64, 64)
    assert Path(item["gt_path"]).name == "coffee.png"
    sharp = build_dataset(train(degradation={"type": "ClassicalDegradation"}))[1]
    assert torch.equal(sharp["gt"], item["gt"])
    small = F.avg_pool2d(sharp["gt"], 4)
    assert float((sharp["lq"] - small).abs().mean()) < 0.02  # the LR is that of this very patch
    assert float((sharp["lq"] - item["lq"]).abs().mean()) > 0.01


def test_device_views_are_patches_of_one_image() -> None:
    dataset = build_dataset(device(num_views=3, use_rot=False))
    item = dataset[0]
    assert set(item) == {"gt", "gt_path"}
    assert_image(item["gt"], 3, 3, 64, 64)
    photograph = torch.from_numpy(data.astronaut().astype(np.float32) / 255).permute(2, 0, 1)
    places = set()
    for view in item["gt"]:
        for mirrored, patch in ((False, view), (True, view.flip(-1))):
            rows, columns = torch.nonzero((photograph[:, :449, :449] == patch[:, :1, :1]).all(0), as_tuple=True)
            places |= {
                (int(y), int(x), mirrored)
                for y, x in zip(rows, columns, strict=True)
                if torch.equal(photograph[:, y : y + 64, x : x + 64], patch)
            }
    assert len(places) == 3
    assert build_dataset(device(num_views=None))[0]["gt"].shape == (1, 3, 64, 64)


def test_draws_depend_on_seed_epoch_and_position_alone() -> None:
    dataset = build_dataset(train())
    item = dataset[PositionedIndex(2, epoch=3, position=5)]
    dataset.set_epoch(9)
    assert same(item, dataset[PositionedIndex(2, epoch=3, position=5)])
    for index in (PositionedIndex(2, 4, 5), PositionedIndex(2, 3, 6), 2):
        other = dataset[index]
        assert not torch.equal(item["gt"], other["gt"])
        assert not torch.equal(item["lq"], other["lq"])
    assert not torch.equal(item["gt"], build_dataset(train(seed=1))[PositionedIndex(2, 3, 5)]["gt"])
    dataset.set_epoch(3)
    assert same(dataset[2], dataset[PositionedIndex(2, 3, 2)])


def test_degradations_differ_between_epochs_and_positions(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((64, 64), 128, np.uint8))
    dataset = build_dataset(train(dataroot_gt=str(tmp_path), degradation={**NOISY, "noise": {"level": 10}}))
    items = [dataset[PositionedIndex(0, *place)] for place in ((3, 5), (4, 5), (3, 6), (3, 5))]
    assert all(torch.equal(item["gt"], items[0]["gt"]) for item in items)
    assert [torch.equal(item["lq"], items[0]["lq"]) for item in items] == [True, False, False, True]


def test_without_flips_patches_are_upright() -> None:
    gradient = np.add.outer(np.arange(100), np.arange(100, 200)).astype(np.uint8)
    for hflip, rot, kinds in ((False, False, {(1, 1)}), (True, False, {(1, 1), (1, -1)})):
        options = train(use_hflip=hflip, use_rot=rot, degradation={"type": "ClassicalDegradation"}, gt_size=32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bsr_plugins.data.patches.read_image", lambda _: np.dstack([gradient] * 3))
            dataset = build_dataset(options)
            gts = [dataset[PositionedIndex(0, 0, position)]["gt"][0] for position in range(20)]
        assert {(int((gt[1, 0] - gt[0, 0]).sign()), int((gt[0, 1] - gt[0, 0]).sign())) for gt in gts} == kinds


def test_whole_images(folder: Path) -> None:
    dataset = build_dataset(val(dataroot_gt=str(folder)))
    items = [dataset[index] for index in range(len(dataset))]
    assert len(items) == 2 * 6
    assert [item["lq_path"] for item in items[:2]] == ["b.x_bicubic.png", "b.x_iso.png"]
    assert items[-1]["lq_path"] == "sub_a_aniso_noise_jpeg.png"
    assert len({item["lq_path"] for item in items}) == 12
    for item in items:
        height = 48 if "b.x" in item["lq_path"] else 44
        assert_image(item["gt"], 3, height, 48)
        assert_image(item["lq"], 3, height // 4, 12)
    stored = torch.from_numpy(data.coffee()[100:148, 150:198].astype(np.float32) / 255)
    assert torch.equal(items[0]["gt"], stored.permute(2, 0, 1))
    assert not torch.equal(items[0]["lq"], items[1]["lq"])
    assert all(same(item, dataset[index]) for index, item in enumerate(items))


def test_whole_images_do_not_depend_on_their_neighbours(folder: Path) -> None:
    everything = build_dataset(val(dataroot_gt=str(folder)))
    some = build_dataset(val(dataroot_gt=str(folder / "sub"), settings=["aniso_noise_jpeg", "aniso_noise"]))
    by_name = {item["lq_path"]: item for item in (everything[index] for index in range(len(everything)))}
    names = ["a_aniso_noise.png", "a_aniso_noise_jpeg.png"]
    assert [some[index]["lq_path"] for index in range(len(some))] == names
    # The folder in front of the name is gone, and a name's place below its root decides its noise.
    assert not torch.equal(some[0]["lq"], by_name["sub_a_aniso_noise.png"]["lq"])
    two_roots = build_dataset(val(dataroot_gt=[str(folder), str(folder / "sub")], settings=["aniso_noise"]))
    assert [two_roots[index]["lq_path"] for index in range(3)] == [
        "b.x_aniso_noise.png",
        "sub_a_aniso_noise.png",
        "a_aniso_noise.png",
    ]
    assert torch.equal(two_roots[2]["lq"], some[0]["lq"])
    assert torch.equal(two_roots[1]["lq"], by_name["sub_a_aniso_noise.png"]["lq"])


def test_whole_images_under_a_degradation_block(folder: Path) -> None:
    options = val(dataroot_gt=str(folder), protocol=None, degradation=NOISY, phase="test")
    dataset = build_dataset(options)
    assert [dataset[index]["lq_path"] for index in range(len(dataset))] == ["b.x.png", "sub_a.png"]
    assert same(dataset[0], build_dataset(options)[0])
    assert not torch.equal(dataset[0]["lq"], build_dataset({**options, "seed": 1})[0]["lq"])


def test_whole_images_are_sharpened_where_the_degradation_asks_for_it() -> None:
    """Both the image to reproduce and the one that is degraded."""
    items = {}
    for usm in (False, True):
        block = {"type": "SecondOrderDegradation", "usm": usm}
        items[usm] = build_dataset(val(protocol=None, degradation=block))[0]
    degradation = SecondOrderDegradation(4)
    assert_image(items[True]["gt"], *items[False]["gt"].shape)
    assert torch.equal(items[True]["gt"], degradation.target(items[False]["gt"][None])[0])
    assert not torch.equal(items[True]["gt"], items[False]["gt"])
    assert not torch.equal(items[True]["lq"], items[False]["lq"])


def test_whole_images_come_with_their_true_kernel(folder: Path) -> None:
    settings = {"k1_noise0": (2.0, 0.2, 0), "k3_noise20": (3.5, 1.5, 30), "k9_noise10": (4.0, 4.0, 180)}
    dataset = build_dataset(val(dataroot_gt=str(folder), protocol="aniso9", settings=list(settings)))
    for index, (name, (lambda1, lambda2, degrees)) in enumerate(settings.items()):
        item = dataset[index]
        assert item["lq_path"] == f"b.x_{name}.png"
        assert item["kernel"].shape == (21, 21)
        assert item["kernel"].dtype == torch.float32
        expected = torch.from_numpy(gaussian_kernel(lambda1, lambda2, np.radians(degrees))).float()
        torch.testing.assert_close(item["kernel"], expected, rtol=0, atol=1e-6)


def test_drawn_kernels_are_those_of_the_image(folder: Path) -> None:
    blur = {"type": "ClassicalDegradation", "blur_iso": {"sigma": [2.0, 4.0]}, "kernel_size": 9}
    dataset = build_dataset(val(dataroot_gt=str(folder), protocol=None, degradation=blur))
    items = [dataset[index] for index in range(2)]
    assert not torch.equal(items[0]["kernel"], items[1]["kernel"])
    for item in items:
        image = item["gt"].double().numpy()[None]
        expected = torch.from_numpy(blur_bicubic(image, item["kernel"].double().numpy(), 4))[0]
        rounded = (expected.clamp(0, 1) * 255).round() / 255
        assert float((item["lq"] - rounded).abs().max()) < 1.5 / 255  # one grey level, where rounding is a toss
        assert float((item["lq"] - rounded).abs().mean()) < 0.01 / 255


def test_noise_of_settings_and_seeds_differs(folder: Path) -> None:
    def noise(seed: int, setting: str) -> Tensor:
        clean, noisy = (
            build_dataset(val(dataroot_gt=str(folder), protocol="aniso9", settings=[name], seed=seed))[0]["lq"]
            for name in ("k1_noise0", setting)
        )
        difference: Tensor = noisy - clean
        return difference

    ten, twenty, other = noise(0, "k1_noise10"), noise(0, "k1_noise20"), noise(1, "k1_noise10")
    for one, two in ((ten, twenty), (ten, other)):
        assert abs(float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1])) < 0.2


def test_equal_names_get_distinct_files(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.x.png").write_bytes((folder / "b.x.png").read_bytes())
    dataset = build_dataset(val(dataroot_gt=[str(folder), str(other)], protocol="bicubic"))
    names = [dataset[index]["lq_path"] for index in range(len(dataset))]
    assert names == ["b.x_bicubic.png", "sub_a_bicubic.png", "b.x-2_bicubic.png"]


def test_mod_crop_off(folder: Path) -> None:
    with pytest.raises(BadImageError, match=r"b\.x\.png: is 51x50, expected multiples of scale 4"):
        build_dataset(val(dataroot_gt=str(folder), mod_crop=False))
    cv2.imwrite(str(folder / "c.png"), data.coffee()[:48, :52])
    (folder / "b.x.png").unlink()
    (folder / "sub/a.png").unlink()
    assert build_dataset(val(dataroot_gt=str(folder), mod_crop=False))[0]["gt"].shape == (3, 48, 52)


def test_lmdb_gives_what_the_disk_gives(folder: Path) -> None:
    keys = ["b.x", "sub/a"]
    lmdb = folder.parent / "images.lmdb"
    make_lmdb_from_imgs(str(folder), str(lmdb), [f"{key}.png" for key in keys], keys)
    in_lmdb = {"dataroot_gt": str(lmdb), "io_backend": {"type": "lmdb"}}
    for options in (train(gt_size=40), device(gt_size=40), val()):
        on_disk = build_dataset({**options, "dataroot_gt": str(folder)})
        stored = build_dataset({**options, **in_lmdb})
        assert len(stored) == len(on_disk)
        for index in range(len(stored)):
            assert same({**stored[index], "gt_path": ""}, {**on_disk[index], "gt_path": ""})
    assert stored[0]["gt_path"] == f"{lmdb}/b.x"


def test_options_are_left_alone_and_kept() -> None:
    for options in (train(), device(), val()):
        before = copy.deepcopy(options)
        dataset = build_dataset(options)
        _ = dataset[0]
        assert options == before
        assert dataset.opt == before


def test_calibration_patches(folder: Path) -> None:
    options = device(dataroot_gt=str(folder), gt_size=32, calibration_images=5)
    patches = calibration_patches(options)
    assert_image(patches, 5, 3, 32, 32)
    assert torch.equal(patches, calibration_patches(options))
    assert not torch.equal(patches, calibration_patches({**options, "seed": 1}))
    assert len({patch.numpy().tobytes() for patch in patches}) == 5
    with pytest.raises(OptionError, match=r"phase: 'val', expected 'train'"):
        calibration_patches(val())


def test_calibration_spreads_over_the_images() -> None:
    patches = calibration_patches(device(calibration_images=3, gt_size=64))
    sources = find_images(["demo"], "disk", "train", "")
    for patch, number in zip(patches, (0, 2, 4), strict=True):
        image = read_image(sources[number]).astype(np.float32) / 255
        windows = np.lib.stride_tricks.sliding_window_view(image[..., 0], (1, 64))[:, :, 0]
        assert (windows == patch[0, 0].numpy()).all(-1).any()


def test_adaptive_samplers_are_calibrated_on_the_training_images() -> None:
    block = {"type": "ClassicalDegradation", "blur_iso": {"sigma": [0.2, 4.0]}, "sampler": "ads"}
    options = train(degradation=block, calibration_images=4)
    item = build_dataset(options)[0]
    assert same(item, build_dataset(options)[0])
    uniform = build_dataset(train(degradation={**block, "sampler": "uniform"}))[0]
    assert torch.equal(uniform["gt"], item["gt"])
    assert not torch.equal(uniform["lq"], item["lq"])
    with pytest.raises(OptionError, match=r"degradation: a sampler needs calibration .* phase val"):
        build_dataset(val(protocol=None, degradation=block))


BAD_OPTIONS = {
    "no name": (train(name=None), r"^name: the key is missing"),
    "phase": (train(phase="trian"), r"^phase: unknown name 'trian', .*did you mean 'train'"),
    "typo": (train(gt_sizes=64), r"^gt_sizes: unknown key, .*did you mean 'gt_size'"),
    "typo in a trainer's key": (train(num_worker_per_gp=1), r"did you mean 'num_worker_per_gpu'"),
    "no gt_size": (train(gt_size=None), r"^gt_size: the key is missing"),
    "no dataroot": (val(dataroot_gt=None), r"^dataroot_gt: the key is missing"),
    "gt_size": (train(gt_size=66), r"^gt_size: 66, expected a multiple of scale 4"),
    "gt_size text": (train(gt_size="64"), r"^gt_size: '64', expected a whole number"),
    "scale": (train(scale=0), r"^scale: 0, expected"),
    "degrade_on": (train(degrade_on="gpu"), r"^degrade_on: unknown name 'gpu'"),
    "views": (train(num_views=2), r"^num_views: 2 has no use with degrade_on: worker"),
    "zero views": (device(num_views=0), r"^num_views: 0, expected"),
    "device degradation": (device(degradation=NOISY), r"^degradation: .* no use with degrade_on: device"),
    "no degradation": (train(degradation=None), r"^degradation: None, expected a block"),
    "other scale": (train(degradation={**NOISY, "scale": 2}), r"^degradation\.scale: 2, expected scale, which is 4"),
    "unknown degradation": (train(degradation={"type": "Classical"}), r"degradation\.type: unknown name 'Classical'"),
    "flip": (train(use_hflip="yes"), r"^use_hflip: 'yes', expected true or false"),
    "backend": (train(io_backend={"type": "zip"}), r"^io_backend: .*expected \{type: disk\}"),
    "backend key": (train(io_backend={"type": "disk", "path": 1}), r"^io_backend: .*expected \{type: disk\}"),
    "roots": (train(dataroot_gt=[]), r"^dataroot_gt: \[\], expected a folder"),
    "patches in val": (val(gt_size=64), r"^gt_size: has no use in phase val"),
    "protocol in train": (train(protocol="six"), r"^protocol: has no use in phase train"),
    "both": (val(degradation=NOISY), r"^protocol: .*one of the two"),
    "neither": (val(protocol=None), r"^protocol: .*one of the two"),
    "unknown protocol": (val(protocol="sixth"), r"protocol: unknown name 'sixth', .*did you mean 'six'"),
    "unknown setting": (val(settings=["isu"]), r"^settings: unknown name 'isu', .*did you mean 'iso'"),
    "settings": (val(settings="iso"), r"^settings: 'iso', expected a list"),
    "no settings": (val(settings=[]), r"^settings: \[\], expected a list"),
    "settings of a block": (val(protocol=None, degradation=NOISY, settings=["iso"]), r"^settings: .*no use"),
    "mod_crop": (val(mod_crop=1), r"^mod_crop: 1, expected true or false"),
    "missing folder": (train(dataroot_gt="absent"), r"^dataroot_gt: 'absent' is missing"),
    "calibration": (train(calibration_images=0), r"^calibration_images: 0, expected"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str) -> None:
    options, message = BAD_OPTIONS[case]
    with pytest.raises(OptionError, match=message) as caught:
        build_dataset(options)
    assert "\n" not in str(caught.value)


def test_small_images_are_named(folder: Path) -> None:
    with pytest.raises(BadImageError, match=r"sub/a\.png: is 51x47, expected both sides at least gt_size 48"):
        build_dataset(device(dataroot_gt=str(folder), gt_size=48))
    cv2.imwrite(str(folder / "tiny.png"), data.coffee()[:3, :52])
    with pytest.raises(BadImageError, match=r"tiny\.png: is 52x3, expected both sides at least scale 4"):
        build_dataset(val(dataroot_gt=str(folder)))


def test_deep_and_grey_files_in_items(folder: Path) -> None:
    deep = data.coffee()[:48, :48].astype(np.uint16) * 256 + 77
    cv2.imwrite(str(folder / "deep.png"), deep)
    cv2.imwrite(str(folder / "grey.png"), deep[..., 0])
    dataset = build_dataset(val(dataroot_gt=str(folder), protocol="bicubic"))
    items = {Path(item["gt_path"]).name: item["gt"] for item in (dataset[index] for index in range(len(dataset)))}
    expected = torch.from_numpy(deep[..., ::-1].transpose(2, 0, 1).astype(np.float64) / 65535)
    assert float((items["deep.png"] - expected).abs().max()) < 1e-7
    assert torch.equal(items["grey.png"][0], items["grey.png"][2])
    assert float((items["grey.png"] - expected[2]).abs().max()) < 1e-7
