"""The check of what BasicSR's trainer reads: whether an epoch has a batch, and what is not built for trial."""

from __future__ import annotations

from typing import Any

import pytest
from basicsr.losses import basic_loss
from basicsr.models.sr_model import SRModel
from hypothesis import given, settings
from hypothesis import strategies as st

from bsr_plugins.data.positions import RunSampler
from bsr_plugins.errors import OptionError
from bsr_plugins.options.datasets import check_epochs
from bsr_plugins.options.faults import Faults
from bsr_plugins.options.trials import check_train


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 40), st.sampled_from([0.5, 1, 3]), st.integers(1, 16), st.integers(1, 3))
def test_epochs_without_a_batch_are_refused(images: int, ratio: float, batch: int, ranks: int) -> None:
    dataset_opt = {"batch_size_per_gpu": batch, "dataset_enlarge_ratio": ratio}
    if RunSampler(images, ranks, 0, 0, ratio, batch).batches_per_epoch:
        check_epochs("datasets.train", dataset_opt, images, ranks)
    else:
        with pytest.raises(OptionError, match=rf"batch_size_per_gpu: {batch * ranks} in all, expected at most"):
            check_epochs("datasets.train", dataset_opt, images, ranks)


def checked(train: dict[str, Any], model: type) -> tuple[str, ...]:
    faults = Faults("x.yml")
    check_train({"train": train}, model, faults)
    return faults.lines


def test_a_perceptual_loss_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise AssertionError("the weights of a large network are read")

    monkeypatch.setattr(basic_loss, "VGGFeatureExtractor", fail)
    block = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_type": "vgg19"}
    train = {"total_iter": 1, "perceptual_opt": block, "optim_g": {"type": "Adam", "lr": 0.1}}
    train["scheduler"] = {"type": "MultiStepLR", "milestones": [1]}
    assert checked(train, SRModel) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vgg_type": "vgg20"}, "train.perceptual_opt.vgg_type: unknown name 'vgg20'"),
        ({"layer_weights": {}}, "train.perceptual_opt.layer_weights: {}, expected layers with their weights"),
        ({"layer_weights": {"conv5_5": 1}}, "train.perceptual_opt.layer_weights: unknown name 'conv5_5'"),
        (
            {"layer_weights": {"conv5_4": "x"}},
            "train.perceptual_opt.layer_weights.conv5_4: 'x', expected a number",
        ),
        ({"criterion": "l2"}, "train.perceptual_opt.criterion: unknown name 'l2', expected one of l1, fro"),
        ({"style_weight": -1}, "train.perceptual_opt.style_weight: -1, expected a number at least 0"),
        ({"range_norm": 1}, "train.perceptual_opt.range_norm: 1, expected true or false"),
    ],
)
def test_a_perceptual_loss_that_could_not_be_built(changes: dict[str, Any], message: str) -> None:
    block = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, **changes}
    train = {"total_iter": 1, "perceptual_opt": block, "optim_g": {"type": "Adam", "lr": 0.1}}
    (line,) = checked(train | {"scheduler": {"type": "MultiStepLR", "milestones": [1]}}, SRModel)
    assert line.startswith(f"x.yml: {message}")


def test_a_model_with_optimisers_of_its_own_is_left_alone() -> None:
    class OwnOptimiser(SRModel):  # type: ignore[misc]  # BasicSR carries no annotations
        def get_optimizer(self, *_: object) -> None:
            """Take any optimiser."""

    train = {"total_iter": 1, "pixel_opt": {"type": "L1Loss"}, "optim_g": None}
    train["scheduler"] = {"type": "MultiStepLR", "milestones": [1]}
    assert checked(train, OwnOptimiser) == ()
    assert checked(train, SRModel) == ("x.yml: train.optim_g: expected a block with the key 'type', got None",)
