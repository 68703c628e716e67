"""ReDSRModel: which patch goes where, its losses by hand, Table 2's models, saving, seeds, learning."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bsr_plugins.archs import OracleEncoder, ReDSR
from bsr_plugins.errors import OptionError
from bsr_plugins.losses import KLDivergenceLoss
from bsr_plugins.seeding import generator_at
from tests.models.stepping import assert_equal, prepare_and_tell, weights
from tests.models.test_training import mean, train

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome

Make = Callable[..., Any]
Step = Callable[[Any, Tensor, int], None]
ITERATION = 3
PIXEL, RECONSTRUCTED, SPREAD = {"l_pix"}, {"l_redegradation"}, {"l_representation"}
DISTANCE_FIGURES, SPREAD_FIGURES = {"redegradation_rmse", "modulation"}, {"representation_mean", "representation_std"}


@pytest.fixture
def opt(redsr_options: Options, as_read: Callable[[Options], Options]) -> Options:
    """The options of a tiny ReDSR run; a test may change them."""
    return as_read(redsr_options)


def energy_distance(found: Tensor, samples: Tensor) -> Tensor:
    """Eq. 5 by loops."""

    def mean_distance(first: Tensor, second: Tensor) -> Tensor:
        return torch.stack([(a - b).norm() for a in first for b in second]).mean()

    return 2 * mean_distance(found, samples) - mean_distance(found, found) - mean_distance(samples, samples)


def by_hand(model: Any, gt: Tensor, lq: Tensor, frozen: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """The losses of Eq. 4, 5, 7 and 9 from the networks alone, and W of Eq. 8, in whose place `frozen` may come."""
    representation = model.net_g.encode(lq[:, 0])
    sr = model.net_g.restore(lq[:, 0], representation)
    reproduced = model.training_networks["degrader"](gt[:, 1], representation)
    with torch.no_grad():
        distance = torch.stack([(a - b).square().mean().sqrt() for a, b in zip(reproduced, lq[:, 1], strict=True)])
        weights = 2 / (1 + distance) if frozen is None else frozen
    errors = [(a - b).abs().mean() for a, b in zip(sr, gt[:, 0], strict=True)]
    samples = torch.randn(16, 6, generator=generator_at(10, "representation_opt", ITERATION))
    losses = {
        "l_pix": torch.stack([w * error for w, error in zip(weights, errors, strict=True)]).mean(),
        "l_redegradation": (reproduced - lq[:, 1]).abs().mean(),
        "l_representation": 0.01 * energy_distance(representation, samples),
    }
    return losses, weights


def parameters(model: Any) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name: `encoder.…`, `compress.…`, `generator.…` and `degrader.…`."""
    named = [*model.net_g.named_parameters()]
    named += [(f"degrader.{name}", p) for name, p in model.training_networks["degrader"].named_parameters()]
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor | None]:
    named = parameters(model)
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return dict(zip(named, found, strict=True))


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_the_first_view_is_restored_and_the_second_re_degraded(opt: Options, make_model: Make, pairs: Tensor) -> None:
    model = make_model(opt)
    lq, _ = prepare_and_tell(model, pairs, ITERATION)
    assert lq.shape == (4, 2, 3, 24, 24)
    for name, expected in {
        "lq": lq[:, 0],
        "gt": pairs[:, 0],
        "other_lq": lq[:, 1],
        "other_gt": pairs[:, 1],
    }.items():
        assert torch.equal(getattr(model, name), expected), name

    seen: dict[str, Any] = {}
    degrader, encoder = model.training_networks["degrader"], model.net_g.encoder
    encoder.register_forward_hook(lambda _module, args, result: seen.update(encoded=args[0], representation=result))
    degrader.register_forward_hook(lambda _module, args, _result: seen.update(degraded=args[0], steer=args[1]))
    model.compute_losses()
    assert torch.equal(seen["encoded"], lq[:, 0])
    assert torch.equal(seen["degraded"], pairs[:, 1])
    assert seen["steer"] is seen["representation"], "with its gradient"


