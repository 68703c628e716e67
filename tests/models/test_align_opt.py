"""`train.align_opt`, `train.dropout` and `train.tap_layer` in the other models, and what of them cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bsr_plugins.degradations import Params
from bsr_plugins.errors import OptionError
from bsr_plugins.losses import AlignmentLoss
from bsr_plugins.seeding import generator_at
from tests.models.stepping import prepare

if TYPE_CHECKING:
    from tests.conftest import Options

Make = Callable[..., Any]
Step = Callable[[Any, Tensor, int], None]
ALIGN = {"type": "AlignmentLoss", "loss_weight": 1e3}
ITERATION = 3  # after the encoder phases
FIGURES = {"align_linear_mean", "align_linear_covariance", "align_nonlinear_mean", "align_nonlinear_covariance"}


@pytest.fixture
def options(request: pytest.FixtureRequest, as_read: Callable[[Options], Options]) -> Callable[[str], Options]:
    """The options of a tiny run of a method, by its name."""

    def read(name: str) -> Options:
        if name == "aacl":
            made: Options = request.getfixturevalue("opt")
            return made
        found = as_read(request.getfixturevalue("dasr_options" if name == "dasr" else "redsr_options"))
        if name == "oracle":
            found["network_g"]["encoder"] = {"type": "OracleEncoder", "num_feat": 8, "representation_dim": 6}
        if name == "plain":
            found["model_type"] = "BlindSRModel"
            for holder, key in ((found, "network_degrader"), (found["train"], "redegradation_opt")):
                holder.pop(key, None)
            found["train"].pop("representation_opt", None)
            found["train"]["pixel_opt"] = {"type": "L1Loss"}
        return found

    return read


@pytest.fixture
def batch(views: Tensor, pairs: Tensor) -> Callable[[str], Tensor]:
    """Views of four photographs, as many as a method wants."""
    return lambda name: views if name == "aacl" else pairs


class Shuffle(nn.Module):
    """A ×2 network without a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * nn.functional.interpolate(x, scale_factor=2)


