"""Errors that a user can mend."""

from __future__ import annotations

import pytest

from bsr_plugins.errors import BadImageError, BSRError, OptionError, described, did_you_mean, unknown_name


@pytest.mark.parametrize("error", [OptionError, BadImageError])
def test_all_are_bsr_errors_and_value_errors(error: type[Exception]) -> None:
    assert issubclass(error, BSRError)
    assert issubclass(BSRError, ValueError)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gausian8", "; did you mean 'gaussian8'?"),
        ("aniso", "; did you mean 'aniso9'?"),
        ("xyz", ""),
        ("", ""),
        (8, ""),
        (None, ""),
        (["gaussian8"], "; did you mean 'gaussian8'?"),
    ],
)
def test_the_nearest_known_name_is_offered(name: object, hint: str) -> None:
    assert did_you_mean(name, ["bicubic", "gaussian8", "aniso9"]) == hint


def test_nothing_is_offered_where_nothing_is_known() -> None:
    assert did_you_mean("x", []) == ""


def test_an_unknown_name_is_told_with_its_place_and_all_that_would_do() -> None:
    error = unknown_name("degradation.border", "mirrow", (name for name in ("mirror", "clamp")))
    assert isinstance(error, OptionError)
    assert str(error) == (
        "degradation.border: unknown name 'mirrow', expected one of clamp, mirror; did you mean 'mirror'?"
    )
    assert str(unknown_name("phase", "\n", {"train", "val"})) == r"phase: unknown name '\n', expected one of train, val"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no  such\n thing"), "ValueError: no such thing"),
        (ValueError("one text", "another"), "ValueError: one text another"),
        (OSError(2, "No such file", "a.png"), "FileNotFoundError: [Errno 2] No such file: 'a.png'"),
        (KeyError("gt"), "KeyError: 'gt'"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_an_error_is_described_in_one_line(error: Exception, line: str) -> None:
    assert described(error) == line
