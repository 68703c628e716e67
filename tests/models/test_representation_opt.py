"""`train.representation_opt`: a loss on the representations that any `RepresentationNet` gives, in a plain model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from skimage import data
from torch import Tensor

from bsr_plugins.errors import OptionError
from bsr_plugins.losses import EnergyDistanceLoss, KLDivergenceLoss, RepresentationLoss
from bsr_plugins.seeding import generator_at

if TYPE_CHECKING:
    from tests.conftest import Options

Make = Callable[..., Any]
Step = Callable[[Any, Tensor, int], None]
FIGURES = {"representation_mean", "representation_std"}
NETWORKS: dict[str, dict[str, Any]] = {
    "AACLNet": {"num_feat": 4, "num_group": 1, "num_block": 1, "encoder_num_feat": 2},
    "DASR": {"num_feat": 4, "num_group": 1, "num_block": 1, "reduction": 2, "encoder_num_feat": 2},
    "ReDSR": {
        "num_feat": 4,
        "num_group": 1,
        "num_block": 1,
        "reduction": 2,
        "encoder": {"type": "ReDSREncoder", "num_feat": 2, "representation_dim": 5},
    },
}
LOSSES: dict[str, tuple[dict[str, Any], RepresentationLoss]] = {
    "gaussian": ({"type": "EnergyDistanceLoss", "num_samples": 9}, EnergyDistanceLoss(num_samples=9)),
    "uniform": (
        {"type": "EnergyDistanceLoss", "distribution": "uniform", "loss_weight": 1.0},
        EnergyDistanceLoss(1.0, "uniform"),
    ),
    "kl": ({"type": "KLDivergenceLoss"}, KLDivergenceLoss()),
}


@pytest.fixture
def opt(redsr_options: Options, as_read: Callable[[Options], Options]) -> Options:
    """The options of a plain `BlindSRModel`; the loss and its network have still to be chosen."""
    del redsr_options["network_degrader"]
    del redsr_options["train"]["redegradation_opt"], redsr_options["train"]["representation_opt"]
    redsr_options["train"]["pixel_opt"] = {"type": "L1Loss"}
    redsr_options["model_type"] = "BlindSRModel"
    return as_read(redsr_options)


@pytest.fixture
def views() -> Tensor:
    """HR views (3, 2, 3, 48, 48) of a photograph."""
    photograph = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1).float() / 255
    return torch.stack([photograph[:, 60 * n : 60 * n + 48, 50 * n : 50 * n + 48] for n in range(6)]).view(
        3, 2, 3, 48, 48
    )


def choose(opt: Options, network: str, loss: str | None) -> Options:
    opt["network_g"] = {"type": network, "upscale": 2, **NETWORKS[network]}
    if loss is not None:
        opt["train"]["representation_opt"] = LOSSES[loss][0]
    return opt


def losses_of(model: Any, gt: Tensor, iteration: int = 3) -> dict[str, Tensor]:
    """Prepare a batch and compute the losses, as a step does."""
    model.current_iter, model.figures = iteration, {}
    model.prepare_batch(*model.degrade(gt))
    found: dict[str, Tensor] = model.compute_losses()
    return found


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_takes_every_loss(
    opt: Options, make_model: Make, views: Tensor, step: Step, network: str, loss: str
) -> None:
    model = make_model(choose(opt, network, loss))
    losses = losses_of(model, views)
    assert model.lq.shape == (6, 3, 24, 24), "every view is a sample"
    representation = model.net_g.encode(model.lq)
    expected = LOSSES[loss][1](representation, generator_at(10, "representation_opt", 3))
    assert set(losses) == {"l_pix", "l_representation"}
    assert losses["l_representation"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses["l_pix"].item() == pytest.approx((model.output - model.gt).abs().mean().item(), rel=1e-6)
    assert set(model.figures) == FIGURES
    centred = representation - representation.mean(dim=0)
    spread = centred.square().mean(dim=0).sqrt().mean()
    assert model.figures["representation_mean"].item() == pytest.approx(
        representation.mean().item(), rel=1e-3, abs=1e-6
    )
    assert model.figures["representation_std"].item() == pytest.approx(spread.item(), rel=1e-3)
    assert not any(figure.requires_grad for figure in model.figures.values())
    step(model, views, 3)
    assert set(model.get_current_log()) == set(losses) | FIGURES


def test_its_gradient_reaches_the_encoder_and_nothing_else(opt: Options, make_model: Make, views: Tensor) -> None:
    model = make_model(choose(opt, "ReDSR", "gaussian"))
    losses_of(model, views)["l_representation"].backward()
    for name, parameter in model.net_g.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        if parameter.numel() > 1 or not name.startswith("encoder."):  # a slope may see nothing below 0
            assert reached == name.startswith("encoder."), name


def test_without_the_block_there_is_nothing_of_it(opt: Options, make_model: Make, views: Tensor, step: Step) -> None:
    model = make_model(choose(opt, "ReDSR", None))
    assert set(model.losses) == {"pixel_opt"}
    step(model, views, 1)
    assert set(model.get_current_log()) == {"l_pix"}


def test_samples_are_those_of_seed_and_iteration_on_every_rank(opt: Options, make_model: Make) -> None:
    def value(iteration: int = 3, **changes: Any) -> float:
        model = make_model(opt)
        model.opt |= changes
        model.current_iter, model.figures = iteration, {}
        representation = torch.linspace(-2, 2, 20).view(4, 5)
        return float(model.losses_of({"representation": representation})["l_representation"])

    choose(opt, "ReDSR", "gaussian")
    assert value() == value()
    assert value(rank=1) == value(), "all ranks take the distance to the same samples"
    assert value(iteration=4) != value()
    assert value(manual_seed=11) != value()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("InfoNCELoss", "'InfoNCELoss' wants 'query', expected among what BlindSRModel's step offers: features, gener"),
        ("EnergyDistanceLos", "unknown name 'EnergyDistanceLos', .*did you mean 'EnergyDistanceLoss'"),
    ],
)
def test_a_loss_that_the_step_cannot_serve_is_refused(opt: Options, make_model: Make, kind: str, expected: str) -> None:
    choose(opt, "ReDSR", None)["train"]["representation_opt"] = {"type": kind}
    with pytest.raises(OptionError, match=rf"^train\.representation_opt\.type: {expected}"):
        make_model(opt)


def test_a_network_without_a_representation_is_refused(opt: Options, make_model: Make) -> None:
    choose(opt, "ReDSR", "gaussian")["network_g"] = {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 2}
    with pytest.raises(OptionError, match=r"^network_g\.type: 'MSRResNet' gives no representation, expected one that"):
        make_model(opt)
    del opt["train"]["representation_opt"]
    make_model(opt)
