"""Guards a run against numbers that are not finite: such a step is not made; also clips and logs gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import LOSS_REGISTRY
from mmengine.dist import all_gather_object, get_rank
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from bsr_plugins.blocks import boolean, integer, number
from bsr_plugins.engine.ranks import Ranks
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.options.recorded import Recorded

DEFAULT_MAX_NONFINITE_STEPS = 10
_FILE_KEYS = ("gt_path", "lq_path")
_COUNTS = ("skipped_in_a_row", "skipped_total")


class NonFiniteError(BSRError):
    """So many steps in a row gave numbers that are not finite that the run cannot go on."""


class GuardOptions(NamedTuple):
    """What a run is guarded by.

    Attributes:
        clip_grad_norm: The largest total gradient norm of an optimiser's step, above 0; None leaves gradients alone.
        log_grad_norm: Whether gradient norms, before clipping, are among the figures to log.
        max_nonfinite_steps: How many steps skipped in a row end the run, at least 1.
    """

    clip_grad_norm: float | None = None
    log_grad_norm: bool = False
    max_nonfinite_steps: int = DEFAULT_MAX_NONFINITE_STEPS


def read_guard_options(train_opt: Mapping[str, Any]) -> GuardOptions:
    """Read `clip_grad_norm`, `log_grad_norm` and `max_nonfinite_steps` from the block `train`.

    Raises:
        OptionError: One of them is of a wrong type or out of its range.
    """
    clip = train_opt.get("clip_grad_norm")
    if clip is not None and number(clip, "train.clip_grad_norm", 0) == 0:
        raise OptionError(f"train.clip_grad_norm: {clip!r}, expected a number above 0, or null for no clipping")
    steps = train_opt.get("max_nonfinite_steps", DEFAULT_MAX_NONFINITE_STEPS)
    return GuardOptions(
        None if clip is None else float(clip),
        boolean(train_opt.get("log_grad_norm", False), "train.log_grad_norm"),
        integer(steps, "train.max_nonfinite_steps", 1),
    )


class _Skip(BaseException):
    """Leaves a step before an optimiser's step; not an `Exception`, so that no model takes it for an error.

    Attributes:
        losses: The losses that are not finite on this rank, in words.
        gradients: The same for the gradient norm.
    """

    def __init__(self, losses: list[str], gradients: list[str]) -> None:
        super().__init__()
        self.losses, self.gradients = losses, gradients


class _Report(NamedTuple):
    """What one rank knows of a skipped step."""

    rank: int
    losses: list[str]
    gradients: list[str]
    batch: str


class _Buffers:
    """The buffers of some modules, as they were when last kept."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        found = {id(part): part for module in modules for part in module.modules()}
        self._holders = [part for part in found.values() if any(True for _ in part.buffers(recurse=False))]
        self._kept: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def keep(self) -> None:
        """Copy the buffers."""
        self._kept = [
            (holder, name, buffer, buffer.clone())
            for holder in self._holders
            for name, buffer in holder.named_buffers(recurse=False)
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Make the buffers what they were: the same tensors with the same content."""
        for holder, name, buffer, content in self._kept:
            setattr(holder, name, buffer.copy_(content))


class StepGuard:
    """Makes the training steps of any BasicSR model, except those whose losses or gradients are not finite.

    While a step runs, the outputs of the model's losses are noted (of those attributes whose classes are in
    `LOSS_REGISTRY`), and before each of `model.optimizers` steps, its total gradient norm is taken. If the norm, or a
    loss noted since the last optimiser's step, is not finite on any rank, the model's `optimize_parameters` is left at
    once on all ranks: nothing that would have followed happens (the optimiser's step, EMA, queues, the log). Buffers
    such as batch normalisation's statistics, and which parameters take gradients, are then put back, gradients are
    dropped, and the step counts as skipped. Otherwise gradients are clipped, if asked, as by `clip_grad_norm_`.

    A gradient whose square overflows counts as one that is not finite: Adam would never forget it. Where an optimiser
    has stepped before another one's gradients are found bad, as a GAN's generator before its discriminator, that first
    step stays, and the model's EMA waits for the next whole step.

    Between steps nothing of the guard is on the model, and no class is changed. Learning-rate schedules are the loop's.

    Args:
        model: The model, built for training, with all its networks and losses.
        options: See `GuardOptions`.
        ranks: The processes of the run.
    """

    def __init__(self, model: Any, options: GuardOptions, ranks: Ranks) -> None:
        self._model, self._options, self._ranks = model, options, ranks
        self._skipped_in_a_row = self._skipped_total = 0
        self._norms: dict[int, float] = {}
        self._losses: list[tuple[str, Tensor]] = []
        modules = list(_modules_of(model))
        losses = tuple(loss for _, loss in LOSS_REGISTRY if isinstance(loss, type))
        self._criteria = [(name, module) for name, module in modules if isinstance(module, losses)]
        self._buffers = _Buffers(module for _, module in modules)

    def step(self, iteration: int, batch: Mapping[str, Any]) -> bool:
        """Call `model.optimize_parameters(iteration)`; the model has its data already.

        Under several processes it is collective: every rank calls it for the same iteration.

        Args:
            iteration: The iteration, from 1.
            batch: What the model was fed; its `gt_path` and `lq_path` are named if the step is skipped.

        Returns:
            Whether the step was made. If not, one line in the log says why and with which images, and the model's log
            is that of an earlier step, or empty.

        Raises:
            NonFiniteError: `max_nonfinite_steps` were skipped in a row.
        """
        self._norms = {}
        self._losses = []
        self._buffers.keep()
        trained = [(parameter, parameter.requires_grad) for parameter in self._parameters()]
        try:
            with self._watch():
                self._model.optimize_parameters(iteration)
        except _Skip as skip:
            losses, gradients = skip.losses, skip.gradients
        else:
            self._skipped_in_a_row = 0
            return True
        finally:
            self._losses = []
        self._buffers.put_back()
        for parameter, trains in trained:
            parameter.requires_grad_(trains)
            parameter.grad = None
        if not hasattr(self._model, "log_dict"):
            self._model.log_dict = {}
        self._count_skipped(iteration, _Report(get_rank(), losses, gradients, self._describe(batch)))
        return False

    def figures(self) -> dict[str, float]:
        """Return what to log with the last step: gradient norms, if asked, and how many steps were skipped, if any.

        Norms are `grad_norm`, or `grad_norm_0`, `grad_norm_1` … of several optimisers, of those that stepped.
        """
        figures = {}
        if self._options.log_grad_norm:
            alone = len(self._model.optimizers) == 1
            figures = {"grad_norm" if alone else f"grad_norm_{i}": norm for i, norm in sorted(self._norms.items())}
        if self._skipped_total:
            figures["skipped_steps"] = float(self._skipped_total)
        return figures

    @property
    def skipped_total(self) -> int:
        """How many steps were skipped since the run began."""
        return self._skipped_total

    def state(self) -> dict[str, int]:
        """Return the counts of skipped steps, for a checkpoint."""
        return {"skipped_in_a_row": self._skipped_in_a_row, "skipped_total": self._skipped_total}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on from counts that `state` gave; a checkpoint of BasicSR's has none."""
        self._skipped_in_a_row, self._skipped_total = (state.get(key, 0) for key in _COUNTS)

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Note losses and inspect optimisers' steps."""
        with ExitStack() as hooks:
            for name, criterion in self._criteria:
                hooks.callback(criterion.register_forward_hook(partial(self._note, name)).remove)
            for index, optimiser in enumerate(self._model.optimizers):
                hooks.callback(optimiser.register_step_pre_hook(partial(self._inspect, index)).remove)
            yield

    def _note(self, name: str, _criterion: nn.Module, _inputs: object, output: object) -> None:
        self._losses += [(name, value.detach()) for value in _trained_tensors(output)]

    def _inspect(self, index: int, optimiser: Optimizer, _args: object, _kwargs: object) -> None:
        """Leave the step if something is not finite on any rank; otherwise clip."""
        parameters = _parameters_of(optimiser)
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        noted, self._losses = self._losses, []
        values = [norm, *(value.mean() for _, value in noted)]
        # In one go, as a device has to be waited for.
        total, *means = torch.stack([value.to(norm.device, torch.float64) for value in values]).tolist()
        named = zip((name for name, _ in noted), means, strict=True)
        losses = [f"{name} is {mean}" for name, mean in named if not math.isfinite(mean)]
        gradients = [] if math.isfinite(total) else [f"the gradient norm of optimizers[{index}] is {total}"]
        if self._ranks.any(bool(losses or gradients)):
            raise _Skip(list(dict.fromkeys(losses)), gradients)
        if self._options.clip_grad_norm is not None:
            clip_grads_with_norm_(parameters, self._options.clip_grad_norm, norm)
        self._norms[index] = total
        if len(self._model.optimizers) > 1:
            self._buffers.keep()

    def _parameters(self) -> Iterator[Tensor]:
        for optimiser in self._model.optimizers:
            yield from _parameters_of(optimiser)

    def _describe(self, batch: Mapping[str, Any]) -> str:
        """Name the batch's files, and how they were degraded if the model knows."""
        parts = [f"{key} {_listed(batch[key])}" for key in _FILE_KEYS if key in batch]
        if hasattr(self._model, "describe_degradation"):
            drawn = " ".join(self._model.describe_degradation().split())
            parts += [f"degraded by {drawn}"] if drawn else []
        return "; ".join(parts) or "files unknown"

    def _count_skipped(self, iteration: int, report: _Report) -> None:
        """Count a skipped step and log it with the batches of those ranks that are at fault."""
        self._skipped_in_a_row += 1
        self._skipped_total += 1
        reports = all_gather_object(report)
        # Gradients are averaged over ranks: they are bad on all of them where a loss is on one.
        at_fault = [each for each in reports if each.losses] or [each for each in reports if each.gradients]
        lines = [_line(each, len(reports) > 1) for each in at_fault]
        row, total = self._skipped_in_a_row, self._skipped_total
        get_root_logger().warning(
            f"Iteration {iteration}: step skipped ({row} in a row, {total} in all): {' | '.join(lines)}"
        )
        if row >= self._options.max_nonfinite_steps:
            reason = ", ".join(at_fault[0].losses + at_fault[0].gradients)
            raise NonFiniteError(
                f"iteration {iteration}: {row} steps in a row were skipped ({reason}), as many as "
                "train.max_nonfinite_steps allows; expected finite losses and gradients: look at the images and "
                "degradations that the log names, lower train.optim_*.lr, or set train.clip_grad_norm"
            )


def _modules_of(model: object) -> Iterator[tuple[str, nn.Module]]:
    """List the modules that a model has as attributes, or in lists and mappings that are attributes, by name."""
    for name, value in vars(model).items():
        if isinstance(value, Recorded):
            continue  # options, whose reads are recorded
        if isinstance(value, Mapping):
            items = [(f"{name}.{key}", item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            items = [(f"{name}.{place}", item) for place, item in enumerate(value)]
        else:
            items = [(name, value)]
        yield from ((place, item) for place, item in items if isinstance(item, nn.Module))


def _trained_tensors(output: object) -> Iterator[Tensor]:
    """List the tensors in what a loss gave that something is trained on: figures besides them may be infinite."""
    if isinstance(output, Tensor):
        if output.requires_grad:
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _trained_tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _trained_tensors(value)


def _parameters_of(optimiser: Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _line(report: _Report, with_rank: bool) -> str:
    rank = f"rank {report.rank}: " if with_rank else ""
    return f"{rank}{', '.join(report.losses + report.gradients)}; {report.batch}"