METHODS = ("aacl", "dasr", "redsr", "oracle", "plain")


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_losses_are_what_they_were(
    options: Callable[[str], Options], make_model: Make, batch: Callable[[str], Tensor], name: str
) -> None:
    logs = []
    for block in (None, ALIGN):
        opt = options(name)
        opt["train"]["align_opt"] = block
        model = make_model(opt)
        prepare(model, batch(name), ITERATION)
        losses = model.compute_losses()
        logs.append({key: float(value.detach()) for key, value in (losses | model.figures).items()})
        count = len(model.lq)
        assert len(model.output) == count
    assert logs[1].keys() - logs[0].keys() == FIGURES | {"l_align"}
    # The contrastive encoders normalise over the batch, which is another here.
    shared = {"l_pix"} if name in ("aacl", "dasr") else logs[0].keys()
    assert {key: logs[1][key] for key in shared} == pytest.approx({key: logs[0][key] for key in shared}, rel=1e-4)
    assert all(logs[1][figure] > 0 for figure in FIGURES)
    assert logs[1]["l_align"] == pytest.approx(sum(logs[1][figure] for figure in FIGURES))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_aligned_are_two_degradations_of_the_images_that_are_restored(
    options: Callable[[str], Options], make_model: Make, batch: Callable[[str], Tensor], name: str
) -> None:
    opt = options(name)
    opt["train"] |= {"align_opt": ALIGN, "dropout": {"p": 0.5}}
    model = make_model(opt)
    prepare(model, batch(name), ITERATION)
    losses = model.compute_losses()
    degradation = model.degradation
    params = degradation.sample(len(model.gt), generator_at(10, "degradation pair", ITERATION))
    second = degradation(model.gt, params)
    assert float((second - model.lq).abs().mean()) > 0.003
    last = model.net_g.get_submodule(model.tap.layer)
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    condition = {}
    if name == "oracle":
        condition = {"kernel": torch.cat([model.condition["kernel"], degradation.kernels(params)])}
    model.net_g(torch.cat([model.lq, second]), **condition)
    expected, _ = AlignmentLoss(1e3)(seen[0], generator_at(10, "align_opt", ITERATION))
    assert float(losses["l_align"].detach()) == pytest.approx(float(expected.detach()), rel=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_steps(
    options: Callable[[str], Options], make_model: Make, batch: Callable[[str], Tensor], step: Step, name: str
) -> None:
    opt = options(name)
    opt["train"] |= {"align_opt": ALIGN, "dropout": {"p": 0.5}}
    model = make_model(opt)
    for iteration in (1, 2, 3, 4):
        step(model, batch(name), iteration)
        assert ("l_align" in model.get_current_log()) == (iteration > 2 or name not in ("aacl", "dasr")), iteration


def test_targets_are_what_is_degraded_and_reproduced(
    options: Callable[[str], Options], make_model: Make, pairs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    opt = options("plain")
    opt["train"]["align_opt"] = ALIGN
    model = make_model(opt)
    monkeypatch.setattr(model.degradation, "target", lambda gt: gt / 2)
    degraded: list[Tensor] = []
    stock = type(model.degradation).__call__

    def degrade(self: Any, gt: Tensor, params: Params) -> Tensor:
        degraded.append(gt)
        result: Tensor = stock(self, gt, params)
        return result

    monkeypatch.setattr(type(model.degradation), "__call__", degrade)
    prepare(model, pairs, ITERATION)
    model.compute_losses()
    assert torch.equal(model.gt, pairs.flatten(0, 1) / 2)
    assert len(degraded) == 2
    assert torch.equal(degraded[0], pairs / 2)
    assert torch.equal(degraded[1], model.gt)


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    # changes of train, changes of datasets.train, what the line says
    (
        {"align_opt": {"type": "GANLoss", "gan_type": "vanilla"}},
        {},
        r"train\.align_opt\.type: 'GANLoss' wants 'input', ",
    ),
    ({"align_opt": {"type": "AlignmentLos"}}, {}, r"train\.align_opt\.type: .*did you mean 'AlignmentLoss'"),
    ({"align_opt": {**ALIGN, "statistic": "x"}}, {}, r"train\.align_opt\.statistic: unknown key, .* mean 'statistics'"),
    ({"align_opt": {**ALIGN, "statistics": "spacial"}}, {}, r"train\.align_opt\.statistics: .*did you mean 'spatial'"),
    (
        {"align_opt": {**ALIGN, "statistics": "pooled"}},
        {"batch_size_per_gpu": 1, "num_views": 1},
        r"datasets\.train\.batch_size_per_gpu: 1, expected at least 2 in all for AlignmentLoss",
    ),
    ({"dropout": {"p": 1.0}}, {}, r"train\.dropout\.p: 1\.0, expected a number in \[0, 1\)"),
    ({"dropout": {"p": -0.1}}, {}, r"train\.dropout\.p: -0\.1, expected a number in \[0, 1\)"),
    ({"dropout": {"p": "0.5"}}, {}, r"train\.dropout\.p: '0\.5', expected a number"),
    ({"dropout": {"p": float("nan")}}, {}, r"train\.dropout\.p: nan, expected a finite number"),
    ({"dropout": {"p": 0.5, "rate": 0.5}}, {}, r"train\.dropout\.rate: unknown key, expected one of p"),
    ({"dropout": {}}, {}, r"train\.dropout\.p: the key is missing"),
    ({"dropout": 0.5}, {}, r"train\.dropout: 0\.5, expected a block of keys, or null"),
    (
        {"tap_layer": "conv_hr"},
        {},
        r"train\.tap_layer: 'conv_hr', expected train\.align_opt or train\.dropout with",
    ),
    (
        {"align_opt": ALIGN, "tap_layer": "generator.conv_las"},
        {},
        r"train\.tap_layer: there is no layer 'generator\.conv_las' in ReDSR, .* nearest are 'generator\.conv_last', ",
    ),
    (
        {"dropout": {"p": 0.5}, "tap_layer": "generator.groups"},
        {},
        r"train\.tap_layer: 'generator\.groups' does not run in ReDSR's forward pass",
    ),
    (
        {"dropout": {"p": 0.5}, "tap_layer": "generator"},
        {},
        None,  # type: ignore[list-item]  # images are features, too
    ),
]


@pytest.mark.parametrize(("train", "dataset", "expected"), BAD)
def test_options_that_cannot_be_used(
    options: Callable[[str], Options],
    make_model: Make,
    train: dict[str, Any],
    dataset: dict[str, Any],
    expected: str | None,
) -> None:
    opt = options("plain")
    opt["train"] |= train
    opt["datasets"]["train"] |= dataset
    if expected is None:
        make_model(opt)
        return
    with pytest.raises(OptionError, match=f"^{expected}") as caught:
        make_model(opt)
    assert "\n" not in str(caught.value)


def test_alignment_needs_the_degradation_on_the_device(options: Callable[[str], Options], make_model: Make) -> None:
    opt = options("plain")
    del opt["degradation"]
    opt["datasets"]["train"] |= {"degrade_on": "worker"}
    opt["train"]["align_opt"] = ALIGN
    with pytest.raises(OptionError, match=r"^train\.align_opt: given, but datasets\.train\.degrade_on is 'worker'"):
        make_model(opt)
    del opt["train"]["align_opt"]
    opt["train"]["dropout"] = {"p": 0.5}
    model = make_model(opt)
    model.feed_data({"lq": torch.rand(4, 3, 24, 24), "gt": torch.rand(4, 3, 48, 48)})
    model.optimize_parameters(1)
    assert set(model.get_current_log()) == {"l_pix"}


def test_networks_are_checked_before_they_are_trained(
    options: Callable[[str], Options], make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    opt = options("plain") | {"model_type": "SimpleAlignModel"}
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Shuffle", Shuffle)
    opt["network_g"] = {"type": "Shuffle"}
    make_model(opt)
    opt["train"]["align_opt"] = ALIGN
    with pytest.raises(OptionError, match=r"^network_g: no Conv2d runs in Shuffle's forward pass"):
        make_model(opt)
    swinir = {"type": "SwinIR", "upscale": 2, "img_size": 14, "window_size": 7, "depths": [2], "embed_dim": 4}
    opt["network_g"] = {**swinir, "num_heads": [2], "upsampler": "pixelshuffledirect"}
    with pytest.raises(
        OptionError, match=r"^network_g: SwinIR does not run on \(2, 3, 24, 24\), expected a network for"
    ):
        make_model(opt)
    opt["datasets"]["train"]["gt_size"] = 56
    make_model(opt)


@pytest.mark.parametrize(
    ("name", "views", "world_size", "fits"),
    [
        ("plain", 1, 1, False),
        ("plain", 2, 1, True),
        ("plain", 1, 2, True),
        ("redsr", 2, 1, False),
        ("redsr", 2, 2, True),
    ],
)
def test_pooled_alignment_needs_two_images_in_all(
    options: Callable[[str], Options], make_model: Make, name: str, views: int, world_size: int, fits: bool
) -> None:
    opt = options(name) | {"world_size": world_size}
    opt["datasets"]["train"] |= {"batch_size_per_gpu": 1, "num_views": views}
    opt["train"]["align_opt"] = {**ALIGN, "statistics": "pooled"}
    if fits:
        make_model(opt)
    else:
        with pytest.raises(OptionError, match=r"^datasets\.train\.batch_size_per_gpu: 1, expected at least 2 in all"):
            make_model(opt)
