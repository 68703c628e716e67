"""Training patches under a degradation that changes what is to be reproduced."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.data import build_dataset

from bsr_plugins.degradations import SecondOrderDegradation
from bsr_plugins.seeding import generator_at
from tests.data.test_paired_degradation_dataset import train


def item(usm: bool) -> dict[str, Any]:
    options = train(degradation={"type": "SecondOrderDegradation", "usm": usm}, gt_size=96, seed=3)
    made: dict[str, Any] = build_dataset(options)[0]
    return made


def test_a_worker_sharpens_what_is_reproduced_and_degraded() -> None:
    plain, sharpened = item(usm=False), item(usm=True)
    degradation = SecondOrderDegradation(4)
    expected = degradation.target(plain["gt"][None])[0]
    assert (sharpened["gt"] - expected).abs().max() < 1e-6
    assert (expected - plain["gt"]).abs().max() > 0.01
    params = degradation.sample(1, generator_at(3, "degradation", 0, 0))
    assert torch.equal(sharpened["lq"], degradation(sharpened["gt"][None], params)[0])
    assert not torch.equal(sharpened["lq"], plain["lq"])
