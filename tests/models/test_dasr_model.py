"""DASRModel: which view is what, its losses by hand, the encoder's phase, the energy distance as a block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from skimage import data
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.losses import EnergyDistanceLoss, InfoNCELoss
from bsr_plugins.seeding import generator_at
from tests.models.stepping import moved, prepare, snapshot

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome

Make = Callable[..., Any]
Step = Callable[[Any, Tensor, int], None]
CONTRAST_FIGURES = {"contrast_accuracy", "embedding_spread"}
SPREAD, SPREAD_FIGURES = {"l_representation"}, {"representation_mean", "representation_std"}
ENERGY_DISTANCE = {"type": "EnergyDistanceLoss", "loss_weight": 0.01, "num_samples": 16}


@pytest.fixture
def opt(dasr_options: Options, as_read: Callable[[Options], Options]) -> Options:
    """The options of a tiny DASR run; a test may change them."""
    return as_read(dasr_options)


def test_the_first_view_is_the_query_and_the_second_its_key(opt: Options, make_model: Make, pairs: Tensor) -> None:
    model = make_model(opt)
    lq = prepare(model, pairs, 3)
    for name, expected in {"lq": lq[:, 0], "gt": pairs[:, 0], "key_lq": lq[:, 1]}.items():
        assert torch.equal(getattr(model, name), expected), name

    seen: dict[str, Tensor] = {}
    for name, encoder in (("query", model.net_g.encoder), ("key", model.bare_moco.key_encoder)):
        encoder.register_forward_pre_hook(lambda _module, args, name=name: seen.update({name: args[0]}))
    model.compute_losses()
    assert torch.equal(seen["query"], lq[:, 0])
    assert torch.equal(seen["key"], lq[:, 1])


def test_losses_by_name_are_those_by_hand(opt: Options, make_model: Make, pairs: Tensor) -> None:
    opt["train"]["representation_opt"] = ENERGY_DISTANCE
    model = make_model(opt)
    lq = prepare(model, pairs, 3)
    losses = model.compute_losses()
    moco = model.bare_moco

    representation = model.net_g.encode(lq[:, 0])
    query = nn.functional.normalize(moco.projection_q(representation), dim=1)
    keys = nn.functional.normalize(moco.projection_k(moco.key_encoder(lq[:, 1])), dim=1)
    logits = torch.cat([(query * keys).sum(dim=1, keepdim=True), query @ moco.queue], dim=1) / 0.07
    samples = generator_at(10, "representation_opt", 3)
    expected = {
        "l_contrast": 0.1 * (logits.logsumexp(dim=1) - logits[:, 0]).mean(),
        "l_pix": (model.net_g.restore(lq[:, 0], representation) - pairs[:, 0]).abs().mean(),
        "l_representation": EnergyDistanceLoss(0.01, num_samples=16)(representation, samples),
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_only_the_encoder_learns_in_its_phase(opt: Options, make_model: Make, pairs: Tensor, step: Step) -> None:
    model = make_model(opt)
    parts = [model.net_g.encoder, model.bare_moco.projection_q, model.net_g.compress, model.net_g.generator]
    for iteration in (1, 2, 3):
        before = [snapshot(part) for part in parts]
        step(model, pairs, iteration)
        encoder, projection, *rest = (moved(part, then) for part, then in zip(parts, before, strict=True))
        assert any(encoder), iteration
        assert all(projection), iteration
        for part in rest:
            assert any(part) == (iteration == 3), iteration
        restored = {"l_pix"} if iteration == 3 else set()
        assert set(model.get_current_log()) == CONTRAST_FIGURES | {"l_contrast"} | restored
        assert model.get_current_learning_rate() == [0.002 if iteration == 3 else 0.001]


def test_the_key_side_follows_and_the_queue_fills(opt: Options, make_model: Make, pairs: Tensor, step: Step) -> None:
    model = make_model(opt)
    moco, encoder = model.bare_moco, model.net_g.encoder
    assert not any(moved(moco.key_encoder, snapshot(encoder)))
    for iteration in (1, 2, 3):
        before = snapshot(moco.key_encoder)
        step(model, pairs, iteration)
        for key, old, new in zip(moco.key_encoder.parameters(), before, encoder.parameters(), strict=True):
            assert torch.allclose(key, 0.9 * old + 0.1 * new, atol=1e-7)
        assert int(moco.queue_filled) == 4 * iteration
        assert torch.equal(moco.queue[:, 4 * (iteration - 1) : 4 * iteration], model.keys.T)


def test_encoder_and_key_encoder_see_one_range(opt: Options, make_model: Make) -> None:
    model = make_model(opt)
    assert model.net_g.encoder.img_range == model.bare_moco.key_encoder.img_range == 255
    opt["network_moco"]["encoder"]["img_range"] = 1.0
    with pytest.raises(BSRError, match=r"^network_moco\.encoder\.img_range: 1\.0, expected 255\.0, as in the encoder"):
        make_model(opt)


def test_the_energy_distance_is_a_block_in_both_phases(
    opt: Options, make_model: Make, pairs: Tensor, step: Step
) -> None:
    """DASR + ED loss of ReDSR's Table 4."""
    plain = make_model(opt)
    opt["train"]["representation_opt"] = ENERGY_DISTANCE
    bounded = make_model(opt)
    assert isinstance(bounded.losses["representation_opt"].module, EnergyDistanceLoss)
    for iteration in (1, 2, 3):
        for model in (plain, bounded):
            step(model, pairs, iteration)
        more = set(bounded.get_current_log()) - set(plain.get_current_log())
        assert more == SPREAD | SPREAD_FIGURES, iteration
        assert bounded.get_current_log()["l_representation"] > 0
    pair = [model.net_g.encoder.get_parameter("features.15.weight") for model in (plain, bounded)]
    assert not torch.equal(*pair), "it has an effect"


