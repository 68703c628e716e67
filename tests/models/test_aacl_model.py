"""AACLModel: the choice of views, the contrast, the key side, the encoder's phase."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.losses import InfoNCELoss
from tests.models.stepping import moved, prepare, snapshot

if TYPE_CHECKING:
    from tests.conftest import Options

Make = Callable[..., Any]
Step = Callable[[Any, Tensor, int], None]
FIGURES = {"contrast_accuracy", "embedding_spread", "align_std", "align_accepted"}


def place_of(image: Tensor, views: Tensor) -> int:
    """Find which view an image is."""
    (place,) = (number for number, view in enumerate(views) if torch.equal(view, image))
    return place


def grey_distances(model: Any, gt: Tensor, lq: Tensor) -> Tensor:
    """The root mean squared difference from the clean LR views in grey levels, in plain float64."""
    difference = (lq.double() - model.degradation.clean(gt).double()) * 255
    distances: Tensor = difference.pow(2).mean(dim=(2, 3, 4)).sqrt()
    return distances


@pytest.mark.parametrize("keep", [2, 3])
def test_the_views_kept_are_those_that_brute_force_finds(
    opt: Options, make_model: Make, views: Tensor, keep: int
) -> None:
    gt = views.view(2, 6, 3, 64, 64)
    opt["datasets"]["train"]["num_views"] = 6
    opt["train"]["sigma_alignment"]["keep"] = keep
    opt["degradation"]["types"] = ["iso", "aniso+noise"]
    model = make_model(opt)
    for iteration in range(1, 6):
        lq = prepare(model, gt, iteration)
        distances = grey_distances(model, gt, lq)
        assert model.key_lq.shape == (2, keep - 1, 3, 16, 16)
        smallest = []
        for sample in range(2):
            spreads = {c: distances[sample, list(c)].std(correction=0).item() for c in combinations(range(6), keep)}
            best = min(spreads, key=lambda subset: spreads[subset])
            chosen = [place_of(image, lq[sample]) for image in (model.lq[sample], *model.key_lq[sample])]
            assert tuple(sorted(chosen)) == best
            assert torch.equal(model.gt[sample], gt[sample, chosen[0]])
            smallest.append(spreads[best])
        assert model.figures["align_std"].item() == pytest.approx(sum(smallest) / 2, rel=1e-3, abs=1e-4)
        assert model.figures["align_accepted"] == 1


def test_the_query_is_any_of_the_kept_views(opt: Options, make_model: Make, views: Tensor) -> None:
    model = make_model(opt)
    nearer = []
    for iteration in range(1, 31):
        lq = prepare(model, views, iteration)
        distances = grey_distances(model, views, lq)
        for sample in range(4):
            query, key = (place_of(x, lq[sample]) for x in (model.lq[sample], model.key_lq[sample, 0]))
            if distances[sample, query] != distances[sample, key]:
                nearer.append(bool(distances[sample, query] < distances[sample, key]))
    assert len(nearer) > 60
    assert 0.3 < sum(nearer) / len(nearer) < 0.7


def test_rejected_sets_give_no_contrast_but_keys(opt: Options, make_model: Make, views: Tensor, step: Step) -> None:
    opt["train"]["sigma_alignment"]["max_std"] = 0.0
    opt["train"]["encoder_phase"]["iters"] = 1
    opt["degradation"]["types"] = ["aniso+noise"]
    model = make_model(opt)
    encoder, projection = (snapshot(net) for net in (model.net_g.encoder, model.bare_moco.projection_q))
    queue = model.bare_moco.queue.clone()
    step(model, views, 1)
    log = model.get_current_log()
    assert log["align_accepted"] == 0
    assert log["align_std"] > 0
    assert log["l_contrast"] == 0
    assert not any(moved(model.net_g.encoder, encoder))
    assert not any(moved(model.bare_moco.projection_q, projection))
    assert int(model.bare_moco.queue_filled) == 4
    assert torch.equal(model.bare_moco.queue[:, :4], model.keys[:, 0].T)
    assert not torch.equal(model.bare_moco.queue[:, :4], queue[:, :4])


def test_a_set_that_is_rejected_is_left_out_of_the_loss(opt: Options, make_model: Make, views: Tensor) -> None:
    model = make_model(opt)
    prepare(model, views, 3)
    query, keys = model.bare_moco(model.net_g.encode(model.lq), model.key_lq)
    loss = InfoNCELoss(loss_weight=0.1)
    alone = torch.stack([loss(query[[n]], keys[[n]], model.bare_moco.queue) for n in range(4)]).detach()
    assert len({*alone.tolist()}) == 4
    for rejected in range(4):
        model.accepted = torch.arange(4) != rejected
        losses = model.compute_losses()
        assert losses["l_contrast"].item() == pytest.approx(alone[model.accepted].mean().item(), rel=1e-4)
        assert model.output.shape == (4, 3, 64, 64), "all are restored"


def test_only_the_encoder_learns_in_its_phase(opt: Options, make_model: Make, views: Tensor, step: Step) -> None:
    model = make_model(opt)
    parts = [model.net_g.encoder, model.bare_moco.projection_q, model.net_g.backbone]
    for iteration in (1, 2, 3):
        before = [snapshot(part) for part in parts]
        step(model, views, iteration)
        encoder, projection, backbone = (moved(part, then) for part, then in zip(parts, before, strict=True))
        assert any(encoder), iteration
        assert all(projection), iteration
        restored = {"l_pix"} if iteration == 3 else set()
        assert set(model.get_current_log()) == FIGURES | {"l_contrast"} | restored
        assert any(backbone) == (iteration == 3), iteration


def test_the_key_side_follows_after_the_step(opt: Options, make_model: Make, views: Tensor, step: Step) -> None:
    model = make_model(opt)
    moco, encoder = model.bare_moco, model.net_g.encoder
    pairs = [(moco.key_encoder, encoder), (moco.projection_k, moco.projection_q)]
    for key_side, trained in pairs:
        assert not any(moved(key_side, snapshot(trained)))
    for iteration in (1, 2, 3):
        before = [snapshot(key_side) for key_side, _ in pairs]
        step(model, views, iteration)
        for (key_side, trained), then in zip(pairs, before, strict=True):
            for key, old, new in zip(key_side.parameters(), then, trained.parameters(), strict=True):
                assert torch.allclose(key, 0.9 * old + 0.1 * new, atol=1e-7)
        assert int(moco.queue_filled) == 4 * iteration
        assert torch.equal(moco.queue[:, 4 * (iteration - 1) : 4 * iteration], model.keys[:, 0].T)


def trace(model: Any, first: int, last: int) -> list[float]:
    """The learning rates of some iterations."""
    rates = []
    for iteration in range(first, last + 1):
        model.update_learning_rate(iteration, warmup_iter=model.opt["train"].get("warmup_iter", -1))
        model.optimizer_g.step()
        (rate,) = model.get_current_learning_rate()
        rates.append(rate)
    return rates


def with_schedule(opt: Options, warmup: int = -1) -> Options:
    opt["train"] |= {"total_iter": 20, "warmup_iter": warmup}
    opt["train"]["encoder_phase"] = {"iters": 5, "lr": 0.5, "milestones": [2, 4], "gamma": 0.1}
    opt["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [4, 8], "gamma": 0.5}
    return opt


def test_learning_rates_of_phase_and_schedule(opt: Options, make_model: Make) -> None:
    rates = trace(make_model(with_schedule(opt)), 1, 16)
    assert rates[:5] == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])
    assert rates[5:] == pytest.approx([0.002] * 4 + [0.001] * 4 + [0.0005] * 3)


@pytest.mark.parametrize("warmup", [-1, 3])
@pytest.mark.parametrize("scheduler", ["MultiStepLR", "CosineAnnealingRestartLR"])
def test_after_the_phase_rates_are_srmodels_from_the_start(
    opt: Options, make_model: Make, warmup: int, scheduler: str
) -> None:
    with_schedule(opt, warmup)
    if scheduler != "MultiStepLR":
        opt["train"]["scheduler"] = {"type": scheduler, "periods": [20], "restart_weights": [1], "eta_min": 1e-5}
    ours = trace(make_model(opt), 1, 16)
    stock = trace(make_model({**opt, "model_type": "SRModel"}), 1, 11)
    assert ours[5:] == stock
    assert len({*stock}) >= 3


@pytest.mark.parametrize("stop", [3, 5, 6, 7, 10])
def test_a_resumed_run_goes_on_with_the_rates(opt: Options, make_model: Make, stop: int) -> None:
    with_schedule(opt, warmup=3)
    whole = trace(make_model(opt), 1, 16)
    stopped = make_model(opt)
    trace(stopped, 1, stop)
    state = {
        "optimizers": [optimiser.state_dict() for optimiser in stopped.optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in stopped.schedulers],
    }
    resumed = make_model(opt)
    resumed.resume_training(state)
    assert trace(resumed, stop + 1, 16) == whole[stop:]


def test_without_a_phase_everything_learns_from_the_first_step(
    opt: Options, make_model: Make, views: Tensor, step: Step
) -> None:
    opt["train"]["encoder_phase"] = None
    model = make_model(opt)
    step(model, views, 1)
    assert "l_pix" in model.get_current_log()
    assert model.get_current_learning_rate() == [0.002]


def test_networks_that_do_not_fit_are_refused(opt: Options, make_model: Make) -> None:
    def refused(changes: Options, message: str) -> None:
        with pytest.raises(BSRError, match=message):
            make_model({**opt, **changes})

    small = {**opt["network_g"], "encoder_num_feat": 4}
    refused({"network_g": small}, r"^network_moco.encoder: builds another network than the encoder")
    stock = {"type": "MSRResNet", "num_feat": 4, "num_block": 1}
    refused({"network_g": stock}, r"^network_g.type: 'MSRResNet', expected a network with an encoder")
    refused({"network_moco": stock}, r"^network_moco.type: 'MSRResNet', expected 'MoCo'")
    tight = {**opt["network_moco"], "queue_size": 7}
    refused(
        {"network_moco": tight, "world_size": 2},
        r"^network_moco.queue_size: 7, expected at least 8, the keys of one step",
    )
    make_model({**opt, "network_moco": tight})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("train", "sigma_alignment", "keep"), 1, "train.sigma_alignment.keep: 1, expected a whole number at least 2"),
        (("train", "sigma_alignment", "keep"), 4, "datasets.train.num_views: 3, expected at least train.sigma_"),
        (
            ("train", "sigma_alignment", "max_std"),
            -1,
            "train.sigma_alignment.max_std: -1, expected a number at least 0, or",
        ),
        (("train", "sigma_alignment", "max_sd"), 1, "train.sigma_alignment.max_sd: unknown key, .* mean 'max_std'"),
        (("train", "encoder_phase", "iters"), 5, r"train.encoder_phase.iters: 5, expected a whole number in \[0, 4\]"),
        (("train", "encoder_phase", "lr"), "fast", "train.encoder_phase.lr: 'fast', expected a number"),
        (("train", "encoder_phase", "milestones"), 3, "train.encoder_phase.milestones: 3, expected a list"),
        (("train", "encoder_phase"), 3, "train.encoder_phase: 3, expected a block of keys, or null"),
        (("train", "contrastive_opt"), None, "train.contrastive_opt: the block is missing, AACLModel needs it"),
        (("network_moco",), None, "network_moco: the block is missing, AACLModel needs it"),
        (("datasets", "train", "degrade_on"), "worker", "degradation: the block is given, but .* 'worker'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    opt: Options, make_model: Make, place: tuple[str, ...], value: object, message: str
) -> None:
    block = opt
    for key in place[:-1]:
        block = block[key]
    block[place[-1]] = value
    with pytest.raises(OptionError, match=message):
        make_model(opt)
