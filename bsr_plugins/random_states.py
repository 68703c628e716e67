"""The global random states of Python, NumPy and torch: what code that is not ours draws from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

_WORD = 1 << 32


def seed_random_states(seed: int, devices: bool = True) -> None:
    """Seed the global random states, below 2^64; those of torch's devices too, unless `devices` is false."""
    random.seed(seed)
    np.random.seed([seed % _WORD, seed // _WORD])  # noqa: NPY002  (what others draw from is not ours to choose)
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def random_states_kept(devices: Sequence[int] = ()) -> Iterator[None]:
    """Leave the global random states as they were, those of the given CUDA devices too."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
