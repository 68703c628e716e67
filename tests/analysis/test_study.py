"""Photographs for studies: how they are divided, and that a seed decides the patches."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from bsr_plugins.analysis.study import at_least, patch_batches, split_photographs, usable_device
from bsr_plugins.data.image_files import DEMO
from bsr_plugins.errors import BadImageError, OptionError


def write(folder: Path, count: int, side: int = 40) -> None:
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:02}.png"), np.full((side, side + 2, 3), number, np.uint8))


def test_every_fifth_photograph_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, 12)
    train, held_out = split_photographs(str(tmp_path), 40)
    assert [image.name for image in held_out] == ["00", "05", "10"]
    assert sorted(image.name for image in [*train, *held_out]) == [f"{number:02}" for number in range(12)]


def test_the_demo_keeps_its_own_split() -> None:
    train, held_out = split_photographs(DEMO, 128)
    assert len(train) >= 2
    assert len(held_out) >= 2
    assert not {image.path for image in train} & {image.path for image in held_out}


def test_small_photographs_are_named(tmp_path: Path) -> None:
    write(tmp_path, 12)
    with pytest.raises(BadImageError, match=r"png: is 42x40, expected both sides at least 41"):
        split_photographs(str(tmp_path), 41)


@pytest.mark.parametrize("count", [1, 5])
def test_too_few_photographs_are_an_error(tmp_path: Path, count: int) -> None:
    write(tmp_path, count)
    with pytest.raises(OptionError, match=rf"holds {count} images, expected at least 6"):
        split_photographs(str(tmp_path), 40)


def test_batches_are_the_seeds_alone_and_each_is_another() -> None:
    images = [data.astronaut(), data.coffee()]
    first, second = (list(patch_batches(images, 3, 4, 32, 2, seed=1)) for _ in range(2))
    assert [batch.shape for batch in first] == [(4, 2, 3, 32, 32)] * 3
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], next(patch_batches(images, 3, 4, 32, 2, seed=2)))
    assert not torch.equal(first[0][:, 0], first[0][:, 1])


def test_patches_are_pieces_of_the_photographs() -> None:
    image = data.astronaut()[100:150, 200:260]
    (batch,) = patch_batches([image], 1, 1, 16, 1, seed=0)
    patch = (batch[0, 0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
    positions = [np.rot90(other, turns) for other in (patch, patch[:, ::-1]) for turns in range(4)]
    windows = np.lib.stride_tricks.sliding_window_view(image, (16, 16, 3))[:, :, 0]
    assert any((windows == position).all(axis=(2, 3, 4)).any() for position in positions)


def test_arguments_are_read_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert at_least(2)("12") == 12
    for text in ("1", "-3", "2.5", "two", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=rf"^{text}, expected a whole number at least 2$"):
            at_least(2)(text)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert usable_device("cpu") == "cpu"
    with pytest.raises(argparse.ArgumentTypeError, match="no CUDA device"):
        usable_device("cuda")
