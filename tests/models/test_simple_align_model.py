"""SimpleAlignModel: pairs of degradations, alignment, dropout, and neither."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from bsr_plugins.degradations import ClassicalDegradation
from bsr_plugins.losses import AlignmentLoss
from bsr_plugins.models.feature_tap import find_tap
from bsr_plugins.seeding import generator_at
from tests.models.stepping import assert_equal, weights

if TYPE_CHECKING:
    from tests.conftest import Options

Make = Callable[..., Any]
Step = Callable[[Any, Tensor, int], None]
TERMS = {"align_linear_mean", "align_linear_covariance", "align_nonlinear_mean", "align_nonlinear_covariance"}
ITERATION = 3
NETWORKS: dict[str, dict[str, Any]] = {
    "MSRResNet": {"num_feat": 4, "num_block": 1, "upscale": 4},
    "RRDBNet": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "num_grow_ch": 2},
    "SwinIR": {
        "upscale": 4,
        "img_size": 16,
        "window_size": 4,
        "depths": [2],
        "embed_dim": 4,
        "num_heads": [2],
        "mlp_ratio": 2,
        "upsampler": "pixelshuffledirect",
    },
    "AACLNet": {"num_feat": 4, "num_group": 1, "num_block": 1, "encoder_num_feat": 2},
}


@pytest.fixture
def opt(blind_opt: Options) -> Options:
    """The options of a run without alignment and dropout."""
    blind_opt["model_type"] = "SimpleAlignModel"
    blind_opt["datasets"]["train"]["num_views"] = 1
    return blind_opt


@pytest.fixture
def gt(views: Tensor) -> Tensor:
    return views[:, :1]


def with_align(opt: Options, **arguments: Any) -> Options:
    opt["train"]["align_opt"] = {"type": "AlignmentLoss", **arguments}
    return opt


def start(model: Any, gt: Tensor, iteration: int = ITERATION) -> None:
    """Prepare a batch as a step does."""
    model.current_iter, model.figures = iteration, {}
    model.prepare_batch(*model.degrade(gt))


def own_degradation(opt: Options) -> ClassicalDegradation:
    return ClassicalDegradation(scale=4, **{key: value for key, value in opt["degradation"].items() if key != "type"})


def enliven(network: nn.Module) -> None:
    """Enlarge BasicSR's small initial weights, which leave hardly any features to be aligned."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5)


def test_a_step_is_that_of_the_formulas(opt: Options, make_model: Make, gt: Tensor, step: Step) -> None:
    settings = {"loss_weight": 1e5, "nonlinear_weight": 2.0}
    model = make_model(with_align(opt, **settings))
    enliven(model.net_g)
    by_hand = copy.deepcopy(model.net_g)
    step(model, gt, ITERATION)

    degradation, images = own_degradation(opt), gt[:, 0]
    first, second = (
        degradation(images, degradation.sample(4, generator_at(10, purpose, ITERATION)))
        for purpose in ("degradation", "degradation pair")
    )
    assert float((first - second).abs().mean()) > 0.01, "two degradations of one image"
    kept: list[Tensor] = []
    by_hand.conv_last.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
    outputs = by_hand(first), by_hand(second)
    pixel = torch.nn.functional.l1_loss(torch.cat(outputs), torch.cat([images, images]))
    loss = AlignmentLoss(**settings)  # type: ignore[arg-type]
    aligned, _ = loss(torch.cat(kept), generator_at(10, "align_opt", ITERATION))
    assert 0.1 < float(aligned.detach() / pixel.detach()) < 10, "both matter"
    (pixel + aligned).backward()
    for name, parameter in model.net_g.named_parameters():
        expected = by_hand.get_parameter(name).grad
        assert expected is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))

    log = model.get_current_log()
    assert set(log) == {"l_pix", "l_align"} | TERMS
    assert log["l_pix"] == pytest.approx(float(pixel), rel=1e-5)
    assert log["l_align"] == pytest.approx(float(aligned), rel=1e-3)
    assert sum(log[term] for term in TERMS) == pytest.approx(log["l_align"], rel=1e-5)


def test_the_alignment_reaches_all_before_the_last_convolution(opt: Options, make_model: Make, gt: Tensor) -> None:
    model = make_model(with_align(opt))
    start(model, gt)
    model.compute_losses()["l_align"].backward()
    for name, parameter in model.net_g.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached != name.startswith("conv_last."), name


def test_switched_off_terms_are_not_logged(opt: Options, make_model: Make, gt: Tensor, step: Step) -> None:
    model = make_model(with_align(opt, nonlinear_weight=0, covariance_weight=0, statistics="pooled"))
    step(model, gt, 1)
    assert set(model.get_current_log()) == {"l_pix", "l_align", "align_linear_mean"}


