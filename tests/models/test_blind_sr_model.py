"""BlindSRModel: the step, the degradation on the device, the networks for training, what is saved."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from bsr_plugins.degradations import ClassicalDegradation
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.models.assembled_model import CALIBRATION_FILE
from bsr_plugins.seeding import generator_at
from tests.models.stepping import assert_equal, weights

if TYPE_CHECKING:
    from tests.conftest import Options

Make = Callable[..., Any]
Step = Callable[[Any, Tensor, int], None]


@pytest.fixture
def paired_opt(blind_opt: Options) -> Options:
    """Options of a model that is given `lq` and `gt`."""
    del blind_opt["degradation"]
    blind_opt["datasets"]["train"]["degrade_on"] = "worker"
    return blind_opt


def test_a_step_on_pairs_is_that_of_srmodel(paired_opt: Options, make_model: Make, views: Tensor) -> None:
    pairs = {"lq": torch.rand(4, 3, 16, 16), "gt": views[:, 0]}
    models = [make_model({**paired_opt, "model_type": name}) for name in ("SRModel", "BlindSRModel")]
    start = weights(models[0].net_g)
    for iteration in (1, 2, 3):
        for model in models:
            model.update_learning_rate(iteration)
            model.feed_data(pairs)
            model.optimize_parameters(iteration)
    stock, ours = models
    assert not torch.equal(start["conv_last.weight"], stock.net_g.state_dict()["conv_last.weight"])
    assert_equal(weights(stock.net_g), weights(ours.net_g))
    assert_equal(weights(stock.net_g_ema), weights(ours.net_g_ema))
    assert dict(stock.get_current_log()) == dict(ours.get_current_log())
    assert stock.get_current_learning_rate() == ours.get_current_learning_rate()


def test_a_step_on_views_is_a_step_on_their_degraded_pairs(
    blind_opt: Options, make_model: Make, step: Step, views: Tensor
) -> None:
    degrading = make_model(blind_opt)
    step(degrading, views, 1)
    degradation = ClassicalDegradation(
        **{"scale": 4, **{k: v for k, v in blind_opt["degradation"].items() if k != "type"}}
    )
    lq = degradation(views, degradation.sample(4, generator_at(10, "degradation", 1)))

    del blind_opt["degradation"]
    blind_opt["datasets"]["train"]["degrade_on"] = "worker"
    stock = make_model({**blind_opt, "model_type": "SRModel"})
    stock.feed_data({"lq": lq.flatten(0, 1), "gt": views.flatten(0, 1)})
    stock.optimize_parameters(1)
    assert_equal(weights(stock.net_g), weights(degrading.net_g))


def test_degradations_are_a_function_of_seed_iteration_and_rank(
    blind_opt: Options, make_model: Make, step: Step, views: Tensor
) -> None:
    def drawn(model: Any, iteration: int) -> dict[str, Tensor]:
        model.current_iter = iteration
        params: dict[str, Tensor] = model.degrade(views)[2]
        return params

    busy, fresh = make_model(blind_opt), make_model(blind_opt)
    for iteration in (1, 2):
        step(busy, views, iteration)
    torch.rand(5)
    resumed = drawn(fresh, 3)
    assert_equal(drawn(busy, 3), resumed)

    ranks = {"rank": 1, "world_size": 2}
    for other in (drawn(fresh, 4), *(drawn(make_model(blind_opt | own), 3) for own in ({"manual_seed": 11}, ranks))):
        assert not torch.equal(other["noise_seed"], resumed["noise_seed"])
    fresh.current_iter = 3
    drawn_for = [torch.rand(9, generator=fresh.shared_generator(purpose)) for purpose in ("query", "degradation")]
    assert not torch.equal(*drawn_for)


def test_ranks_take_the_rows_of_one_process(blind_opt: Options, make_model: Make, views: Tensor) -> None:
    """Views come as samples of their own; a second degradation and dropout are drawn for each of them."""
    blind_opt["train"] |= {"align_opt": {"type": "AlignmentLoss"}, "dropout": {"p": 0.5}}

    def drawn(gt: Tensor, **ranks: int) -> dict[str, Tensor]:
        model = make_model(blind_opt | ranks)
        model.current_iter, model.figures = 3, {}
        model.prepare_batch(*model.degrade(gt))
        model.degrade_again()
        both = {**model.params, **{f"again {name}": values for name, values in model.pair_params.items()}}
        rows = model.draw(
            "dropout", len(model.lq), lambda count, generator: torch.rand(count, 2, generator=generator), 2
        )
        return both | {"lq": model.lq, "dropout": rows}

    whole = drawn(views)
    halves = [drawn(views[rank::2], rank=rank, world_size=2) for rank in range(2)]
    assert whole["dropout"].shape == (24, 2)
    for name, values in whole.items():
        passes, samples = (2, 4) if name == "dropout" else (1, 4)
        for rank, half in enumerate(halves):
            expected = values.view(passes, samples, -1, *values.shape[1:])[:, rank::2].flatten(0, 2)
            torch.testing.assert_close(half[name], expected, rtol=0, atol=0 if name != "lq" else 0.004, msg=name)


def test_drawn_degradations_are_written_down(blind_opt: Options, make_model: Make, step: Step, views: Tensor) -> None:
    model = make_model(blind_opt)
    assert model.describe_degradation() == ""
    step(model, views, 1)
    text = model.describe_degradation()
    assert text.count("#") == 4
    for name, values in model.params.items():
        assert f" {name}={float(values[3]):.4g}" in text or f" {name}={values[3].item()}" in text
    blind_opt["train"]["align_opt"] = {"type": "AlignmentLoss"}
    model = make_model(blind_opt)
    step(model, views, 1)
    first, again = model.describe_degradation().split(" / again: ")
    assert first == text
    assert again.count("#") == 12, "every view has its own"


def test_the_ema_copy_takes_over_buffers(opt: Options, make_model: Make, step: Step, views: Tensor) -> None:
    model = make_model(opt)
    for iteration in (1, 2, 3):
        step(model, views, iteration)
    trained, average = weights(model.net_g), weights(model.net_g_ema)
    running = [name for name in trained if "running" in name or "num_batches" in name]
    assert len(running) == 18
    for name in running:
        assert torch.equal(trained[name], average[name]), name
    assert int(average["encoder.features.1.num_batches_tracked"]) == 3
    assert not torch.equal(trained["backbone.conv_last.weight"], average["backbone.conv_last.weight"])


def test_one_optimiser_over_what_learns(opt: Options, make_model: Make) -> None:
    model = make_model(opt)
    (optimiser,) = model.optimizers
    held = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
    moco = model.training_networks["moco"]
    wanted = [*model.net_g.parameters(), *moco.projection_q.parameters()]
    assert sorted(held) == sorted(map(id, wanted))
    assert not {*held} & {*map(id, [*moco.key_encoder.parameters(), *moco.projection_k.parameters()])}
    assert model.opt["train"]["optim_g"] == {"type": "Adam", "lr": 0.002}
    assert optimiser.param_groups[0]["lr"] == 0.002


def test_the_options_of_the_caller_stay_as_they_are(opt: Options, make_model: Make) -> None:
    before = copy.deepcopy(opt)
    make_model(opt)
    assert opt == before


def test_validation_takes_pairs(opt: Options, make_model: Make, views: Tensor) -> None:
    model = make_model(opt)
    model.feed_data({"gt": views})
    assert not hasattr(model, "lq")
    pair = {"lq": torch.rand(1, 3, 9, 11), "gt": torch.rand(1, 3, 36, 44)}
    model.feed_data(pair)
    model.test()
    assert torch.equal(model.lq, pair["lq"])
    assert torch.equal(model.gt, pair["gt"])
    assert model.output.shape == (1, 3, 36, 44)


def test_calibration_is_saved_by_the_first_step_and_read_by_a_run_that_resumes(
    opt: Options, make_model: Make, step: Step, views: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opt["degradation"] |= {"types": ["iso", "jpeg"], "sampler": {"type": "ads", "grid": 5}}
    first = make_model(opt)
    assert not list(tmp_path.iterdir()), "nothing is written by a constructor"
    step(first, views, 1)
    saved = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    assert saved == first.degradation.calibration()
    assert {name: len(stage["distances"]) for name, stage in saved.items()} == {"iso": 5, "jpeg": 5}

    def fail(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(ClassicalDegradation, "calibrate", fail)
    again = make_model(opt)
    again.calibrate()
    assert again.degradation.calibration() == saved
    assert_equal(again.degradation.sample(9, generator_at(1, "x")), first.degradation.sample(9, generator_at(1, "x")))

    (tmp_path / CALIBRATION_FILE).unlink()
    with pytest.raises(AssertionError, match="measured again"):
        make_model(opt).calibrate()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"iso": 3}',
        '{"iso": {"ranges": [[0.2, 4.0]], "distances": [0, 1]}}',
        '{"iso": {"ranges": [[0.2, 4.0]], "settings": {"scale": 2}, "distances": [0, 1, 2, 3, 4]}}',
    ],
)
def test_a_calibration_that_cannot_be_used_is_named(
    opt: Options, make_model: Make, tmp_path: Path, content: str
) -> None:
    opt["degradation"] |= {"types": ["iso"], "sampler": {"type": "ads", "grid": 5}}
    (tmp_path / CALIBRATION_FILE).write_text(content)
    with pytest.raises(BSRError, match=rf"{CALIBRATION_FILE}: cannot be used \(.*expected what this run has measured"):
        make_model(opt).calibrate()


@pytest.fixture
def trained_and_saved(make_model: Make, step: Step, views: Tensor) -> Make:
    """Train a model for three iterations and save it."""

    def train(opt: Options) -> Any:
        model = make_model(opt)
        for iteration in (1, 2, 3):
            step(model, views, iteration)
        model.save(0, 3)
        return model

    return train


def test_networks_for_training_are_saved_and_loaded(
    opt: Options, make_model: Make, trained_and_saved: Make, tmp_path: Path
) -> None:
    model = trained_and_saved(opt)
    saved = weights(model.training_networks["moco"])
    file = torch.load(tmp_path / "net_moco_3.pth", weights_only=True)
    assert_equal(file["params"], saved)
    assert int(file["params"]["queue_filled"]) == 12
    assert {"params", "params_ema"} == set(torch.load(tmp_path / "net_g_3.pth", weights_only=True))
    assert torch.load(tmp_path / "3.state", weights_only=True)["iter"] == 3

    opt["path"]["pretrain_network_moco"] = str(tmp_path / "net_moco_3.pth")
    assert_equal(weights(make_model(opt).training_networks["moco"]), saved)


def test_a_missing_training_network_is_named(blind_opt: Options, make_model: Make) -> None:
    blind_opt["model_type"] = "AACLModel"
    with pytest.raises(OptionError, match=r"network_moco: the block is missing, AACLModel needs it"):
        make_model(blind_opt)


@pytest.mark.parametrize("degrade_on", ["device", "worker"])
def test_degradation_and_dataset_have_to_fit(blind_opt: Options, make_model: Make, degrade_on: str) -> None:
    blind_opt["datasets"]["train"]["degrade_on"] = degrade_on
    if degrade_on == "device":
        del blind_opt["degradation"]
    with pytest.raises(OptionError, match=rf"degradation: the block is (missing|given), .* '{degrade_on}'"):
        make_model(blind_opt)


def test_gpus_that_are_not_there(blind_opt: Options, make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="num_gpu: 1, but there is no CUDA device here, expected 0"):
        make_model({**blind_opt, "num_gpu": 1})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(OptionError, match="num_gpu: 2 in one process, expected 1, or torchrun"):
        make_model({**blind_opt, "num_gpu": 2})


def test_a_trained_network_is_tested_by_srmodel(
    opt: Options, make_model: Make, trained_and_saved: Make, views: Tensor, tmp_path: Path
) -> None:
    model = trained_and_saved(opt)
    opt["path"] |= {"pretrain_network_g": str(tmp_path / "net_g_3.pth"), "param_key_g": "params_ema"}
    tester = make_model({**opt, "is_train": False, "model_type": "SRModel"})
    for tested in (model, tester):
        tested.feed_data({"lq": views[0, :1, :, ::4, ::4]})
        tested.test()
    assert torch.equal(model.output, tester.output)
    assert ARCH_REGISTRY.get("AACLNet") is type(tester.net_g)
