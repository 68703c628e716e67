"""Guards training steps against numbers that are not finite: such a step is not made; also clips gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from basicsr.utils import get_root_logger
from pydantic import Field
from torch import Tensor, distributed, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from bsr_plugins.degradations import Params
from bsr_plugins.errors import BSRError
from bsr_plugins.options.declared import OptionBlock, Whole
from bsr_plugins.whole_batch import several_ranks

_DIGITS = 4
_COUNTS = ("skipped_in_a_row", "skipped_total")


class NonFiniteError(BSRError):
    """So many steps in a row gave numbers that are not finite that the run cannot go on."""


class StepGuardOptions(OptionBlock):
    """What training steps are guarded by: keys of the block `train`."""

    clip_grad_norm: float | None = Field(
        default=None, gt=0, description="The largest total gradient norm of a step; null leaves gradients alone."
    )
    log_grad_norm: bool = Field(default=False, description="Whether to log the gradient norm, before clipping.")
    max_nonfinite_steps: Whole = Field(
        default=10, ge=1, description="How many steps in a row, skipped for numbers that are not finite, end the run."
    )


class StepGuard:
    """Decides, on all ranks alike, whether a step is made, and clips its gradients.

    A step whose losses or total gradient norm are not finite on some rank leaves no trace: the optimiser does not step,
    and buffers, such as batch normalisation's statistics, are put back. A gradient whose square overflows counts as one
    that is not finite: Adam would never forget it.
    """

    def __init__(self, options: StepGuardOptions) -> None:
        self._options = options
        self.skipped_in_a_row = self.skipped_total = 0
        self._norm: float | None = None

    def begin(self, networks: Iterable[nn.Module]) -> None:
        self._put_back = keep_buffers(networks)

    def passes(
        self, iteration: int, losses: Mapping[str, Tensor], parameters: Sequence[Tensor], describe: Callable[[], str]
    ) -> bool:
        """Say whether a step may be made, and clip its gradients; all ranks call it after the backward pass.

        If it may not, one line in the log says why; `describe` says for it what the batch was.

        Raises:
            NonFiniteError: `max_nonfinite_steps` were skipped in a row.
        """
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        values = torch.stack([value.detach().to(norm.device, torch.float64) for value in (norm, *losses.values())])
        fault = (~values.isfinite()).any().to(values)[None]
        if several_ranks():
            distributed.all_reduce(fault, distributed.ReduceOp.MAX)
        # In one go, as a device has to be waited for.
        total, *numbers, bad = torch.cat([values, fault]).tolist()
        if not bad:
            if self._options.clip_grad_norm is not None:
                clip_grads_with_norm_(parameters, self._options.clip_grad_norm, norm)
            self._norm, self.skipped_in_a_row = total, 0
            return True
        self._norm = None
        self._put_back()
        self.skipped_in_a_row += 1
        self.skipped_total += 1
        named = [f"{name} is {value}" for name, value in zip(losses, numbers, strict=True) if not math.isfinite(value)]
        gradients = [] if math.isfinite(total) else [f"the gradient norm of optimizers[0] is {total}"]
        self._report(iteration, named, gradients, describe())
        return False

    def figures(self) -> dict[str, float]:
        """Return what to log of the last step: `grad_norm`, if asked, and `skipped_steps`, if there are any."""
        figures = {}
        if self._options.log_grad_norm and self._norm is not None:
            figures["grad_norm"] = self._norm
        if self.skipped_total:
            figures["skipped_steps"] = float(self.skipped_total)
        return figures

    def state(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in _COUNTS}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on from a checkpoint's counts; one of BasicSR's has none."""
        self.skipped_in_a_row, self.skipped_total = (state.get(name, 0) for name in _COUNTS)

    def _report(self, iteration: int, *found: Any) -> None:
        """Log a skipped step, of which bad losses, bad gradients and the batch were found, for the ranks at fault."""
        reports: list[Any] = [found]
        if several_ranks():
            reports = [None] * distributed.get_world_size()
            distributed.all_gather_object(reports, found)
        # Gradients are averaged over ranks: they are bad on all of them where a loss is on one.
        bad = 0 if any(losses for losses, _, _ in reports) else 1
        at_fault = [(rank, ", ".join(one[0] + one[1]), one[2]) for rank, one in enumerate(reports) if one[bad]]
        several = len(reports) > 1
        lines = [f"{f'rank {rank}: ' if several else ''}{reason}; {batch}" for rank, reason, batch in at_fault]
        row, total = self.skipped_in_a_row, self.skipped_total
        get_root_logger().warning(
            f"Iteration {iteration}: step skipped ({row} in a row, {total} in all): {' | '.join(lines)}"
        )
        if row >= self._options.max_nonfinite_steps:
            raise NonFiniteError(
                f"iteration {iteration}: {row} steps in a row were skipped ({at_fault[0][1]}), as many as "
                "train.max_nonfinite_steps allows; expected finite losses and gradients: look at the images and "
                "degradations that the log names, lower train.optim_*.lr, or set train.clip_grad_norm"
            )


def keep_buffers(networks: Iterable[nn.Module]) -> Callable[[], None]:
    """Keep all buffers of networks, and return what makes them what they were: the same tensors, the same content."""
    holders = {module for network in networks for module in network.modules()}
    kept = [
        (holder, name, buffer, buffer.clone())
        for holder in holders
        for name, buffer in holder.named_buffers(recurse=False)
    ]

    @torch.no_grad()
    def put_back() -> None:
        for holder, name, buffer, content in kept:
            setattr(holder, name, buffer.copy_(content))

    return put_back


def describe_params(params: Params) -> str:
    """Write drawn parameters down, sample by sample: `#0 lambda1=1.25 noise_seed=7; #1 lambda1=0.4 noise_seed=8`."""
    samples = min((len(values) for values in params.values()), default=0)
    written = [[f"{name}={_written(values[n])}" for name, values in params.items()] for n in range(samples)]
    return "; ".join(f"#{number} {' '.join(values)}" for number, values in enumerate(written))


def _written(value: Tensor) -> str:
    numbers = [f"{one:.{_DIGITS}g}" if isinstance(one, float) else str(one) for one in value.flatten().tolist()]
    return numbers[0] if value.dim() == 0 else f"({', '.join(numbers)})"