def test_losses_by_name_are_those_by_hand(opt: Options, make_model: Make, pairs: Tensor) -> None:
    model = make_model(opt)
    values = []
    for gt in (pairs, pairs.flip(1)):
        lq, _ = prepare_and_tell(model, gt, ITERATION)
        losses = model.compute_losses()
        expected, weights = by_hand(model, gt, lq)
        assert set(losses) == set(expected) == PIXEL | RECONSTRUCTED | SPREAD
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
        distance = 2 / weights - 1
        representation = model.net_g.encode(lq[:, 0])
        figures = {
            "modulation": weights.mean(),
            "redegradation_rmse": 255 * distance.mean(),
            "representation_mean": representation.mean(),
            "representation_std": representation.std(dim=0, correction=0).mean(),
        }
        assert set(model.figures) == set(figures)
        for name, value in figures.items():
            assert model.figures[name].item() == pytest.approx(value.item(), rel=1e-4), name
        assert not model.figures["modulation"].requires_grad
        values.append({name: value.item() for name, value in losses.items()})
    for name in PIXEL | RECONSTRUCTED:
        assert values[0][name] != pytest.approx(values[1][name], rel=1e-3), f"{name}: swapped views tell"


def test_a_step_logs_losses_and_figures(opt: Options, make_model: Make, pairs: Tensor, step: Step) -> None:
    model = make_model(opt)
    lq, _ = prepare_and_tell(model, pairs, ITERATION)
    expected, _ = by_hand(model, pairs, lq)
    step(model, pairs, ITERATION)
    log = model.get_current_log()
    assert set(log) == PIXEL | RECONSTRUCTED | SPREAD | DISTANCE_FIGURES | SPREAD_FIGURES
    for name, value in expected.items():
        assert log[name] == pytest.approx(value.item(), rel=1e-5), name


def test_gradients_reach_encoder_degrader_and_generator(opt: Options, make_model: Make, pairs: Tensor) -> None:
    model = make_model(opt)
    prepare_and_tell(model, pairs, ITERATION)
    losses = model.compute_losses()
    reached = {
        "l_pix": {"encoder", "compress", "generator"},
        "l_redegradation": {"encoder", "degrader"},
        "l_representation": {"encoder"},
    }
    for name, parts in reached.items():
        found = gradients(model, losses[name])
        moved = {key.split(".")[0] for key, value in found.items() if value is not None and bool(value.abs().sum() > 0)}
        assert moved == parts, name
    found = gradients(model, total(losses))
    for key, value in found.items():
        assert value is not None, key
        assert value.isfinite().all(), key
        if value.numel() > 1:  # the slope of a PReLU may see nothing below 0
            assert value.abs().sum() > 0, key


def test_no_gradient_flows_through_w(opt: Options, make_model: Make, pairs: Tensor) -> None:
    model = make_model(opt)
    lq, _ = prepare_and_tell(model, pairs, ITERATION)
    losses = model.compute_losses()
    found = gradients(model, total(losses))
    _, weights = by_hand(model, pairs, lq)
    assert weights.std() > 1e-3, "W tells samples apart"
    constant, _ = by_hand(model, pairs, lq, frozen=weights)
    for name, value in gradients(model, total(constant)).items():
        mine = found[name]
        assert mine is not None
        assert value is not None
        torch.testing.assert_close(mine, value, rtol=1e-3, atol=1e-5 * float(value.abs().max()) + 1e-9, msg=name)

    alone = gradients(model, losses["l_redegradation"])
    for name, mine in found.items():
        other = alone[name]
        if name.startswith("degrader."):
            assert mine is not None
            assert other is not None
            assert torch.equal(mine, other), f"{name}: the pixel loss leaves the degrader alone"


def without_redegradation(opt: Options) -> Options:
    del opt["network_degrader"], opt["train"]["redegradation_opt"]
    opt["datasets"]["train"]["num_views"] = 1
    return opt


def table2(opt: Options, model: int) -> Options:
    """The options of one of the models of ReDSR's Table 2, made from those of model 8."""
    if model in (1, 3):
        without_redegradation(opt)
    if model <= 6:
        opt["train"]["pixel_opt"] = {"type": "L1Loss"}
    if model in (1, 2):
        opt["train"]["representation_opt"] = None
    if model in (5, 6):
        opt["train"]["representation_opt"]["distribution"] = {5: "uniform", 6: "exponential"}[model]
    if model == 7:
        opt["train"]["representation_opt"] = {"type": "KLDivergenceLoss"}
    if model == 9:
        opt["network_g"]["encoder"] = {"type": "OracleEncoder", "num_feat": 8, "representation_dim": 6}
    return opt


