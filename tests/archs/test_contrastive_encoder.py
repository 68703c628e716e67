"""ContrastiveEncoder: DASR's layout, its arithmetic against a plain float64 version, gradients, sizes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from skimage import data
from torch import Tensor
from torch.nn import functional as F

from bsr_plugins.archs import ContrastiveEncoder
from bsr_plugins.errors import OptionError

WIDTHS = (64, 64, 128, 128, 256, 256)
STRIDES = (1, 1, 2, 1, 2, 1)
DASR_LAYOUT = Path(__file__).resolve().parents[2] / "../shared/reference/dasr_checkpoint_layout.json"


def seeded_encoder(**options: float) -> ContrastiveEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ContrastiveEncoder(**options)  # type: ignore[arg-type]


def photograph(size: int) -> Tensor:
    """A corner of scikit-image's astronaut, (1, 3, size, size), RGB in [0, 1]."""
    pixels = torch.from_numpy(data.astronaut()[:size, :size].copy())
    return pixels.permute(2, 0, 1)[None].float() / 255


def plain_encoder(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The encoder in evaluation mode, written from its description."""
    for layer, stride in enumerate(STRIDES):
        conv, norm = f"features.{3 * layer}.", f"features.{3 * layer + 1}."
        x = F.conv2d(x, state[conv + "weight"], state[conv + "bias"], stride=stride, padding=1)
        mean, var = state[norm + "running_mean"], state[norm + "running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = x * state[norm + "weight"][:, None, None] + state[norm + "bias"][:, None, None]
        x = torch.where(x < 0, 0.1 * x, x)
    return x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])


def test_shapes_of_all_tensors() -> None:
    shapes = {name: tuple(value.shape) for name, value in ContrastiveEncoder().state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {}
    before = 3
    for layer, width in enumerate(WIDTHS):
        expected[f"features.{3 * layer}.weight"] = (width, before, 3, 3)
        expected[f"features.{3 * layer}.bias"] = (width,)
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[f"features.{3 * layer + 1}.{name}"] = (width,)
        expected[f"features.{3 * layer + 1}.num_batches_tracked"] = ()
        before = width
    assert shapes == expected


@pytest.mark.skipif(not DASR_LAYOUT.exists(), reason="the layout of DASR's released checkpoint is not at hand")
def test_shapes_are_those_of_the_released_dasr() -> None:
    released = json.loads(DASR_LAYOUT.read_text())["state_dict"]
    prefix = re.compile(r"^E\.encoder_q\.E\.")
    theirs = {prefix.sub("features.", name): shape for name, shape in released.items() if prefix.match(name)}
    ours = {name: list(value.shape) for name, value in ContrastiveEncoder().state_dict().items()}
    assert ours == theirs


def test_parameter_count() -> None:
    before, count = 3, 0
    for width in WIDTHS:
        count += 9 * before * width + width  # convolution
        count += 2 * width  # batch normalisation
        before = width
    assert count == 1_147_200
    assert sum(p.numel() for p in ContrastiveEncoder().parameters()) == count


def test_agrees_with_the_plain_version_in_float64() -> None:
    encoder = seeded_encoder(num_feat=4).double()
    encoder(photograph(40).double())  # moves the running statistics away from 0 and 1
    encoder.eval()
    lq = photograph(29).double()
    assert torch.allclose(encoder(lq), plain_encoder(encoder.state_dict(), lq), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 1, 1), (2, 37, 53), (3, 5, 1)])
def test_any_size(batch: int, height: int, width: int) -> None:
    encoder = seeded_encoder(num_in_ch=1, num_feat=2).eval()
    representation = encoder(torch.rand(batch, 1, height, width))
    assert representation.shape == (batch, 8)
    assert encoder.representation_dim == 8
    assert representation.isfinite().all()


def test_the_range_of_the_image_hardly_matters_in_training() -> None:
    encoder = seeded_encoder(num_feat=8)
    torch.nn.init.zeros_(encoder.get_parameter("features.0.bias"))
    lq = photograph(64).double()
    encoder.double()
    assert torch.allclose(encoder(lq), encoder(255 * lq), atol=2e-2)


@pytest.mark.parametrize("training", [True, False])
def test_img_range_is_a_factor_on_the_image(training: bool) -> None:
    plain, scaled = (seeded_encoder(num_feat=4, **options).double() for options in ({}, {"img_range": 255.0}))
    assert (plain.img_range, scaled.img_range) == (1, 255)
    assert plain.state_dict().keys() == scaled.state_dict().keys(), "no buffer of its own"
    lq = photograph(32).double()
    for encoder in (plain, scaled):
        encoder(lq)
        encoder.train(training)
    scaled.load_state_dict(plain.state_dict())
    assert torch.equal(scaled(lq), plain(255 * lq))
    if not training:
        assert not torch.allclose(scaled(lq), plain(lq), rtol=0.1)


@pytest.mark.parametrize("value", [0, -1.0, "255", True, None])
def test_bad_ranges_are_named(value: object) -> None:
    with pytest.raises(OptionError, match=rf"^img_range: {value!r}, expected a number"):
        ContrastiveEncoder(img_range=value)  # type: ignore[arg-type]


def test_gradients_reach_every_parameter() -> None:
    encoder = seeded_encoder(num_feat=2)
    encoder(torch.rand(3, 3, 16, 16)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        cancels = name.endswith("bias") and int(name.split(".")[1]) % 3 == 0  # in the batch normalisation behind it
        assert bool(parameter.grad.any()) != cancels, name


def test_biases_learn_where_batch_normalisation_is_fixed() -> None:
    encoder = seeded_encoder(num_feat=2).double().eval()
    lq, bias = torch.rand(3, 3, 16, 16, dtype=torch.float64), encoder.get_parameter("features.0.bias")
    encoder(lq).square().sum().backward()
    assert bias.grad is not None
    change, step = 0.0, 1e-7
    with torch.no_grad():
        for sign in (1, -1):
            bias[0] += sign * step
            change += sign * float(encoder(lq).square().sum()) / (2 * step)
            bias[0] -= sign * step
    assert float(bias.grad[0]) == pytest.approx(change, rel=1e-4)


@pytest.mark.parametrize("option", ["num_in_ch", "num_feat"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True])
def test_bad_widths_are_named(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=rf"{option}: {value}"):
        ContrastiveEncoder(**{option: value})  # type: ignore[arg-type]
