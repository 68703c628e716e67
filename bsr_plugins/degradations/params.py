"""Drawn or written parameters, and how they are applied to some samples of a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from bsr_plugins.errors import BSRError

Key = TypeVar("Key", bound=Hashable)

Params = dict[str, Tensor]
"""Parameters by name, CPU tensors whose first dimension is the batch. They fix the result and can be replayed."""

SEED = "noise_seed"
"""The parameter from which all random fields of a sample are drawn."""

MAX_SEED = (1 << 63) - 1
GREY_LEVELS = 255.0


def classical_params(
    lambda1: float | Sequence[float] = 0.0,
    lambda2: float | Sequence[float] | None = None,
    theta: float | Sequence[float] = 0.0,
    noise_level: float | Sequence[float] = 0.0,
    noise_seed: int | Sequence[int] = 0,
    jpeg_quality: float | Sequence[float] = 0.0,
) -> Params:
    """Write down the parameters of classical degradations, instead of drawing them.

    Those of further stages, e.g. `motion_length`, can be added as float64 tensors.

    Args:
        lambda1: Widths (standard deviations in HR pixels) along the kernel's first axis, ≥ 0; 0 means no blur.
        lambda2: Widths along the second axis; left out, the kernels are isotropic.
        theta: Angles of the first axis, in radians.
        noise_level: Noise levels on the 0–255 scale, ≥ 0; 0 means none.
        noise_seed: Seeds of the noise fields in [0, 2^63).
        jpeg_quality: Qualities in [1, 100], whole or not; 0 means no JPEG.

    Returns:
        Params: CPU tensors, shape (B,), float64 but for `noise_seed` (int64); B = 1 if all arguments are numbers.
    """
    written = {
        "lambda1": lambda1,
        "lambda2": lambda1 if lambda2 is None else lambda2,
        "theta": theta,
        "noise_level": noise_level,
        "jpeg_quality": jpeg_quality,
    }
    columns = [torch.as_tensor(value, dtype=torch.float64).reshape(-1) for value in written.values()]
    columns.append(torch.as_tensor(noise_seed, dtype=torch.int64).reshape(-1))
    return dict(zip((*written, SEED), (column.clone() for column in torch.broadcast_tensors(*columns)), strict=True))


def select(params: Params, members: Tensor) -> Params:
    """Return the parameters of some samples, given as indices or as a mask."""
    return {name: column[members] for name, column in params.items()}


def check_columns(params: Params, names: Iterable[str], count: int) -> None:
    """Refuse parameters of which one is missing, or given for another number of samples."""
    for name in names:
        if name not in params or len(params[name]) != count:
            raise BSRError(f"degradation: the parameter {name} is missing or not given for {count} samples")


def require(params: Params, name: str, fine: Tensor, expected: str) -> None:
    """Refuse a parameter that is not fine for all samples; `fine` says so for each, bool, shape (B,)."""
    if not bool(fine.all()):
        raise BSRError(f"degradation: the parameter {name} is {params[name][~fine][0].item()}, expected {expected}")


def check_quality(params: Params, name: str) -> None:
    """Refuse JPEG qualities that libjpeg does not know."""
    fine = (params[name] == 0) | (params[name] >= 1) & (params[name] <= 100)
    require(params, name, fine, "a number in [1, 100], or 0 for none")


def replaced(chosen: Tensor, x: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Replace the chosen samples of a batch (bool, shape (B,), on the CPU); the others stay as they are, bit for bit.

    `apply` makes images of the same shape out of the chosen ones; it gets these and their indices, on the CPU.
    """
    members = chosen.nonzero().flatten()
    if not len(members):
        return x
    if len(members) == len(x):  # spare the copies
        return apply(x, members)
    there = members.to(x.device)
    return x.index_copy(0, there, apply(x[there], members))


def by_group(
    x: Tensor,
    params: Params,
    groups: Sequence[Key],
    size: tuple[int, int],
    apply: Callable[[Key, Tensor, Params], Tensor],
) -> Tensor:
    """Make images (B, …, H, W) into ones of another size, group by group.

    `groups` names each sample's group; `apply` takes a group, its images and their parameters.
    """
    members: dict[Key, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if len(members) == 1:  # spare the copies
        return apply(groups[0], x, params)
    made = x.new_empty(*x.shape[:-2], *size)
    for group, indices in members.items():
        here = torch.tensor(indices)
        there = here.to(x.device)
        made = made.index_copy(0, there, apply(group, x[there], select(params, here)))
    return made
