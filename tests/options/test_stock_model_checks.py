"""What BasicSR's own models cannot do, and what classes of others may: said, or not said, at start-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from basicsr.losses.basic_loss import L1Loss
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import LOSS_REGISTRY, MODEL_REGISTRY

from tests.options.stock_options import gan, stock

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

Run = Callable[..., "Outcome"]


@pytest.fixture
def options(redsr_options: Options, paired: Options) -> Options:
    return stock(redsr_options, paired)


def refused(outcome: Outcome) -> str:
    """The one line with which a run was refused."""
    assert outcome.status == 2, outcome.output
    (line,) = (line for line in outcome.output.splitlines() if not line.startswith("Name "))  # BasicSR's registries
    return line


def test_a_gan_needs_its_loss(options: Options, in_process: Run) -> None:
    gan(options)["train"]["gan_opt"] = None
    assert "train.gan_opt: the block is missing, SRGANModel needs it" in refused(
        in_process("train", options, "--check")
    )


def test_a_discriminator_takes_the_patches(options: Options, in_process: Run) -> None:
    gan(options)["network_d"] = {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4, "input_size": 128}
    line = refused(in_process("train", options, "--check"))
    assert "network_d: cannot be run on an image of 32x32 pixels" in line


@pytest.mark.parametrize("model", [RealESRNetModel, RealESRGANModel])
def test_models_with_cuda_in_their_code_need_it(options: Options, in_process: Run, model: type) -> None:
    gan(options) if model is RealESRGANModel else None
    line = refused(in_process("train", options | {"model_type": f"{model.__name__}_basicsr"}, "--check"))
    assert f"num_gpu: 0, expected a CUDA device, without which {model.__name__} does not run" in line


class TameModel(RealESRNetModel):  # type: ignore[misc]  # BasicSR carries no annotations
    """Has nothing of its base but the name."""

    __init__ = SRModel.__init__
    feed_data = SRModel.feed_data
    nondist_validation = SRModel.nondist_validation


def test_a_model_that_replaces_that_code_needs_nothing_of_it(options: Options, in_process: Run) -> None:
    MODEL_REGISTRY.register(TameModel)
    try:
        outcome = in_process("train", options | {"model_type": "TameModel"}, "--check")
    finally:
        del MODEL_REGISTRY._obj_map["TameModel"]
    assert outcome.status == 0, outcome.output


@pytest.mark.parametrize(
    ("optimiser", "expected"),
    [
        ({"eps": "small"}, "train.optim_g.eps: 'small', expected a number"),
        ({"betas": 0.9}, "train.optim_g.betas: 0.9, expected a list, each a number"),
    ],
)
def test_values_of_an_optimiser(options: Options, in_process: Run, optimiser: Options, expected: str) -> None:
    options["train"]["optim_g"] |= optimiser
    assert expected in refused(in_process("train", options, "--check"))


def test_text_for_a_number_is_named(options: Options, in_process: Run) -> None:
    options["network_g"]["num_feat"] = "eight"
    assert "with num_feat: 'eight', expected numbers" in refused(in_process("train", options, "--check"))


def test_a_plain_state_dict_has_nothing_for_ema(options: Options, in_process: Run, project: Project) -> None:
    from basicsr.archs.srresnet_arch import MSRResNet

    file = project.root / "plain.pth"
    torch.save(MSRResNet(num_feat=4, num_block=1, upscale=2).state_dict(), file)
    options["path"] |= {"pretrain_network_g": str(file), "param_key_g": None}
    assert "path.param_key_g: null and train.ema_decay: 0" in refused(in_process("train", options, "--check"))
    options["train"] |= {"ema_decay": 0, "total_iter": 1}
    assert in_process("train", options).status == 0


class WeightedLoss(L1Loss):  # type: ignore[misc]
    """A loss of somebody else's, whose weight is a list."""

    def __init__(self, loss_weight: list[float]) -> None:
        super().__init__(sum(loss_weight))


def test_classes_of_others_give_keys_their_own_meaning(
    options: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: dict[str, Any] = LOSS_REGISTRY._obj_map
    monkeypatch.setitem(registered, "WeightedLoss", WeightedLoss)
    options["train"]["pixel_opt"] = {"type": "WeightedLoss", "loss_weight": [0.5, 0.5]}
    options["datasets"]["train"]["name"] = "DF2K/OST"
    outcome = in_process("train", options, "--check")
    assert outcome.status == 0, outcome.output


def test_a_test_without_images_needs_no_suffix(options: Options, in_process: Run, project: Project) -> None:
    assert in_process("train", options).status == 0
    testing = {key: options[key] for key in ("name", "model_type", "scale", "num_gpu", "manual_seed", "network_g")}
    testing |= {"datasets": {"test": options["datasets"]["val"]}, "val": {**options["val"]}}
    for key in ("suffix", "val_freq"):
        testing["val"].pop(key, None)
    checkpoint = project.root / "experiments" / "tiny" / "models" / "net_g_latest.pth"
    testing["path"] = {"pretrain_network_g": str(checkpoint)}
    assert in_process("test", testing).status == 0
