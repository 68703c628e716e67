"""Randomness as a function of position."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsr_plugins.seeding import derive_seed, generator_at

POSITIONS = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5)), max_size=4).map(tuple)
ADDRESSES = st.tuples(st.integers(0, 2**64), st.text(max_size=8), POSITIONS)
Address = tuple[int, str, tuple[int | str, ...]]


@settings(max_examples=200, deadline=None)
@given(ADDRESSES)
def test_seeds_are_what_a_generator_takes_and_always_the_same(address: Address) -> None:
    seed, purpose, position = address
    derived = derive_seed(seed, purpose, *position)
    assert 0 <= derived < 2**63
    assert derived == derive_seed(seed, purpose, *position)
    torch.Generator().manual_seed(derived)


@settings(max_examples=200, deadline=None)
@given(ADDRESSES, ADDRESSES)
def test_other_addresses_have_other_seeds(first: Address, second: Address) -> None:
    same = derive_seed(first[0], first[1], *first[2]) == derive_seed(second[0], second[1], *second[2])
    assert same == (first == second)


def test_neighbouring_addresses_do_not_collide() -> None:
    """Not even where their parts run into each other, or a number looks like a text."""
    grid = [derive_seed(seed, "crop", epoch, sample) for seed, epoch, sample in itertools.product(range(20), repeat=3)]
    assert max(Counter(grid).values()) == 1
    tricky: list[Any] = [
        (0, "a", 1, 11),
        (0, "a", 11, 1),
        (0, "a", 111),
        (0, "a", "111"),
        (0, "a1", 11),
        (0, "a", 1, "11"),
    ]
    assert len({derive_seed(*address) for address in tricky}) == len(tricky)


def test_seeds_are_spread_evenly() -> None:
    """Each of the 63 bits is set in about half of many neighbouring addresses."""
    seeds = [derive_seed(1, "noise", iteration) for iteration in range(4000)]
    for bit in range(63):
        share = sum(seed >> bit & 1 for seed in seeds) / len(seeds)
        assert 0.46 < share < 0.54


def test_draws_of_neighbouring_addresses_are_unrelated() -> None:
    draws = torch.stack([torch.rand(2000, generator=generator_at(0, "crop", place)) for place in range(8)])
    correlations = torch.corrcoef(draws) - torch.eye(8)
    assert float(correlations.abs().max()) < 0.1


def test_whole_numbers_of_numpy_are_the_same_address() -> None:
    """A seed or a position often comes out of an array."""
    seed, place = np.arange(7)[5:]
    assert derive_seed(seed, "crop", place) == derive_seed(5, "crop", 6)


def test_seeds_are_the_same_in_every_process_and_on_every_machine() -> None:
    """Python's own hash of a text is another with every start; a run resumes on whatever machine there is."""
    assert derive_seed(10, "crop", 3, "val") == 9_063_099_743_650_173_548
    assert derive_seed(0, "noise") == 6_340_466_054_589_598_036


def test_generators_start_from_the_seed_of_their_address_on_the_cpu() -> None:
    generator = generator_at(3, "crop", 1, 2)
    assert generator.device.type == "cpu"
    assert generator.initial_seed() == derive_seed(3, "crop", 1, 2)
    expected = torch.rand(5, generator=torch.Generator().manual_seed(derive_seed(3, "crop", 1, 2)))
    assert torch.equal(torch.rand(5, generator=generator), expected)


def test_no_global_random_state_is_read_or_advanced() -> None:
    states = torch.get_rng_state(), random.getstate()
    first = torch.rand(3, generator=generator_at(0, "crop"))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    with torch.random.fork_rng():
        torch.manual_seed(77)
        assert torch.equal(torch.rand(3, generator=generator_at(0, "crop")), first)