@pytest.mark.parametrize("number", range(1, 10))
def test_the_models_of_table_2(
    opt: Options, make_model: Make, pairs: Tensor, step: Step, tmp_path: Path, number: int
) -> None:
    model = make_model(table2(opt, number))
    redegrades, bounded = number not in (1, 3), number not in (1, 2)
    before = weights(model.net_g)
    step(model, pairs if redegrades else pairs[:, :1], 1)
    expected = PIXEL | (RECONSTRUCTED | DISTANCE_FIGURES if redegrades else set())
    assert set(model.get_current_log()) == expected | (SPREAD | SPREAD_FIGURES if bounded else set())
    assert all(np.isfinite(value) for value in model.get_current_log().values())
    for part in ("encoder", "generator"):
        names = [name for name in before if name.startswith(f"{part}.") and "_mean" not in name]
        moved = [not torch.equal(before[name], model.net_g.state_dict()[name]) for name in names]
        assert sum(moved) > 0.8 * len(moved), part
    assert isinstance(model.net_g.encoder, OracleEncoder) == (number == 9)
    if bounded:
        kinds = {5: "uniform", 6: "exponential"}
        loss = model.losses["representation_opt"].module
        assert isinstance(loss, KLDivergenceLoss) == (number == 7)
        assert number == 7 or loss.distribution == kinds.get(number, "gaussian")
    assert model.training_network_names == (("degrader",) if redegrades else ())

    model.save(0, 1)
    saved = {file.name for file in tmp_path.glob("*.pth")}
    assert saved == {"net_g_1.pth"} | ({"net_degrader_1.pth"} if redegrades else set())
    learning = sum(len(group["params"]) for group in model.optimizer_g.param_groups)
    wanted = [p for net in (model.net_g, *model.training_networks.values()) for p in net.parameters()]
    assert learning == sum(p.requires_grad for p in wanted)


def test_a_plain_pixel_loss_is_not_modulated(opt: Options, make_model: Make, pairs: Tensor) -> None:
    opt["train"]["pixel_opt"] = {"type": "L1Loss", "loss_weight": 2.0}  # as the released code has it
    model = make_model(opt)
    prepare_and_tell(model, pairs, ITERATION)
    losses = model.compute_losses()
    assert losses["l_pix"].item() == pytest.approx(2 * (model.output - model.gt).abs().mean().item(), rel=1e-6)


def test_testing_leaves_the_mode_of_the_network(opt: Options, make_model: Make, pairs: Tensor) -> None:
    opt["train"]["ema_decay"] = 0
    model = make_model(opt)
    assert model.net_g.training
    model.feed_data({"lq": pairs[:1, 0], "gt": pairs[:1, 0]})
    model.test()
    assert model.net_g.training
    assert torch.equal(model.output, model.net_g(pairs[:1, 0]))
    assert not model.output.requires_grad


