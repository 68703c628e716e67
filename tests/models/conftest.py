"""Models and batches outside a pipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from basicsr.models import build_model
from skimage import data
from torch import Tensor

if TYPE_CHECKING:
    from tests.conftest import Options


@pytest.fixture
def opt(aacl_options: Options, tmp_path: Path) -> Options:
    """The options of a tiny AACL run, with what BasicSR adds when it reads them; a test may change them."""
    aacl_options["path"] |= {"experiments_root": str(tmp_path), "models": str(tmp_path)}
    aacl_options["path"] |= {"training_states": str(tmp_path)}
    for phase, block in aacl_options["datasets"].items():
        block |= {"phase": phase, "scale": 4}
    aacl_options |= {"is_train": True, "dist": False, "rank": 0, "world_size": 1, "auto_resume": False}
    return aacl_options


@pytest.fixture
def blind_opt(opt: Options) -> Options:
    """The same for a `BlindSRModel` with a small MSRResNet."""
    del opt["network_moco"]
    for key in ("encoder_phase", "sigma_alignment", "contrastive_opt"):
        del opt["train"][key]
    opt["network_g"] = {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 4}
    opt["model_type"] = "BlindSRModel"
    return opt


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """Build the model of some options, as BasicSR's trainer does after it has set the seed."""

    def make(options: Options) -> Any:
        torch.manual_seed(options["manual_seed"])
        return build_model(copy.deepcopy(options))

    return make


@pytest.fixture
def views() -> Tensor:
    """HR views (4, 3, 3, 64, 64) of a photograph, from everywhere in it."""
    photograph = torch.from_numpy(np.ascontiguousarray(data.astronaut().transpose(2, 0, 1))).float() / 255
    cut = [photograph[:, top : top + 64, left : left + 64] for top in (0, 150, 300, 448) for left in (30, 200, 420)]
    return torch.stack(cut).view(4, 3, 3, 64, 64)


@pytest.fixture
def step() -> Callable[[Any, Tensor, int], None]:
    """Do one training step on views, as BasicSR's trainer does."""

    def do(model: Any, gt: Tensor, iteration: int) -> None:
        model.update_learning_rate(iteration, warmup_iter=model.opt["train"].get("warmup_iter", -1))
        model.feed_data({"gt": gt, "gt_path": ["x"] * len(gt)})
        model.optimize_parameters(iteration)

    return do


@pytest.fixture
def pairs() -> Tensor:
    """Two HR views of four photographs each (4, 2, 3, 48, 48), all different."""
    photograph = torch.from_numpy(np.ascontiguousarray(data.astronaut().transpose(2, 0, 1))).float() / 255
    cut = [photograph[:, top : top + 48, left : left + 48] for top in (0, 150, 300, 448) for left in (30, 200)]
    return torch.stack(cut).view(4, 2, 3, 48, 48)
