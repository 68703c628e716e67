"""Losses of a run: which blocks are some, what they get, what they are called, and what cannot be one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from bsr_plugins.errors import OptionError
from bsr_plugins.seeding import generator_at

if TYPE_CHECKING:
    from tests.conftest import Options

Make = Callable[..., Any]
Step = Callable[[Any, Tensor, int], None]
ITERATION = 3


class Recording(nn.Module):
    """A loss that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.got: dict[str, Any] = {}


class ManyThings(Recording):
    def forward(self, sr: Tensor, gt: Tensor, lq: Tensor, representation: Tensor, generator: torch.Generator) -> Any:
        self.got = {
            "sr": sr,
            "gt": gt,
            "lq": lq,
            "representation": representation,
            "draw": torch.rand(3, generator=generator),
        }
        return (sr - gt).square().mean(), {"rmse": (sr - gt).detach().square().mean().sqrt(), "images": len(sr)}


class OfFeatures(Recording):
    def forward(self, features: Tensor, unknown: float = 2.0, *others: Any, **more: Any) -> Tensor:
        self.got = {"features": features, "unknown": unknown, "others": others, "more": more}
        return features.square().mean()


class Pair(nn.Module):
    def __init__(self, first: bool = True, second: bool = True) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, gt: Tensor) -> tuple[Tensor | None, Tensor | None]:
        distance = (x - gt).abs().mean()
        return distance if self.first else None, 2 * distance if self.second else None


class WantsDepth(nn.Module):
    def forward(self, pred: Tensor, depth: Tensor) -> Tensor:
        return (pred - depth).mean()


class Fails(nn.Module):
    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return pred @ target.flatten(1)