def test_the_ema_copy_follows_network_g_alone(opt: Options, make_model: Make, pairs: Tensor, step: Step) -> None:
    model = make_model(opt)
    average = weights(model.net_g)
    for iteration in (1, 2):
        step(model, pairs, iteration)
        now = weights(model.net_g)
        average = {name: 0.9 * value + 0.1 * now[name] for name, value in average.items()}
    held = weights(model.net_g_ema)
    assert held.keys() == average.keys()
    for name, value in average.items():
        torch.testing.assert_close(held[name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert not torch.equal(held["encoder.features.0.weight"], model.net_g.state_dict()["encoder.features.0.weight"])
    assert not hasattr(model, "net_degrader_ema")


@pytest.mark.parametrize("with_degrader", [True, False])
def test_a_resumed_run_ends_as_the_uninterrupted_one(
    redsr_options: Options,
    photographs: Path,
    in_process: Callable[..., Outcome],
    tmp_path: Path,
    with_degrader: bool,
) -> None:
    options = redsr_options if with_degrader else table2(redsr_options, 3)
    if not with_degrader:
        options["network_degrader"] = None  # as an option file that inherits says it
    # One image, all of it in every patch: BasicSR's trainer begins an epoch anew when it resumes.
    (tmp_path / "images").mkdir()
    shutil.copy(photographs / "coffee0.png", tmp_path / "images")
    options["datasets"]["train"] |= {"dataroot_gt": "images", "gt_size": 96, "use_hflip": False, "use_rot": False}
    options["datasets"]["train"]["batch_size_per_gpu"] = 2
    del options["datasets"]["val"], options["val"]
    options["logger"]["save_checkpoint_freq"] = 2
    outcome = in_process("train", options)
    assert outcome.status == 0, outcome.output
    models = tmp_path / "experiments" / "tiny" / "models"
    names = ("net_g", "net_degrader") if with_degrader else ("net_g",)
    assert {file.name for file in models.iterdir()} == {
        f"{name}_{when}.pth" for name in names for when in (2, 4, "latest")
    }
    whole = {name: torch.load(models / f"{name}_4.pth", weights_only=True) for name in names}
    for name in names:
        (models / f"{name}_4.pth").unlink()
    options["path"]["resume_state"] = "experiments/tiny/training_states/2.state"
    resumed = in_process("train", options)
    assert resumed.status == 0, resumed.output
    assert "iter: 2." in resumed.output
    for name in names:
        again = torch.load(models / f"{name}_4.pth", weights_only=True)
        parts = {"params", "params_ema"} if name == "net_g" else {"params"}
        assert set(again) - {"bsr_plugins"} == parts
        for part in parts:
            assert_equal(whole[name][part], again[part])


def test_a_saved_degrader_is_loaded(opt: Options, make_model: Make, pairs: Tensor, step: Step, tmp_path: Path) -> None:
    model = make_model(opt)
    step(model, pairs, 1)
    model.save(0, 1)
    opt["path"]["pretrain_network_degrader"] = str(tmp_path / "net_degrader_1.pth")
    opt["manual_seed"] = 11
    assert_equal(weights(make_model(opt).training_networks["degrader"]), weights(model.training_networks["degrader"]))


def test_a_seed_decides_everything(opt: Options, make_model: Make) -> None:
    def run(**changes: Any) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        options = copy.deepcopy(opt)
        options["datasets"]["train"]["num_worker_per_gpu"] = changes.pop("workers", 0)
        model, log = train(make_model, options | changes, 3)
        degrader = model.training_networks["degrader"].state_dict()
        return {**weights(model.net_g), **{f"degrader.{name}": value for name, value in degrader.items()}}, log

    first, log = run()
    for state, again in (run(), run(workers=2)):
        assert again == log
        assert_equal(state, first)
    state, other = run(manual_seed=11)
    assert other != log
    assert not torch.equal(state["degrader.expand.0.weight"], first["degrader.expand.0.weight"])


def test_what_is_drawn_depends_on_the_iteration_alone(
    opt: Options, make_model: Make, pairs: Tensor, step: Step
) -> None:
    busy, fresh = make_model(opt), make_model(opt)
    for iteration in (1, 2):
        step(busy, pairs, iteration)
    fresh.net_g.load_state_dict(busy.net_g.state_dict())
    fresh.training_networks["degrader"].load_state_dict(busy.training_networks["degrader"].state_dict())
    before = torch.get_rng_state()
    for model in (busy, fresh):
        step(model, pairs, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert dict(busy.get_current_log()) == dict(fresh.get_current_log())


def test_a_short_run_learns(opt: Options, make_model: Make) -> None:
    opt["datasets"]["train"]["dataset_enlarge_ratio"] = 1000
    _, log = train(make_model, opt, 80)
    assert mean(log[-20:], "l_redegradation") < mean(log[:10], "l_redegradation") / 3
    assert mean(log[-20:], "l_redegradation") < 0.08
    assert mean(log[-20:], "l_pix") < mean(log[:10], "l_pix") / 2
    assert mean(log[-20:], "l_representation") < mean(log[:10], "l_representation")
    assert mean(log[-20:], "representation_std") > 5 * mean(log[:10], "representation_std"), "untrained, it is 0.02"
    assert mean(log[-20:], "modulation") > mean(log[:10], "modulation") + 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda opt: opt["datasets"]["train"].update(num_views=1), "num_views: 1 with degrade_on: device, expected 2"),
        (lambda opt: opt["datasets"]["train"].update(num_views=None), "num_views: 1 with .*, expected 2"),
        (lambda opt: opt.pop("network_degrader"), "network_degrader: the block is missing, train.redegradation_opt"),
        (
            lambda opt: opt["train"].pop("redegradation_opt"),
            "redegradation_opt: the block is missing, network_degrader",
        ),
        (lambda opt: without_redegradation(opt), "pixel_opt.type: 'ModulatedL1Loss' wants 'distance', expected among"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_outside_our_pipeline_too(
    opt: Options, make_model: Make, change: Callable[[Options], Any], message: str
) -> None:
    change(opt)
    with pytest.raises(OptionError, match=message):
        make_model(opt)


def test_the_network_may_be_any_that_gives_a_representation(
    opt: Options, make_model: Make, pairs: Tensor, step: Step
) -> None:
    opt["network_g"] = {"type": "DASR", "num_feat": 8, "num_group": 1, "num_block": 1, "upscale": 2}
    opt["network_g"]["encoder_num_feat"] = 4
    opt["network_degrader"]["representation_dim"] = 16
    model = make_model(opt)
    step(model, pairs, 1)
    assert set(model.get_current_log()) >= PIXEL | RECONSTRUCTED | SPREAD
    assert not isinstance(model.net_g, ReDSR)
