"""Randomness as a function of position: every draw has an address, and the address alone decides it.

A draw's address is (seed, purpose, position …), with the iteration, or the epoch and the place in it, as the position.
Results do then not depend on the number of workers or on what was drawn before, and whoever draws at the same address
after a resume draws the same, with no random state to save. No global random state is read or advanced.
"""

from __future__ import annotations

import hashlib
from operator import index

import torch

_SEED_BYTES = 8
_SEED_MASK = (1 << 63) - 1


def derive_seed(seed: int, purpose: str, *position: int | str) -> int:
    """Derive a seed in [0, 2^63) from an address; any difference in the address gives an unrelated seed.

    Args:
        seed: The run's `manual_seed`.
        purpose: What the draw is for, e.g. `crop`.
        position: Where the draw is, e.g. the iteration, or epoch and sample.
    """
    # numbers as plain ints: NumPy's are written differently, and not alike in all its versions
    places = (place if isinstance(place, str) else index(place) for place in position)
    address = repr((index(seed), purpose, *places)).encode()
    digest = hashlib.blake2b(address, digest_size=_SEED_BYTES).digest()
    return int.from_bytes(digest, "little") & _SEED_MASK


def generator_at(seed: int, purpose: str, *position: int | str) -> torch.Generator:
    """Make the CPU generator of an address (see `derive_seed`).

    It is always a CPU generator, so that CPU and CUDA runs draw the same numbers.
    """
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *position))
