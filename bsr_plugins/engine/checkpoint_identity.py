"""What a checkpoint belongs to, and whether a run can go on from it exactly."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field

from bsr_plugins.options.declared import OptionBlock

KEY = "bsr_plugins"
"""Where a checkpoint file says what it belongs to, next to BasicSR's keys."""

_VERSION = 1
_DIGEST_BYTES = 16
_COMPARED_ALONE = {"manual_seed", "num_gpu", "world_size"}
_LEFT_OUT = {
    "": {"auto_resume", "dist", "dist_params", "is_train", "logger", "name", "path", "rank", "root_path", "val"},
    "train": {"total_iter", "max_nonfinite_steps", "log_grad_norm"},
    "datasets.train": {
        *("batch_size_per_gpu", "name", "num_prefetch_queue", "num_worker_per_gpu", "persistent_workers"),
        *("pin_memory", "prefetch_mode"),
    },
}
_IN_WORDS = {
    "world_size": "processes",
    "total_batch": "samples a batch over all processes",
    "num_samples": "training images",
    "manual_seed": "as manual_seed",
}


class Identity(OptionBlock):
    """What a run's checkpoints say of the run, under `KEY`."""

    model_config = ConfigDict(extra="ignore")

    version: int = Field(default=_VERSION, ge=_VERSION, le=_VERSION, description="The form of these keys.")
    run_id: str = Field(description="Drawn when the run began, and kept when it is resumed.")
    name: str = Field(description="The run's name.")
    world_size: int = Field(description="Number of processes.")
    total_batch: int = Field(description="Samples in a batch of all processes.")
    num_samples: int = Field(description="Samples of the training dataset.")
    manual_seed: int = Field(description="The run's seed.")
    options_digest: str = Field(description="Fingerprint of the options that an iteration's result depends on.")

    @classmethod
    def of(cls, opt: Mapping[str, Any], num_samples: int, run_id: str | None = None) -> Identity:
        """Say what a run's checkpoints are to carry.

        Args:
            opt: The run's options, unchanged by a model: BasicSR's models take keys out of theirs.
            num_samples: Samples of the training dataset.
            run_id: That of the run which goes on; without it, one is drawn.
        """
        world_size = int(opt["world_size"])
        processes = world_size if opt["dist"] else max(1, int(opt["num_gpu"]))
        return cls(
            run_id=run_id or uuid.uuid4().hex,
            name=str(opt["name"]),
            world_size=world_size,
            total_batch=int(opt["datasets"]["train"]["batch_size_per_gpu"]) * processes,
            num_samples=num_samples,
            manual_seed=int(opt["manual_seed"]),
            options_digest=_digest(opt),
        )

    def remarks_on(self, name: str, saved: Identity | None) -> list[str]:
        """Return, one line each, why the run does not go on from a checkpoint set exactly as if it had not stopped.

        Args:
            name: The name of the set's training state.
            saved: What the set carries; None if BasicSR's trainer has written it.
        """
        end = ": the run does not go on exactly as it would have."
        if saved is None:
            return [f"{name} is BasicSR's, which keeps less than it takes{end}"]
        changes = [
            f"{getattr(saved, key)} {what}, and not {getattr(self, key)}"
            for key, what in _IN_WORDS.items()
            if getattr(saved, key) != getattr(self, key)
        ]
        if saved.options_digest == self.options_digest:
            return [f"{name} was saved with {change}{end}" for change in changes]
        return [
            *(f"{name} was saved with {change}{end}" for change in [*changes, "other options of training"]),
            f"Optimisers and schedules go on as {name} has them, learning rates and milestones included, whatever the "
            "options say now.",
        ]


def _digest(opt: Mapping[str, Any]) -> str:
    """Fingerprint the options that the result of an iteration depends on, but for those that are compared alone."""
    kept = _without(opt, _LEFT_OUT[""] | _COMPARED_ALONE)
    kept["datasets"] = _without(opt["datasets"]["train"], _LEFT_OUT["datasets.train"])
    kept["train"] = _without(opt["train"], _LEFT_OUT["train"])
    text = json.dumps(_in_order(kept), default=str)
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _without(block: Mapping[str, Any], left_out: set[str]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key not in left_out}


def _in_order(value: object) -> object:
    """Return options with the keys of every block in order; they may be numbers as well as text."""
    if isinstance(value, Mapping):
        return [(key, _in_order(inner)) for key, inner in sorted((str(key), inner) for key, inner in value.items())]
    return [_in_order(inner) for inner in value] if isinstance(value, list | tuple) else value
