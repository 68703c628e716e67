"""The unknown keys that are found in options, and options with none but BasicSR's own keys."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from bsr_plugins.engine.faults import Faults
from bsr_plugins.engine.known_keys import check_keys
from bsr_plugins.engine.named_blocks import check_named_blocks, model_class

if TYPE_CHECKING:
    from tests.conftest import Options


def found(options: Options, switched_off: set[tuple[str, ...]] | None = None) -> list[str]:
    """Return the places of unknown keys."""
    faults = Faults("x")
    model = model_class(options)
    check_keys(options, model, switched_off or set(), faults)
    check_named_blocks(options, model, faults)
    assert all(": unknown key, " in line for line in faults.lines), faults.lines
    return [line.split(": ")[1] for line in faults.lines]


def stock(options: Options, model: str) -> Options:
    """Leave what BasicSR's SRModel reads."""
    options = copy.deepcopy(options)
    for key in ("degradation", "network_moco"):
        options.pop(key, None)
    options["train"] = {
        key: options["train"][key] for key in ("ema_decay", "total_iter", "optim_g", "scheduler", "pixel_opt")
    }
    return options | {"model_type": model}
