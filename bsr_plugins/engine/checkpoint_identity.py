"""What a checkpoint belongs to, and whether a run can go on from it exactly."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from bsr_plugins.errors import BSRError

if TYPE_CHECKING:
    from bsr_plugins.engine.checkpoint_sets import Found

KEY = "bsr_plugins"
"""Where a checkpoint file says what it belongs to, next to BasicSR's own keys."""

_VERSION = 1
_DIGEST_BYTES = 16
_LEFT_OUT = {
    "": {"auto_resume", "dist", "dist_params", "is_train", "logger", "name", "path", "rank", "root_path", "val"},
    "train": {"total_iter", "max_nonfinite_steps", "log_grad_norm"},
    "datasets.train": {
        "name",
        "num_prefetch_queue",
        "num_worker_per_gpu",
        "persistent_workers",
        "pin_memory",
        "prefetch_mode",
    },
}
_COMPARED_ALONE = {"": {"manual_seed", "num_gpu", "world_size"}, "datasets.train": {"batch_size_per_gpu"}}


@dataclass(frozen=True)
class Identity:
    """What a run's checkpoints say of the run.

    Attributes:
        run_id: Drawn when the run began, and kept when it is resumed.
        name: The run's name.
        world_size: Number of processes.
        total_batch: Samples in a batch of all processes.
        num_samples: Samples of the training dataset.
        manual_seed: The run's seed.
        options_digest: Fingerprint of the options that an iteration's result depends on.
    """

    run_id: str
    name: str
    world_size: int
    total_batch: int
    num_samples: int
    manual_seed: int
    options_digest: str

    @classmethod
    def of(cls, opt: Mapping[str, Any], num_samples: int, run_id: str | None = None) -> Identity:
        """Say what a run's checkpoints are to carry.

        Args:
            opt: The run's options; not yet those that a model has been built with, as BasicSR's models take out of
                them.
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

    def written(self, iteration: int) -> dict[str, Any]:
        """Return what a checkpoint of an iteration carries under `KEY`: plain numbers and text."""
        return {"version": _VERSION, "iteration": iteration, **asdict(self)}

    @classmethod
    def read(cls, content: object) -> Identity:
        """Read what `written` gave.

        Raises:
            BSRError: It is something else.
        """
        if not isinstance(content, Mapping) or content.get("version") != _VERSION:
            version = content.get("version") if isinstance(content, Mapping) else None
            raise BSRError(f"its '{KEY}' has the version {version!r}, expected {_VERSION}")
        expected = {"str": str, "int": int}
        for field in fields(cls):
            if type(content.get(field.name)) is not expected[str(field.type)]:
                raise BSRError(f"its '{KEY}' has the {field.name} {content.get(field.name)!r}, expected {field.type}")
        return cls(**{field.name: content[field.name] for field in fields(cls)})

    def differences(self, other: Identity) -> list[str]:
        """Return, in words, why a run does not go on exactly from a checkpoint of another."""
        words = {
            "world_size": "processes",
            "total_batch": "samples a batch over all processes",
            "num_samples": "training images",
            "manual_seed": "as manual_seed",
        }
        changes = [
            f"{getattr(other, name)} {what}, and not {getattr(self, name)}"
            for name, what in words.items()
            if getattr(other, name) != getattr(self, name)
        ]
        return changes + (["other options of training"] if self.options_digest != other.options_digest else [])


def check_identity(found: Found, identity: Identity) -> list[str]:
    """Return, one line each, why a run does not go on from a checkpoint set exactly as if it had not stopped.

    Args:
        found: The set.
        identity: What the run's own checkpoints will carry.
    """
    if found.identity is None:
        return [
            f"{found.file.name} is BasicSR's own, which keeps less than it takes: the run does not go on exactly as it "
            "would have."
        ]
    remarks = [
        f"{found.file.name} was saved with {difference}: the run does not go on exactly as it would have."
        for difference in identity.differences(found.identity)
    ]
    if identity.options_digest != found.identity.options_digest:
        remarks.append(
            f"Optimisers and schedules go on as {found.file.name} has them, learning rates and milestones included, "
            "whatever the options say now."
        )
    return remarks


def _digest(opt: Mapping[str, Any]) -> str:
    """Fingerprint the options that the result of an iteration depends on, but for those that are compared alone."""
    kept = _without(opt, "") | {"datasets": _without(opt["datasets"]["train"], "datasets.train")}
    kept["train"] = _without(opt["train"], "train")
    text = json.dumps(_in_order(kept), default=str)
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _without(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    left_out = _LEFT_OUT[place] | _COMPARED_ALONE.get(place, set())
    return {key: value for key, value in block.items() if key not in left_out}


def _in_order(value: object) -> object:
    """Return options with the keys of every block in order; they may be numbers as well as text."""
    if isinstance(value, Mapping):
        return [(key, _in_order(inner)) for key, inner in sorted((str(key), inner) for key, inner in value.items())]
    return [_in_order(inner) for inner in value] if isinstance(value, list | tuple) else value
