"""The check of what BasicSR's trainer reads: how far its epochs go, and what is not built for trial."""

from __future__ import annotations

import math
from typing import Any

import pytest
from basicsr.losses import basic_loss
from basicsr.models.sr_model import SRModel
from hypothesis import given, settings
from hypothesis import strategies as st

from bsr_plugins.engine.train_options import check_epochs, check_train_options
from bsr_plugins.errors import OptionError


def iterations(images: int, ratio: int, batch: int, ranks: int, total: int) -> int:
    """Count the iterations of BasicSR's training loop by going through it."""
    per_epoch = math.ceil(images * ratio / (batch * ranks))
    done = 0
    for _epoch in range(math.ceil(total / per_epoch) + 1):
        done = min(done + math.ceil(images * ratio / ranks) // batch, total)
    return done


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 16), st.integers(1, 3), st.integers(1, 60))
def test_a_run_is_refused_when_its_epochs_end_early(
    images: int, ratio: int, batch: int, ranks: int, total: int
) -> None:
    train = {"batch_size_per_gpu": batch, "dataset_enlarge_ratio": ratio}
    opt: dict[str, Any] = {"datasets": {"train": train}, "train": {"total_iter": total}, "world_size": ranks}
    done = iterations(images, ratio, batch, ranks, total)
    if done == total:
        check_epochs(images, "datasets.train", opt)
    else:
        with pytest.raises(OptionError, match=f"end the run after {done} of {total} iterations"):
            check_epochs(images, "datasets.train", opt)


def test_the_case_of_twelve_images() -> None:
    """Measured with BasicSR 1.4.2: 12 images, batch 8, 20 iterations stop at 11."""
    assert iterations(12, 1, 8, 1, 20) == 11


def test_a_perceptual_loss_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise AssertionError("the weights of a large network are read")

    monkeypatch.setattr(basic_loss, "VGGFeatureExtractor", fail)
    block = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_type": "vgg19"}
    train = {"total_iter": 1, "perceptual_opt": block, "optim_g": {"type": "Adam", "lr": 0.1}}
    check_train_options({**train, "scheduler": {"type": "MultiStepLR", "milestones": [1]}}, SRModel)


def test_a_model_with_optimisers_of_its_own_is_left_alone() -> None:
    class OwnOptimiser(SRModel):  # type: ignore[misc]  # BasicSR carries no annotations
        def get_optimizer(self, *_: object) -> None:
            """Take any optimiser."""

    train = {"total_iter": 1, "pixel_opt": {"type": "L1Loss"}, "optim_g": {"type": "Lion", "lr": 0.1}}
    train["scheduler"] = {"type": "MultiStepLR", "milestones": [1]}
    check_train_options(train, OwnOptimiser)
    with pytest.raises(OptionError, match=r"train.optim_g.type: unknown name 'Lion'"):
        check_train_options(train, SRModel)
