"""Where options come from: the file and line that set them last, through bases, merge keys and the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from bsr_plugins.errors import OptionError
from bsr_plugins.options.faults import Faults
from bsr_plugins.options.files import Resolved, apply_overrides, resolve, resolve_marked
from bsr_plugins.options.yaml_text import as_yaml, read_value


def positions(file: Path) -> dict[str, str]:
    found = resolve_marked(file).positions
    return {".".join(map(str, place)): os.path.relpath(text, file.parent) for place, text in found.items()}


def test_keys_and_items_know_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    file.write_text("x: 1\n\ny:\n  p: [1,\n    {q: 2}]\n  # comment\n  r: ~\n")
    assert positions(file) == {
        "x": "a.yml:1",
        "y": "a.yml:3",
        "y.p": "a.yml:4",
        "y.p.0": "a.yml:4",
        "y.p.1": "a.yml:5",
        "y.p.1.q": "a.yml:5",
        "y.r": "a.yml:7",
    }


def test_the_last_file_to_set_a_key_has_it(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text("x: {p: 1, q: 1}\ny: {p: 1, q: {r: 1}}\nz: {p: 1}\nw: 1")
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "own.yml"
    file.write_text("_base_: ../base.yml\nx: {q: 2}\ny: {_delete_: true,\n  q: 2}\nz: ~")
    assert positions(file) == {
        "x": "own.yml:2",
        "x.p": "../base.yml:1",
        "x.q": "own.yml:2",
        "y": "own.yml:3",
        "y.q": "own.yml:4",
        "z": "own.yml:5",
        "w": "../base.yml:4",
    }
    assert resolve_marked(file).switched_off == {("z",)}


def test_merged_keys_stand_where_their_anchor_does(tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    file.write_text("a: &a\n  p: 1\n  q: 1\nb:\n  <<: *a\n  q: 2\nc: *a\n")
    found = positions(file)
    assert found["b.p"] == "a.yml:2"
    assert found["b.q"] == "a.yml:6"
    assert found["c.q"] == "a.yml:3"
    assert resolve(file)["b"] == {"p": 1, "q": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: 1\ny: 2\nx: 3", "a.yml:3: x: the key is there already, in line 1"),
        ("x: {p: 1, p: 2}", "a.yml:1: x.p: the key is there already, in line 1"),
        ("x:\n- {p: 1}\n- p: 1\n  'p': 1", "a.yml:4: x.1.p: the key is there already, in line 3"),
        ("x: {<<: &a {p: 1, p: 1}}", "a.yml:1: x.p: the key is there already, in line 1"),
        ("x: &a {p: 1, p: 1}\ny: *a\nz: 1\nz: 1", "a.yml:1: x.p: the key is there already, in line 1\nZ"),
    ],
)
def test_a_key_that_is_there_twice(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yml").write_text(text)
    (tmp_path / "own.yml").write_text("_base_: a.yml")
    for name in ("a.yml", "own.yml"):
        with pytest.raises(OptionError) as caught:
            resolve(tmp_path / name)
        expected = message.replace("Z", f"{tmp_path}/a.yml:4: z: the key is there already, in line 3")
        assert str(caught.value) == f"{tmp_path}/{expected}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E4", 1e4),
        ("-2.5e3", -2500.0),
        ("1.e2", 100.0),
        (".5e1", 5.0),
        ("+1e+1", 10.0),
        ("1_000e1", 1e4),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("e1", "e1"),
        ("1e-4x", "1e-4x"),
        ("0x1e4", 0x1E4),
        ("5", 5),
        ("[1e-7, ~, on]", [1e-7, None, True]),
    ],
)
def test_exponents_make_numbers(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "a.yml").write_text(f"x: {text}")
    assert resolve(tmp_path / "a.yml") == {"x": value}
    assert type(read_value(text)) is type(value)
    assert read_value(text) == value
    (tmp_path / "a.yml").write_bytes(as_yaml({"x": value}))
    assert resolve(tmp_path / "a.yml") == {"x": value}
    assert yaml.safe_load((tmp_path / "a.yml").read_text()) == {"x": value}


def test_a_few_aliases_cannot_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "a.yml").write_text("\n".join(lines))
    with pytest.raises(OptionError, match="cannot be read as YAML: more than 100000 values, aliases included"):
        resolve(tmp_path / "a.yml")


def overridden(tmp_path: Path, *entries: str) -> tuple[Resolved, tuple[str, ...]]:
    (tmp_path / "a.yml").write_text("x: {p: 1, q: [1]}\ny: ~\nz: 5")
    resolved = resolve_marked(tmp_path / "a.yml")
    faults = Faults("a.yml", resolved.positions)
    apply_overrides(resolved, entries, faults)
    return resolved, faults.lines


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("z=1e-4", {"z": 1e-4}),
        ("z=", {"z": None}),
        ("z==a=b", {"z": "=a=b"}),
        ("z='1'", {"z": "1"}),
        ("z=true", {"z": True}),
        ("z=__import__('os').getcwd()", {"z": "__import__('os').getcwd()"}),
        ("x:p=2", {"x": {"p": 2, "q": [1]}}),
        ("x={r: [1, {s: ~}]}", {"x": {"r": [1, {"s": None}]}}),
        ("y:a:b=2", {"y": {"a": {"b": 2}}}),
        ("new:a=2", {"new": {"a": 2}}),
    ],
)
def test_the_command_line_sets_options(tmp_path: Path, entry: str, expected: dict[str, object]) -> None:
    resolved, lines = overridden(tmp_path, entry)
    assert lines == ()
    assert resolved.options == {"x": {"p": 1, "q": [1]}, "y": None, "z": 5} | expected
    place = tuple(entry.partition("=")[0].split(":"))
    assert resolved.positions[place] == f"--set {entry}"
    assert not [below for below in resolved.positions if below[: len(place)] == place and below != place]
    assert yaml.safe_load(resolved.as_bytes()) == resolved.options


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("z", "expected KEY=VALUE or KEY:KEY=VALUE"),
        ("=5", "expected KEY=VALUE or KEY:KEY=VALUE"),
        ("x::p=5", "expected KEY=VALUE or KEY:KEY=VALUE"),
        ("z:a=5", "z is 5, expected a block of keys"),
        ("x:q:0=5", "x.q is [1], expected a block of keys"),
        ("z=[", "the value cannot be read as YAML: while parsing a flow node"),
        ("z={a: 1, a: 2}", "the value cannot be read as YAML: the key a is there already"),
        ("z=!!python/object:os.P {}", "the value cannot be read as YAML: could not determine a constructor"),
        ("z=&a [*a]", "the value cannot be read as YAML: "),
    ],
)
def test_entries_that_cannot_be_used(tmp_path: Path, entry: str, message: str) -> None:
    resolved, lines = overridden(tmp_path, entry, "x:p=2")
    (line,) = lines
    assert f"--set {entry}: {message}" in line
    assert resolved.options == {"x": {"p": 2, "q": [1]}, "y": None, "z": 5}


def test_the_file_is_kept_as_it_is_where_nothing_changes_it(tmp_path: Path) -> None:
    resolved, _ = overridden(tmp_path)
    assert resolved.as_bytes() == (tmp_path / "a.yml").read_bytes()
