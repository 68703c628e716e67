"""Watches the steps of models without a step guard: clips, logs norms, ends the run where a number is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from bsr_plugins.engine.ranks import any_rank, gather
from bsr_plugins.models.step_guard import NonFiniteError, StepGuard

_FILE_KEYS = ("gt_path", "lq_path")
_LOSS = "l_"  # how the names of losses begin in the logs of BasicSR's models


class StepWatch:
    """Makes the steps of a model that does not guard them, and ends the run at the first number that is not finite.

    Before each of `model.optimizers` steps, its total gradient norm is taken, and gradients are clipped as by
    `clip_grad_norm_` if `train.clip_grad_norm` asks for it. After `optimize_parameters` the norms, and the losses in
    `model.log_dict` (`l_…`), have to be finite. The step is made by then, so the run cannot go on from its weights.
    """

    skipped_total = 0  # as a StepGuard has it

    def __init__(self, model: Any) -> None:
        self._model = model
        self._clip: float | None = model.opt["train"].get("clip_grad_norm")
        self._logs: bool = model.opt["train"].get("log_grad_norm", False)
        self._norms: list[tuple[int, Tensor]] = []

    def step(self, iteration: int, batch: Mapping[str, Any]) -> None:
        """Call `model.optimize_parameters(iteration)`; the model has its data already. All ranks call it.

        Raises:
            NonFiniteError: A loss or a gradient norm is not finite on some rank; the files of the batch are named.
        """
        self._norms = []
        with ExitStack() as hooks:
            for index, optimiser in enumerate(self._model.optimizers):
                hooks.callback(optimiser.register_step_pre_hook(partial(self._take_norm, index)).remove)
            self._model.optimize_parameters(iteration)
        logged = getattr(self._model, "log_dict", {})
        losses = _not_finite((name, value) for name, value in logged.items() if name.startswith(_LOSS))
        gradients = _not_finite((f"the gradient norm of optimizers[{index}]", norm) for index, norm in self._norms)
        if not any_rank(bool(losses or gradients)):
            return
        files = "; ".join(f"{key} {_listed(batch[key])}" for key in _FILE_KEYS if key in batch)
        reports = list(enumerate(gather((losses, gradients, files or "files unknown"))))
        # Gradients are averaged over ranks: they are bad on all of them where a loss is on one.
        at_fault = [each for each in reports if each[1][0]] or [each for each in reports if each[1][1]]
        lines = [
            f"{f'rank {rank}: ' if len(reports) > 1 else ''}{', '.join(losses + gradients)}; {files}"
            for rank, (losses, gradients, files) in at_fault
        ]
        raise NonFiniteError(
            f"iteration {iteration}: {' | '.join(lines)}; expected finite losses and gradients: look at these images, "
            "lower train.optim_*.lr, or set train.clip_grad_norm"
        )

    def figures(self) -> dict[str, float]:
        """Return the last step's gradient norms, if asked: `grad_norm`, or `grad_norm_0` … of several optimisers."""
        is_alone = len(self._model.optimizers) == 1
        norms = self._norms if self._logs else []
        return {"grad_norm" if is_alone else f"grad_norm_{index}": float(norm) for index, norm in norms}

    def state(self) -> dict[str, int]:
        """Return what a StepGuard counts; nothing is counted here."""
        return {}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Do nothing."""

    def _take_norm(self, index: int, optimiser: Optimizer, _args: object, _kwargs: object) -> None:
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self._clip is not None:
            clip_grads_with_norm_(parameters, self._clip, norm)
        self._norms.append((index, norm))


def guard_of(model: Any) -> StepGuard | StepWatch:
    """Return the guard that a model has, or one that watches it."""
    guard = getattr(model, "guard", None)
    return guard if isinstance(guard, StepGuard) else StepWatch(model)


def _not_finite(values: Iterable[tuple[str, Any]]) -> list[str]:
    numbers = [(name, float(value)) for name, value in values]
    return [f"{name} is {number}" for name, number in numbers if not math.isfinite(number)]


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
