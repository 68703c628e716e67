"""Building from option blocks, and one-line messages about what cannot be built."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsr_plugins.blocks import boolean, build_from_block, call_with, check_arguments, integer, interval, number
from bsr_plugins.errors import OptionError


class Loss:
    """Something to build, with a needed argument, one with a default, and one by name alone."""

    def __init__(self, weight: float, margin: float = 0.0, *, reduction: str = "mean") -> None:
        self.arguments = (weight, margin, reduction)


def takes_anything(first: int, **rest: Any) -> dict[str, Any]:
    return {"first": first, **rest}


def positional_only(first: int, /, second: int) -> int:
    return first + second


KNOWN: dict[str, Callable[..., Any]] = {"Loss": Loss, "takes_anything": takes_anything}


def assert_refused(message: str, function: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        function(*arguments)


def test_a_block_is_built_with_its_keys_as_arguments_and_left_as_it_was() -> None:
    block = {"type": "Loss", "weight": 2.0, "reduction": "sum"}
    assert build_from_block(block, KNOWN, "train.loss").arguments == (2.0, 0.0, "sum")
    assert build_from_block(block, KNOWN, "train.loss").arguments == (2.0, 0.0, "sum"), "a block can be used again"
    assert block == {"type": "Loss", "weight": 2.0, "reduction": "sum"}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (None, "train.loss: expected a block with the key 'type', got None"),
        ("Loss", "train.loss: expected a block with the key 'type', got 'Loss'"),
        ([{"type": "Loss"}], "train.loss: expected a block with the key 'type', got [{'type': 'Loss'}]"),
        ({"weight": 1}, "train.loss: the key 'type' is missing, expected one of Loss, takes_anything"),
        (
            {"type": "Los", "weight": 1},
            "train.loss.type: unknown name 'Los', expected one of Loss, takes_anything; did you mean 'Loss'?",
        ),
        ({"type": None}, "train.loss.type: unknown name None, expected one of Loss, takes_anything"),
        ({"type": {}}, "train.loss.type: unknown name {}, expected one of Loss, takes_anything"),
        (
            {"type": "Loss", "weight": 1, "redution": "sum"},
            "train.loss.redution: unknown key, expected one of weight, margin, reduction; did you mean 'reduction'?",
        ),
        ({"type": "Loss", "margin": 1}, "train.loss.weight: the key is missing"),
        ({"type": "Loss", "weight": 1, 7: 8}, "train.loss.7: unknown key, expected one of weight, margin, reduction"),
    ],
)
def test_blocks_that_cannot_be_built(block: Any, message: str) -> None:
    assert_refused(message, build_from_block, block, KNOWN, "train.loss")


def test_what_takes_any_key_gets_them_all() -> None:
    assert call_with(takes_anything, {"first": 1, "other": 2}, "here") == {"first": 1, "other": 2}
    assert_refused("here.first: the key is missing", call_with, takes_anything, {"other": 2}, "here")


def test_errors_from_inside_are_not_disguised() -> None:
    """What the called function itself raises is not taken for a wrong key."""

    def fails(weight: int) -> None:
        raise TypeError(f"inside, {weight}")

    with pytest.raises(TypeError, match=r"^inside, 3$"):
        call_with(fails, {"weight": 3}, "here")


def test_arguments_can_be_checked_without_calling() -> None:
    def fails(weight: int) -> None:
        raise AssertionError(weight)

    check_arguments(fails, {"weight": 1}, "here")
    assert_refused("here.weight: the key is missing", check_arguments, fails, {}, "here")
    assert_refused("here: [1], expected a block of keys and values", check_arguments, fails, [1], "here")
    both = "here.first: unknown key, expected one of second\nhere.second: the key is missing"
    assert_refused(both, check_arguments, positional_only, {"first": 1}, "here")


@given(st.one_of(st.integers(-5, 5), st.floats(-5, 5)))
def test_numbers_in_range_come_through(value: float) -> None:
    made = number(value, "here", -5, 5)
    assert made == value
    assert type(made) is float


def test_numbers_may_be_unbounded_and_lie_on_the_bounds() -> None:
    assert number(-1e300, "here") == -1e300
    assert [number(end, "here", 0, 1) for end in (0, 1)] == [0, 1]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_an_unbounded_number_is_finite(value: float) -> None:
    assert_refused(f"weight: {value!r}, expected a finite number", number, value, "weight")


@pytest.mark.parametrize("value", ["1e-4", True, None, [1], math.nan, math.inf, -0.001, 1.001])
def test_what_is_no_number_in_range(value: Any) -> None:
    assert_refused(f"train.lr: {value!r}, expected a number in [0, 1]", number, value, "train.lr", 0, 1)


def test_whole_numbers_in_range_come_through() -> None:
    assert [integer(value, "here", -1, 3) for value in (-1, 0, 3)] == [-1, 0, 3]
    assert integer(10**9, "here", 0) == 10**9


@pytest.mark.parametrize("value", ["4", True, None, 4.0, [4], 0, 9])
def test_what_is_no_whole_number_in_range(value: Any) -> None:
    assert_refused(f"scale: {value!r}, expected a whole number in [1, 8]", integer, value, "scale", 1, 8)
    if value != 9:
        assert_refused(f"scale: {value!r}, expected a whole number at least 1", integer, value, "scale", 1)


@pytest.mark.parametrize(
    ("value", "expected"), [(2, (2, 2)), (0.5, (0.5, 0.5)), ([0, 4], (0, 4)), ((1, 1), (1, 1)), ([0, 4.0], (0, 4))]
)
def test_intervals(value: Any, expected: tuple[float, float]) -> None:
    made = interval(value, "here", 0, 4)
    assert made == expected
    assert all(type(end) is float for end in made)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([3, 1], "noise.level: [3, 1], expected the lower end first"),
        ([1], "noise.level: [1], expected a number or a pair [low, high]"),
        ([1, 2, 3], "noise.level: [1, 2, 3], expected a number or a pair [low, high]"),
        ([], "noise.level: [], expected a number or a pair [low, high]"),
        ([0, 5], "noise.level: 5, expected a number in [0, 4]"),
        (-1, "noise.level: -1, expected a number in [0, 4]"),
        ("0-4", "noise.level: '0-4', expected a number in [0, 4]"),
        (None, "noise.level: None, expected a number in [0, 4]"),
        ([0, "4"], "noise.level: '4', expected a number in [0, 4]"),
        ([False, 1], "noise.level: False, expected a number in [0, 4]"),
    ],
)
def test_what_is_no_interval(value: Any, message: str) -> None:
    assert_refused(message, interval, value, "noise.level", 0, 4)


def test_true_and_false() -> None:
    assert [boolean(value, "usm") for value in (True, False)] == [True, False]


@pytest.mark.parametrize("value", [0, 1, "true", None, [True]])
def test_what_is_neither_true_nor_false(value: Any) -> None:
    assert_refused(f"usm: {value!r}, expected true or false", boolean, value, "usm")
