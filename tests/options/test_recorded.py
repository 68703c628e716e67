"""A mapping that records reads, in whatever way people read options."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from bsr_plugins.options.recorded import Reads, Recorded, plain

BLOCK: dict[str, Any] = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "list": [{"f": 4, "g": 5}, [{"h": 6}]]}
Read = Callable[[Recorded], object]


def unread(read: Read) -> set[str]:
    """What is left unread, as dotted places."""
    reads = Reads()
    read(Recorded(BLOCK, reads))
    return {".".join(map(str, place)) for place in reads.unread(BLOCK)}


def matched(opt: Any) -> Any:
    match opt:
        case {"a": found}:
            return found


def keywords(**given: Any) -> dict[str, Any]:
    return given


def update_of_another(opt: Recorded) -> None:
    {}.update(opt)


NAMED: list[Read] = [
    lambda opt: opt["a"],
    lambda opt: opt.get("a"),
    lambda opt: opt.pop("a"),
    lambda opt: opt.setdefault("a", 5),
    lambda opt: "a" in opt,
    lambda opt: opt.copy()["a"],
    lambda opt: copy.copy(opt)["a"],
    lambda opt: copy.deepcopy(opt)["a"],
    lambda opt: copy.deepcopy([{"x": opt}])[0]["x"]["a"],
    matched,
]


@pytest.mark.parametrize("read", NAMED)
def test_keys_are_read_by_name(read: Read) -> None:
    assert unread(read) == {"b", "list"}


WHOLE: list[Read] = [
    list,
    dict,
    lambda opt: [key for key in opt],  # noqa: C416  (as people write)
    lambda opt: {**opt},
    lambda opt: keywords(**opt),
    lambda opt: opt.items(),
    lambda opt: opt.values(),
    lambda opt: opt.keys(),
    lambda opt: opt | {"x": 1},
    lambda opt: {"x": 1} | opt,
    lambda opt: opt.popitem(),
    reversed,
    update_of_another,
]


@pytest.mark.parametrize("read", WHOLE)
def test_a_whole_block_is_read(read: Read) -> None:
    assert unread(read) == {"b.c", "b.d", "list.0.f", "list.0.g", "list.1.0.h"}


INNER: list[tuple[Read, set[str]]] = [
    (lambda opt: opt["b"]["d"]["e"], {"a", "b.c", "list"}),
    (lambda opt: opt["list"][0]["f"], {"a", "b", "list.0.g", "list.1.0.h"}),
    (lambda opt: dict(opt)["b"]["c"], {"b.d", "list.0.f", "list.0.g", "list.1.0.h"}),
    (lambda opt: copy.deepcopy(opt["b"])["c"], {"a", "b.d", "list"}),
    (lambda opt: copy.deepcopy(opt["list"])[1][0]["h"], {"a", "b", "list.0.f", "list.0.g"}),
    (lambda opt: (opt.update({"new": 1}), opt["new"]), {"a", "b", "list"}),
    (json.dumps, set()),
    (yaml.safe_dump, set()),
    (yaml.dump, set()),
    (len, {"a", "b", "list"}),
    (bool, {"a", "b", "list"}),
    (repr, {"a", "b", "list"}),
    (pickle.dumps, {"a", "b", "list"}),
    (plain, {"a", "b", "list"}),
]


@pytest.mark.parametrize(("read", "left"), INNER)
def test_what_is_in_nested_blocks_and_lists(read: Read, left: set[str]) -> None:
    assert unread(read) == left


def test_it_is_a_dict_that_is_left_as_it_was() -> None:
    before, opt = copy.deepcopy(BLOCK), Recorded(BLOCK, Reads())
    opt["b"]["c"] = 5
    opt.pop("a")
    assert before == BLOCK
    assert isinstance(opt, dict)
    assert isinstance(opt["b"], dict)
    assert opt == {"b": {"c": 5, "d": {"e": 3}}, "list": BLOCK["list"]}
    for made in (pickle.loads(pickle.dumps(opt)), plain(opt)):
        assert made == opt
        assert type(made) is type(made["b"]) is type(made["list"][0]) is dict


def test_what_is_asked_for_and_not_there_is_known() -> None:
    reads = Reads()
    opt = Recorded(BLOCK, reads)
    assert opt["b"].get("weight", 7) == 7
    assert "size" not in opt
    assert reads.names(("b",)) == {"weight"}
    assert reads.names(()) == {"b", "size"}
    assert reads.lacking is None
    with pytest.raises(KeyError):
        opt["b"]["d"]["missing"]
    assert reads.lacking == ("b", "d", "missing")
    with pytest.raises(KeyError):
        opt.pop("gone")
    assert reads.lacking == ("gone",)