def test_aacl_takes_the_energy_distance_too(
    aacl_options: Options, as_read: Callable[[Options], Options], make_model: Make, step: Step
) -> None:
    opt = as_read(aacl_options)
    opt["train"]["representation_opt"] = ENERGY_DISTANCE
    model = make_model(opt)
    photograph = torch.from_numpy(data.coffee().copy()).permute(2, 0, 1).float() / 255
    views = torch.stack([photograph[:, 20 * n : 20 * n + 64, 30 * n : 30 * n + 64] for n in range(12)])
    for iteration in (1, 3):
        step(model, views.view(4, 3, 3, 64, 64), iteration)
        log = model.get_current_log()
        assert set(log) >= SPREAD | SPREAD_FIGURES | {"l_contrast"}
        assert ("l_pix" in log) == (iteration == 3)
        assert log["l_representation"] > 0


def test_validation_does_not_wait_for_other_ranks(
    opt: Options, make_model: Make, pairs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only rank 0 validates; DDP's forward pass would share the buffers of batch normalisation with all."""
    opt["train"]["ema_decay"] = 0
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = make_model(opt | {"dist": True})
        assert isinstance(model.net_g, DistributedDataParallel)
        monkeypatch.setattr(DistributedDataParallel, "forward", None)
        model.feed_data({"lq": pairs[:1, 0], "gt": pairs[:1, 0]})
        model.test()
    finally:
        distributed.destroy_process_group()
    assert model.output.shape == (1, 3, 96, 96)
    assert model.bare_net_g.training


def test_a_run_through_the_pipeline(dasr_options: Options, in_process: Callable[..., Outcome], tmp_path: Path) -> None:
    dasr_options["train"]["representation_opt"] = ENERGY_DISTANCE
    outcome = in_process("train", dasr_options)
    assert outcome.status == 0, outcome.output
    for line in ("iter:       4", "l_pix: ", "l_contrast: ", "l_representation: ", "# psnr: "):
        assert line in outcome.output
    models = tmp_path / "experiments" / "tiny" / "models"
    assert {file.name for file in models.iterdir()} >= {"net_g_latest.pth", "net_moco_latest.pth"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda opt: opt["datasets"]["train"].update(num_views=3),
            "datasets.train.num_views: 3, expected 2, a query and its positive",
        ),
        (lambda opt: opt["datasets"]["train"].update(num_views=None), "datasets.train.num_views: 1, expected 2"),
        (lambda opt: opt.update(network_moco=None), "network_moco: the block is missing, DASRModel needs it"),
        (lambda opt: opt["train"].pop("contrastive_opt"), "train.contrastive_opt: the block is missing, DASRModel"),
        (lambda opt: opt["train"]["encoder_phase"].update(iters=5), "train.encoder_phase.iters: 5, expected"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    opt: Options, make_model: Make, change: Callable[[Options], Any], message: str
) -> None:
    change(opt)
    with pytest.raises(OptionError, match=message):
        make_model(opt)


def test_the_contrast_is_infonce(opt: Options, make_model: Make) -> None:
    loss = make_model(opt).losses["contrastive_opt"].module
    assert isinstance(loss, InfoNCELoss)
    assert loss.temperature == 0.07, "DASR's"
