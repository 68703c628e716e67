"""Alignment and dropout that a run would not do, and networks of another scale: refused before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Options
    from tests.options.test_bad_options import Run

RRDB = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "num_grow_ch": 2}


def stock(options: Options) -> None:
    """Turn the options into those of BasicSR's own model."""
    options["model_type"] = "SRModel"
    options["network_g"] = dict(RRDB)
    del options["network_moco"]
    train = options["datasets"]["train"]
    train.pop("num_views", None)
    train["degrade_on"], train["degradation"] = "worker", {"type": "ClassicalDegradation"}
    del options["degradation"]
    options["train"] = {
        key: value
        for key, value in options["train"].items()
        if key in ("total_iter", "warmup_iter", "optim_g", "scheduler", "pixel_opt", "ema_decay")
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("align_opt", {"type": "AlignmentLoss"}), ("dropout", {"p": 0.7}), ("tap_layer", "conv_last")],
)
def test_a_stock_model_does_not_ignore_them(aacl_options: Options, in_process: Run, key: str, value: Any) -> None:
    stock(aacl_options)
    aacl_options["train"][key] = value
    outcome = in_process("train", aacl_options)
    assert outcome.status == 2, outcome.output
    assert (
        f": train.{key}: unknown key, which neither SRModel nor the trainer reads, expected one of " in outcome.output
    )


def test_a_network_of_another_scale(aacl_options: Options, in_process: Run) -> None:
    stock(aacl_options)
    aacl_options["network_g"]["scale"] = 2
    outcome = in_process("train", aacl_options)
    assert outcome.status == 2, outcome.output
    assert ": network_g.scale: 2, expected scale, which is 4" in outcome.output
