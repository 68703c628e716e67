"""Crops and flips, and training items under a degradation that changes what is to be reproduced."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from basicsr.data import build_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from bsr_plugins.data.decode import Pixels
from bsr_plugins.data.patches import random_crop, random_flip
from bsr_plugins.degradations import SecondOrderDegradation
from bsr_plugins.seeding import generator_at
from tests.data.test_paired_degradation_dataset import train


def numbered(height: int, width: int) -> Pixels:
    """Make pixels that all differ, so that a patch tells where it comes from."""
    return np.arange(height * width * 3, dtype=np.uint16).reshape(height, width, 3)


@settings(deadline=None, max_examples=25)
@given(st.integers(4, 9), st.integers(4, 9), st.integers(1, 4), st.integers(0, 2**32))
def test_crop_lies_inside(height: int, width: int, size: int, seed: int) -> None:
    pixels = numbered(height, width)
    patch = random_crop(pixels, size, torch.Generator().manual_seed(seed))
    top, left = divmod(int(patch[0, 0, 0]) // 3, width)
    np.testing.assert_array_equal(patch, pixels[top : top + size, left : left + size])
    assert patch.shape == (size, size, 3)


def test_crop_reaches_every_place() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = numbered(4, 5)
    corners = {int(random_crop(pixels, 3, generator)[0, 0, 0]) // 3 for _ in range(200)}
    assert corners == {0, 1, 2, 5, 6, 7}


def test_flips_make_what_they_may() -> None:
    pixels = numbered(3, 3)

    def positions(hflip: bool, rot: bool) -> set[bytes]:
        generator = torch.Generator().manual_seed(0)
        return {random_flip(pixels, hflip, rot, generator).tobytes() for _ in range(200)}

    assert positions(False, False) == {pixels.tobytes()}
    assert positions(True, False) == {pixels.tobytes(), pixels[:, ::-1].tobytes()}
    turned = {np.rot90(p, k).tobytes() for p in (pixels, pixels[:, ::-1]) for k in range(4)}
    assert positions(True, True) == turned
    vertical = {pixels.tobytes(), pixels[::-1].tobytes()}
    assert positions(False, True) == vertical | {
        np.frombuffer(p, np.uint16).reshape(3, 3, 3).swapaxes(0, 1).tobytes() for p in vertical
    }


def test_flips_draw_the_same_numbers_in_any_case() -> None:
    states = []
    for hflip in (False, True):
        generator = torch.Generator().manual_seed(0)
        random_flip(numbered(3, 3), hflip, not hflip, generator)
        states.append(int(torch.randint(1 << 30, (), generator=generator)))
    assert states[0] == states[1]


def item(usm: bool) -> dict[str, Any]:
    options = train(degradation={"type": "SecondOrderDegradation", "usm": usm}, gt_size=96, seed=3)
    made: dict[str, Any] = build_dataset(options)[0]
    return made


def test_a_worker_sharpens_what_is_reproduced_and_degraded() -> None:
    plain, sharpened = item(usm=False), item(usm=True)
    degradation = SecondOrderDegradation(4)
    expected = degradation.target(plain["gt"][None])[0]
    assert (sharpened["gt"] - expected).abs().max() < 1e-6
    assert (expected - plain["gt"]).abs().max() > 0.01
    params = degradation.sample(1, generator_at(3, "degradation", 0, 0))
    assert torch.equal(sharpened["lq"], degradation(sharpened["gt"][None], params)[0])
    assert not torch.equal(sharpened["lq"], plain["lq"])
