"""Whole images for networks that work in windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.models.swinir_model import SwinIRModel
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.models.window_padding import pad_by_reflection, super_resolve, window_sides

if TYPE_CHECKING:
    from tests.conftest import Options

SWINIR: dict[str, Any] = {
    "type": "SwinIR",
    "upscale": 2,
    "img_size": 8,
    "window_size": 4,
    "depths": [2],
    "embed_dim": 4,
    "num_heads": [2],
    "mlp_ratio": 2,
    "upsampler": "pixelshuffledirect",
}


class Windowed(nn.Module):
    """Enlarges images whose sides it insists on, and counts what it sees."""

    def __init__(self, window: Any) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.window_size = window
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return F.interpolate(x, scale_factor=3)


def photograph(height: int, width: int) -> Tensor:
    pixels = np.ascontiguousarray(data.astronaut()[50 : 50 + height, 200 : 200 + width].transpose(2, 0, 1))
    return torch.from_numpy(pixels).float()[None] / 255


@pytest.fixture(scope="module")
def swinir() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = build_network(dict(SWINIR)).eval()
    return network


@given(side=st.integers(2, 9), added=st.integers(0, 8))
@settings(max_examples=30, deadline=None)
def test_padding_is_that_of_torch_where_torch_can(side: int, added: int) -> None:
    x = torch.arange(2.0 * 3 * side * (side + 1)).view(2, 3, side, side + 1)
    added = min(added, side - 1)
    expected = F.pad(x, (0, added, 0, added), "reflect")
    assert torch.equal(pad_by_reflection(x, side + added, side + 1 + added), expected)


def test_padding_goes_to_and_fro_over_small_images() -> None:
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert pad_by_reflection(row, 1, 9).flatten().tolist() == [1, 2, 3, 2, 1, 2, 3, 2, 1]
    assert torch.equal(pad_by_reflection(row, 3, 3), row.expand(1, 1, 3, 3))
    assert pad_by_reflection(row[..., :2], 1, 5).flatten().tolist() == [1, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("window", "sides"),
    [(8, (8, 8)), ((4, 6), (4, 6)), ([4, 6], (4, 6)), (None, (1, 1)), ("8", (1, 1)), ((2, 2, 2), (1, 1)), (0, (1, 1))],
)
def test_sides_are_those_of_the_windows(window: Any, sides: tuple[int, int]) -> None:
    assert window_sides(Windowed(window)) == sides


def test_sides_fit_all_windows(swinir: nn.Module) -> None:
    assert window_sides(nn.Sequential(Windowed(4), Windowed((6, 2)))) == (12, 4)
    assert window_sides(swinir) == (4, 4)
    assert window_sides(nn.Conv2d(3, 3, 3)) == (1, 1)


def test_images_that_fit_are_left_alone() -> None:
    network, x = Windowed(4), photograph(8, 12)
    assert torch.equal(super_resolve(network, x), F.interpolate(x, scale_factor=3))
    assert network.shapes == [(1, 3, 8, 12)]


@pytest.mark.parametrize(("height", "width"), [(5, 8), (7, 9), (1, 1), (2, 3)])
def test_images_that_do_not_are_padded_and_cropped(height: int, width: int) -> None:
    network, x = Windowed(4), photograph(height, width)
    assert torch.equal(super_resolve(network, x), F.interpolate(x, scale_factor=3))
    assert network.shapes == [(1, 3, -(-height // 4) * 4, -(-width // 4) * 4)]


@pytest.mark.parametrize("sides", [(8, 8), (9, 14), (5, 7)])
def test_swinir_is_tested_as_basicsr_does(swinir: nn.Module, sides: tuple[int, int]) -> None:
    stock = object.__new__(SwinIRModel)
    stock.opt = {"network_g": {"window_size": 4}, "scale": 2}
    stock.lq, stock.net_g_ema = photograph(*sides), swinir
    stock.test()
    with torch.no_grad():
        found = super_resolve(swinir, stock.lq)
    assert found.shape == (1, 3, 2 * sides[0], 2 * sides[1])
    assert torch.equal(found, stock.output)


@pytest.mark.parametrize("sides", [(9, 14), (1, 2), (3, 3)])
def test_models_take_images_of_any_size(
    blind_opt: Options, make_model: Callable[..., Any], sides: tuple[int, int]
) -> None:
    blind_opt["network_g"] = dict(SWINIR)
    blind_opt["scale"] = 2
    model = make_model(blind_opt)
    model.feed_data({"lq": photograph(*sides)})
    model.test()
    assert model.output.shape == (1, 3, 2 * sides[0], 2 * sides[1])