@pytest.mark.parametrize("kind", ["none", "align_opt", "dropout", "both"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_takes_every_kind(
    opt: Options, make_model: Make, gt: Tensor, step: Step, network: str, kind: str
) -> None:
    opt["network_g"] = {"type": network, **NETWORKS[network]}
    if kind in ("align_opt", "both"):
        with_align(opt)
    if kind in ("dropout", "both"):
        opt["train"]["dropout"] = {"p": 0.5}
    model = make_model(opt)
    before, hung = weights(model.net_g), [set(vars(module)) for module in model.net_g.modules()]
    for iteration in (1, 2):
        step(model, gt, iteration)
    assert set(model.get_current_log()) == {"l_pix"} | ({"l_align"} | TERMS if kind in ("align_opt", "both") else set())
    assert model.net_g.state_dict().keys() == before.keys()
    assert [set(vars(module)) for module in model.net_g.modules()] == hung
    assert not torch.equal(next(iter(before.values())), next(iter(model.net_g.state_dict().values())))
    assert len(model.output) == (8 if kind in ("align_opt", "both") else 4)


def test_without_either_it_is_the_plain_model(opt: Options, make_model: Make, gt: Tensor, step: Step) -> None:
    models = [make_model({**opt, "model_type": name}) for name in ("SimpleAlignModel", "BlindSRModel")]
    for model in models:
        assert model.tap is None
        for iteration in (1, 2):
            step(model, gt, iteration)
    assert_equal(weights(models[0].net_g), weights(models[1].net_g))
    assert dict(models[0].get_current_log()) == dict(models[1].get_current_log())


def test_dropout_drops_channels_by_position(opt: Options, make_model: Make, gt: Tensor) -> None:
    opt["train"]["dropout"] = {"p": 0.7}
    model = make_model(opt)
    enliven(model.net_g)
    start(model, gt)
    features, untouched = seen_by(model)
    model.compute_losses()
    mask = (torch.rand(4, 4, 1, 1, generator=generator_at(10, "dropout", ITERATION)) >= 0.7) / 0.3
    conv = model.net_g.conv_last
    torch.testing.assert_close(model.output, untouched + conv(features * mask) - conv(features))
    assert float((model.output - untouched).abs().max()) > 1e-3
    assert 0 < int(mask.count_nonzero()) < 16

    model.feed_data({"lq": model.lq})
    model.test()
    with torch.no_grad():
        assert torch.equal(model.output, model.net_g_ema(model.lq)), "nothing is dropped in validation"


def seen_by(model: Any) -> tuple[Tensor, Tensor]:
    """What enters the last convolution in a pass of its own, and what comes out."""
    with find_tap(model.net_g, model.lq)(model.net_g) as tapped:
        output: Tensor = model.net_g(model.lq)
    return tapped.features.detach(), output.detach()


def test_dropout_of_nothing_changes_nothing(opt: Options, make_model: Make, gt: Tensor, step: Step) -> None:
    plain = make_model(opt)
    opt["train"]["dropout"] = {"p": 0.0}
    model = make_model(opt)
    for one in (plain, model):
        step(one, gt, 1)
    assert_equal(weights(plain.net_g), weights(model.net_g))


def test_with_both_the_alignment_sees_what_is_before_the_dropout(opt: Options, make_model: Make, gt: Tensor) -> None:
    found = []
    for p in (None, 0.7):
        with_align(opt)["train"]["dropout"] = None if p is None else {"p": p}
        model = make_model(opt)
        start(model, gt)
        losses = model.compute_losses()
        found.append((float(losses["l_align"]), float(losses["l_pix"])))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_another_layer(opt: Options, make_model: Make, gt: Tensor) -> None:
    opt["train"]["tap_layer"] = "conv_first"
    model = make_model(with_align(opt, nonlinear_weight=0.0))
    start(model, gt)
    losses = model.compute_losses()
    second, _ = model.degrade_again()
    expected, _ = AlignmentLoss(nonlinear_weight=0.0)(torch.cat([model.lq, second]), torch.Generator())
    assert float(losses["l_align"]) == pytest.approx(float(expected), rel=1e-4)


def test_all_is_a_function_of_seed_iteration_and_rank(opt: Options, make_model: Make, gt: Tensor) -> None:
    def results(iteration: int, **changes: Any) -> list[float]:
        model = make_model(opt)
        model.opt |= changes
        start(model, gt, iteration)
        losses = model.compute_losses()
        return [float(value) for value in losses.values()]

    with_align(opt)["train"]["dropout"] = {"p": 0.5}
    before = torch.get_rng_state()
    first = results(1)
    assert first == results(1)
    assert len({*map(tuple, (first, results(2), results(1, rank=1, world_size=2), results(1, manual_seed=11)))}) == 4
    torch.set_rng_state(before)
    model = make_model(opt)
    state = torch.get_rng_state()
    start(model, gt)
    model.compute_losses()
    assert torch.equal(torch.get_rng_state(), state)


def test_views_are_samples(opt: Options, make_model: Make, views: Tensor, step: Step) -> None:
    opt["datasets"]["train"]["num_views"] = 3
    model = make_model(with_align(opt))
    step(model, views, 1)
    assert len(model.output) == 24


def test_representations_of_both_degradations_count(opt: Options, make_model: Make, gt: Tensor, step: Step) -> None:
    opt["network_g"] = {"type": "AACLNet", **NETWORKS["AACLNet"]}
    opt["train"]["representation_opt"] = {"type": "EnergyDistanceLoss"}
    model = make_model(with_align(opt))
    step(model, gt, 1)
    assert {"l_representation", "l_align", "l_pix"} < set(model.get_current_log())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_step_on_cuda_is_that_on_the_cpu(opt: Options, make_model: Make, gt: Tensor, step: Step) -> None:
    with_align(opt)["train"]["dropout"] = {"p": 0.5}
    logs = []
    for gpus in (0, 1):
        opt["num_gpu"] = gpus
        model = make_model(opt)
        step(model, gt, 1)
        logs.append(dict(model.get_current_log()))
    assert logs[1] == pytest.approx(logs[0], rel=1e-2)