class Picky(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        raise ValueError(f"no gain\nof {gain}")


class Drawing(nn.Module):
    """A loss that draws from the global state, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return ((pred - target) * torch.rand_like(pred)).mean()


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    for loss in (ManyThings, OfFeatures, Pair, WantsDepth, Fails, Picky, Drawing):
        monkeypatch.setitem(LOSS_REGISTRY._obj_map, loss.__name__, loss)


@pytest.fixture
def opt(redsr_options: Options, as_read: Callable[[Options], Options]) -> Options:
    """The options of a plain `BlindSRModel` with a network that gives representations."""
    del redsr_options["network_degrader"]
    del redsr_options["train"]["redegradation_opt"], redsr_options["train"]["representation_opt"]
    redsr_options["train"]["pixel_opt"] = {"type": "L1Loss"}
    redsr_options["model_type"] = "BlindSRModel"
    return as_read(redsr_options)


def test_a_loss_gets_what_its_parameters_are_called(opt: Options, make_model: Make, step: Step, pairs: Tensor) -> None:
    opt["train"] |= {"my_opt": {"type": "ManyThings"}, "flat_opt": {"type": "OfFeatures"}, "no_opt": None}
    model = make_model(opt)
    before = [parameter.clone() for parameter in model.net_g.parameters()]
    with torch.no_grad():
        model.current_iter = ITERATION
        _, lq, _ = model.degrade(pairs)
        expected, representation = model.net_g(lq.flatten(0, 1), return_representation=True)
    step(model, pairs, ITERATION)
    got = model.losses["my_opt"].module.got
    assert torch.equal(got["sr"], expected)
    assert torch.equal(got["gt"], pairs.flatten(0, 1))
    assert torch.equal(got["lq"], lq.flatten(0, 1))
    assert torch.equal(got["representation"], representation)
    assert torch.equal(got["draw"], torch.rand(3, generator=generator_at(10, "my_opt", ITERATION)))
    flat = model.losses["flat_opt"].module.got
    assert len(flat["features"]) == 8, "no second degradation"
    assert (flat["unknown"], flat["others"], flat["more"]) == (2.0, (), {})
    assert model.pair_params == {}
    log = model.get_current_log()
    assert set(log) == {"l_pix", "l_my", "l_flat", "my_rmse", "my_images", "representation_mean", "representation_std"}
    assert log["my_images"] == 8
    assert log["l_my"] == pytest.approx(log["my_rmse"] ** 2, rel=1e-5)
    assert any(not torch.equal(now, then) for now, then in zip(model.net_g.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("key", "arguments", "names"),
    [
        ("perceptual_opt", {}, {"l_percep": 1, "l_style": 2}),
        ("perceptual_opt", {"second": False}, {"l_percep": 1}),
        ("perceptual_opt", {"first": False}, {"l_style": 2}),
        ("vgg_opt", {}, {"l_vgg": 1, "l_vgg_style": 2}),
    ],
)
def test_a_pair_is_two_losses(
    opt: Options,
    make_model: Make,
    step: Step,
    pairs: Tensor,
    key: str,
    arguments: dict[str, Any],
    names: dict[str, int],
) -> None:
    opt["train"][key] = {"type": "Pair", **arguments}
    model = make_model(opt)
    step(model, pairs, ITERATION)
    log = model.get_current_log()
    assert set(log) == {"l_pix", *names}
    for name, factor in names.items():
        assert log[name] == pytest.approx(factor * log["l_pix"], rel=1e-6)


def test_any_loss_of_images_will_do(opt: Options, make_model: Make, step: Step, pairs: Tensor) -> None:
    del opt["train"]["pixel_opt"]
    opt["train"] |= {"mine_opt": {"type": "MSELoss"}, "tv_opt": {"type": "WeightedTVLoss", "loss_weight": 0.1}}
    model = make_model(opt)
    step(model, pairs, 1)
    assert set(model.get_current_log()) == {"l_mine", "l_tv"}
    opt["train"] = {key: value for key, value in opt["train"].items() if not key.endswith("_opt")}
    with pytest.raises(
        OptionError, match=r"^train\.pixel_opt: the block is missing, BlindSRModel needs it, or another loss of sr"
    ):
        make_model(opt)


def test_a_trial_leaves_no_trace(opt: Options, make_model: Make) -> None:
    opt["train"]["pixel_opt"] = {"type": "Drawing"}
    model = make_model(opt)
    state = torch.get_rng_state()
    assert model.losses["pixel_opt"].module.calls == 0
    opt["train"]["pixel_opt"] = {"type": "L1Loss"}
    make_model(opt)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("key", "block", "message"),
    [
        (
            "my_opt",
            {"type": "WantsDepth"},
            r"train\.my_opt\.type: 'WantsDepth' wants 'depth', expected among what BlindSRModel's step offers: "
            r"features, generator, gt, lq, paired_features, pred, representation, sr, target, views, x$",
        ),
        (
            "pixel_opt",
            {"type": "KLDivergenceLoss"},
            r"train\.pixel_opt\.type: 'KLDivergenceLoss', expected a loss of sr, ",
        ),
        ("gan_opt", {"type": "GANLoss", "gan_type": "lsgan"}, r"train\.gan_opt\.type: 'GANLoss' wants 'input', "),
        ("my_opt", {"type": "ModulatedL1Loss"}, r"train\.my_opt\.type: 'ModulatedL1Loss' wants 'distance', "),
        ("pixel_opt", {"type": "L1Los"}, r"train\.pixel_opt\.type: unknown name 'L1Los', .*did you mean 'L1Loss'"),
        ("pixel_opt", {"loss_weight": 1}, r"train\.pixel_opt: the key 'type' is missing"),
        ("my_opt", 3, r"train\.my_opt: expected a block with the key 'type', got 3"),
        ("my_opt", {"type": "L1Loss", "weight": 1}, r"train\.my_opt\.weight: unknown key"),
        (
            "pixel_opt",
            {"type": "L1Loss", "reduction": "none"},
            r"train\.pixel_opt: \{.*'none'\}, expected a loss that is one number, as with reduction: mean$",
        ),
        ("my_opt", {"type": "Pair", "first": False, "second": False}, r"train\.my_opt: .* expected a loss that is one"),
        (
            "my_opt",
            {"type": "Fails"},
            r"train\.my_opt\.type: 'Fails', expected a loss of images of 48x48 pixels \(Runt",
        ),
        (
            "my_opt",
            {"type": "Picky", "gain": 2},
            r"train\.my_opt: Picky cannot be built from this block \(ValueError: no gain of 2\)$",
        ),
        (
            "representation_opt",
            {"type": "EnergyDistanceLoss", "num_samples": 0},
            r"train\.representation_opt\.num_samples: 0, expected a whole number",
        ),
        ("pix_opt", {"type": "L1Loss"}, r"train\.pix_opt: is logged as l_pix, like train\.pixel_opt, expected another"),
    ],
)
def test_blocks_that_are_no_losses_of_the_step(
    opt: Options, make_model: Make, key: str, block: Any, message: str
) -> None:
    opt["train"][key] = block
    with pytest.raises(OptionError, match=f"^{message}") as caught:
        make_model(opt)
    assert len(caught.value.lines) == 1


def test_all_faults_are_told_together(opt: Options, make_model: Make) -> None:
    opt["train"] |= {
        "pixel_opt": {"type": "L1Loss", "reduction": "none"},
        "representation_opt": {"type": "KLDivergenceLoss"},
        "my_opt": {"type": "WantsDepth"},
        "other_opt": {"type": "MSELos"},
        "tap_layer": "conv_last",
    }
    opt["datasets"]["train"] |= {"batch_size_per_gpu": 1, "num_views": 1}
    with pytest.raises(OptionError) as caught:
        make_model(opt)
    keys = [line.partition(":")[0] for line in caught.value.lines]
    assert keys == [
        "train.my_opt.type",
        "train.other_opt.type",
        "datasets.train.batch_size_per_gpu",
        "train.pixel_opt",
        "train.tap_layer",
    ]


def test_redegradation_compares_lr_patches(redsr_options: Options, as_read: Any, make_model: Make) -> None:
    opt = as_read(redsr_options)
    opt["train"]["redegradation_opt"] = {"type": "Pair"}
    model = make_model(opt)
    assert model.losses["redegradation_opt"].wants == {"x": "reproduced", "gt": "other_lq"}
    for kind in ("ModulatedL1Loss", "OfFeatures"):
        opt["train"]["redegradation_opt"] = {"type": kind}
        with pytest.raises(
            OptionError, match=rf"^train\.redegradation_opt\.type: '{kind}' wants '(distance|features)'"
        ):
            make_model(opt)
