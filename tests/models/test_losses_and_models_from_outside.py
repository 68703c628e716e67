"""A loss and a model from outside the package: one file and one block or key each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from bsr_plugins.errors import OptionError
from tests.helpers.examples import load_example

if TYPE_CHECKING:
    from tests.conftest import Options

Make = Callable[..., Any]
Step = Callable[[Any, Tensor, int], None]


def test_a_loss_is_its_file_and_its_block(opt: Options, make_model: Make, views: Tensor, step: Step) -> None:
    """In AACL, whose encoder learns alone at first."""
    edge_loss = load_example("edge_loss")
    opt["train"]["edge_opt"] = {"type": "EdgeLoss", "loss_weight": 0.5}
    model = make_model(opt)
    assert isinstance(model.losses["edge_opt"].module, edge_loss.EdgeLoss)
    step(model, views, 1)
    assert "l_edge" not in model.get_current_log()
    step(model, views, 3)
    log = model.get_current_log()
    expected, figures = edge_loss.EdgeLoss(0.5)(model.output.detach(), model.gt)
    assert log["l_edge"] == pytest.approx(float(expected), rel=1e-6)
    assert log["edge_sharpness"] == pytest.approx(float(figures["sharpness"]), rel=1e-6)
    assert {"l_pix", "l_contrast"} < set(log)


def test_a_model_is_its_file_and_its_key(blind_opt: Options, make_model: Make, views: Tensor, step: Step) -> None:
    noisy_model = load_example("noisy_model")
    plain = make_model(blind_opt)
    blind_opt |= {"model_type": "NoisyModel"}
    silent = make_model(blind_opt)
    blind_opt["train"]["lq_noise"] = 0.1
    model = make_model(blind_opt)
    assert isinstance(model, noisy_model.NoisyModel)
    for each in (plain, silent, model):
        step(each, views, 1)
    assert torch.equal(silent.lq, plain.lq)
    difference = model.lq - plain.lq
    assert float(difference.std()) == pytest.approx(0.1, rel=0.05)
    assert model.get_current_log()["lq_noise"] == pytest.approx(float(difference.std()), rel=1e-3)
    assert set(model.get_current_log()) == {"l_pix", "lq_noise"}
    blind_opt["train"]["lq_noise"] = 2
    with pytest.raises(OptionError, match=r"^train\.lq_noise: 2, expected a number in \[0, 1\]$"):
        make_model(blind_opt)
