"""Prepare a run: a stand-in of the interface, on top of the present checks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.utils import get_root_logger, set_random_seed
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset

from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.engine.network_checks import _build
from bsr_plugins.engine.pretrained import check_weights
from bsr_plugins.engine.run_options import read_run
from bsr_plugins.errors import OptionError
from bsr_plugins.random_states import random_states_kept


@dataclass
class Prepared:
    """A run whose options can be used, with what was built of them."""

    opt: dict[str, Any]
    file: Path
    resolved: bytes
    only_check: bool
    datasets: dict[str, Dataset[Any]] = field(default_factory=dict)
    model: Any = None
    warnings: list[str] = field(default_factory=list)
    records: list[logging.LogRecord] = field(default_factory=list)

    def replay(self, logger: logging.Logger) -> None:
        """Hand over what was logged while datasets and model were built."""
        for record in self.records:
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)

    def late_reads(self) -> list[str]:
        """Return warnings about keys that nobody has read."""
        return []


def _check_set(opt: dict[str, Any]) -> None:
    """Check that the networks of the checkpoint that a run goes on from are those of the options."""
    ignored = opt["path"].get("ignore_resume_networks") or ()
    if opt["path"].get("resume_state") is None:
        return
    with random_states_kept():
        for key in [key for key in opt if key.startswith("network_") and opt[key] is not None and key not in ignored]:
            strict = opt["path"] | {f"strict_load_{key.removeprefix('network_')}": True}
            try:
                check_weights(key, _build(key, opt), strict)
            except OptionError as error:
                raise OptionError(
                    f"path.resume_state: {opt['path']['resume_state']}: its networks are not those of the options "
                    f"({error}), expected the options that it was saved with"
                ) from error


class _Keeping(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def prepare(root_path: str, is_train: bool, resume: Callable[[dict[str, Any]], None] | None) -> Prepared:
    """Read and check the options of the command line, and build datasets and model once."""
    run = read_run(root_path, is_train)
    prepared = Prepared(run.opt, run.file, run.resolved, run.only_check)
    if run.only_check:
        return prepared
    opt, logger = run.opt, get_root_logger()
    if resume is not None:
        resume(opt)
        _check_set(opt)
    handlers, level = logger.handlers[:], logger.level
    logger.handlers[:] = [_Keeping(prepared.records)]
    logger.setLevel(logging.INFO)
    try:
        for key, block in opt["datasets"].items():
            ours = issubclass(DATASET_REGISTRY.get(block["type"]), PairedDegradationDataset)
            prepared.datasets[key] = build_dataset(
                {name: value for name, value in block.items() if ours or name != "on_bad_image"}
            )
        set_random_seed(opt["manual_seed"] + opt["rank"])  # the networks draw what they drew when the run began
        prepared.model = build_model(opt)
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
    return prepared
