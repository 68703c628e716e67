"""Option files that inherit: what they come to, what is refused, and that runs on them are runs on the flat file."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from basicsr.utils.options import ordered_yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bsr_plugins.errors import OptionError
from bsr_plugins.options.files import resolve, resolve_marked
from tests.options.test_bad_options import weights_for

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

Run = Callable[..., "Outcome"]
Tree = dict[str, Any]

# PyYAML writes such text without quotes, as it reads it as text; here it is a number, as with `lr: 1e-4`.
EXPONENT = re.compile(r"[-+]?[\d._]+[eE][-+]?\d+")
TEXTS = st.text(max_size=5).filter(lambda text: EXPONENT.fullmatch(text) is None)
SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | TEXTS
LISTS = st.lists(st.integers(0, 9) | st.fixed_dictionaries({"a": SCALARS}), max_size=2)
TREES = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(SCALARS | LISTS, lambda values: st.dictionaries(st.sampled_from("abc"), values, max_size=3)),
    max_size=3,
)
few = settings(max_examples=50, deadline=None)


def flatten(file: Path) -> bytes:
    return resolve_marked(file).as_bytes()


def written(folder: Path, **texts: str) -> Path:
    """Write option files, `NAME.yml` each; return the last."""
    for name, text in texts.items():
        file = folder / f"{name}.yml"
        file.write_text(text)
    return file


def inherited(*trees: Tree) -> Tree:
    """Resolve a chain of files, each with one tree and the file before it as its base."""
    with tempfile.TemporaryDirectory() as folder:
        for number, tree in enumerate(trees):
            file = Path(folder) / f"{number}.yml"
            file.write_text(yaml.safe_dump(tree if number == 0 else {"_base_": f"{number - 1}.yml", **tree}))
        return resolve(file)


def leaves(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield every value that is no mapping, or an empty one, with the keys that lead to it."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, tree


def merged_by_leaves(base: Tree, own: Tree) -> dict[tuple[str, ...], object]:
    """Merge leaf by leaf: each takes the place of what is above and below it."""
    found = dict(leaves(base))
    for path, leaf in leaves(own):
        below = [other for other in found if other[: len(path)] == path]
        above = [other for other in found if path[: len(other)] == other]
        if leaf == {} and any(other != path or found[other] == {} for other in below):
            continue  # an empty mapping changes no mapping
        for other in {*below, *above}:
            del found[other]
        found[path] = leaf
    return found


@few
@given(TREES)
def test_a_file_without_bases_is_what_it_says(tree: Tree) -> None:
    text = yaml.safe_dump(tree)
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder), a=text)
        assert resolve(file) == yaml.safe_load(text) == tree
        assert flatten(file) == text.encode()


@few
@given(TREES, TREES)
def test_mappings_merge_deeply_and_all_else_replaces(base: Tree, own: Tree) -> None:
    assert dict(leaves(inherited(base, own))) == merged_by_leaves(base, own)


@few
@given(TREES, TREES, TREES)
def test_laws_of_merging(first: Tree, second: Tree, third: Tree) -> None:
    assert inherited(first, {}) == inherited({}, first) == inherited(first, first) == first
    both = inherited(first, second)
    assert inherited(both, third) == inherited(first, second, third)
    assert list(both) == [*sorted(first), *sorted(second.keys() - first.keys())]
    assert inherited(first, {"_delete_": True, **second}) == second


@few
@given(TREES, TREES)
def test_the_flat_file_says_the_same_to_basicsr(base: Tree, own: Tree) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder), base=yaml.safe_dump(base), own=yaml.safe_dump({**own, "_base_": "base.yml"}))
        flat, options = flatten(file), resolve(file)
    assert yaml.load(flat, Loader=ordered_yaml()[0]) == yaml.safe_load(flat) == options
    assert flat.isascii()


BASE = """
name: base
network_g: {type: Net, sizes: [1, 2], inner: {a: 1, b: 2}}
train: {pixel_opt: {type: L1Loss, loss_weight: 2}, ema: ~}
"""


@pytest.mark.parametrize(
    ("own", "changed"),
    [
        ("network_g: {sizes: [3]}", {"network_g": {"type": "Net", "sizes": [3], "inner": {"a": 1, "b": 2}}}),
        ("network_g: {inner: {b: ~}}", {"network_g": {"type": "Net", "sizes": [1, 2], "inner": {"a": 1, "b": None}}}),
        ("network_g: ~", {"network_g": None}),
        ("network_g: {_delete_: true, type: Other}", {"network_g": {"type": "Other"}}),
        ("network_g: {inner: {_delete_: yes}}", {"network_g": {"type": "Net", "sizes": [1, 2], "inner": {}}}),
        ("network_g: {_delete_: false}", {}),
        (
            "train: {ema: {decay: 1}}",
            {"train": {"pixel_opt": {"type": "L1Loss", "loss_weight": 2}, "ema": {"decay": 1}}},
        ),
        ("val: {_delete_: true, metrics: [{_delete_: true, a: 1}]}", {"val": {"metrics": [{"a": 1}]}}),
        ("train: {_delete_: true, lr: !!float 5e3}", {"train": {"lr": 5000.0}}),
    ],
)
def test_what_a_file_changes(tmp_path: Path, own: str, changed: Tree) -> None:
    file = written(tmp_path, base=BASE, own=f"_base_: base.yml\n{own}")
    assert resolve(file) == {**yaml.safe_load(BASE), **changed}
    assert list(resolve(file))[:3] == ["name", "network_g", "train"]
    assert yaml.safe_load(flatten(file)) == resolve(file)


def test_a_file_that_only_could_inherit_is_flattened_too(tmp_path: Path) -> None:
    file = written(tmp_path, a="x: [{y: {_delete_: true, p: 1}}]")
    assert yaml.safe_load(flatten(file)) == resolve(file) == {"x": [{"y": {"p": 1}}]}


def test_a_chain_of_three_in_folders(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    written(tmp_path, a="x: {p: 1, q: 1, r: 1}", c="_base_: inner/b.yml\nx: {r: 3}")
    written(inner, b="_base_: ../a.yml\nx: {q: 2, r: 2}")
    assert resolve(tmp_path / "c.yml") == {"x": {"p": 1, "q": 2, "r": 3}}


def test_of_several_bases_the_later_wins(tmp_path: Path) -> None:
    written(tmp_path, a="x: {p: 1, q: 1}\ny: {p: 1}", b="_base_: []\nx: {q: 2, r: 2}\ny: {_delete_: true, q: 2}")
    assert resolve(written(tmp_path, c="_base_: [a.yml, b.yml]\nx: {r: 3}")) == {
        "x": {"p": 1, "q": 2, "r": 3},
        "y": {"q": 2},
    }
    assert resolve(written(tmp_path, d="_base_: [b.yml, a.yml]"))["x"] == {"p": 1, "q": 1, "r": 2}


def test_a_base_may_be_reached_twice(tmp_path: Path) -> None:
    written(tmp_path, a="x: 1\ny: 1", b="_base_: a.yml\nx: 2", c="_base_: a.yml\ny: 3")
    assert resolve(written(tmp_path, d="_base_: [b.yml, c.yml]")) == {"x": 1, "y": 3}


def test_anchors_hold_within_their_file(tmp_path: Path) -> None:
    base = "seed: &seed 10\na: &block {seed: *seed, p: 1}\nb: *block\nc: {<<: *block, p: 2}"
    options = resolve(written(tmp_path, base=base, own="_base_: base.yml\nseed: 5\na: {p: 3}"))
    assert options == {"seed": 5, "a": {"seed": 10, "p": 3}, "b": {"seed": 10, "p": 1}, "c": {"seed": 10, "p": 2}}
    assert b"&" not in flatten(tmp_path / "own.yml")
    with pytest.raises(OptionError, match=r"own.yml: cannot be read as YAML: .*undefined alias"):
        resolve(written(tmp_path, own="_base_: base.yml\nd: *seed"))


def test_nothing_is_shared_with_another_place(tmp_path: Path) -> None:
    options = resolve(written(tmp_path, base="a: &block {p: [1]}\nb: *block", own="_base_: base.yml"))
    options["a"]["p"].append(2)
    assert options["b"] == {"p": [1]}


@pytest.mark.parametrize(
    ("base", "own", "message"),
    [
        ("x: 1", "_base_: bas.yml", "own.yml: _base_: bas.yml: there is no such file"),
        ("x: 1", "_base_: ''", "own.yml: _base_: : is a folder, expected an option file"),
        ("_base_: no.yml", "_base_: base.yml", "own.yml: _base_: base.yml: _base_: no.yml: there is no such file"),
        ("_base_: own.yml", "_base_: base.yml", "own.yml: _base_: base.yml: _base_: own.yml: inherits from itself, "),
        ("x: 1", "_base_: ./own.yml", "own.yml: _base_: ./own.yml: inherits from itself, "),
        ("x: 1", "_base_: 5", "own.yml: _base_: 5, expected the path of an option file or a list of paths"),
        ("x: 1", "_base_: ~", "own.yml: _base_: None, expected the path of an option file or a list of paths"),
        ("x: 1", "_base_: [base.yml, 5]", "own.yml: _base_: ['base.yml', 5], expected the path of an option file or "),
        ("x: 1", "_base_: base.yml\ny: {_base_: base.yml}", "own.yml: y._base_: 'base.yml', expected at the top of"),
        ("x: {_delete_: 1}", "_base_: base.yml", "own.yml: _base_: base.yml: x._delete_: 1, expected true or false"),
        ("x: 1", "y: [0, {_delete_: no-}]", "own.yml: y.1._delete_: 'no-', expected true or false"),
        ("- 1", "_base_: base.yml", "own.yml: _base_: base.yml: the file: [1], expected a block of keys"),
        ("", "_base_: base.yml", "own.yml: _base_: base.yml: the file: None, expected a block of keys"),
        ("x: [", "_base_: base.yml", "own.yml: _base_: base.yml: cannot be read as YAML: "),
        (
            "x: !!python/object:os.P {}",
            "_base_: base.yml",
            "base.yml: cannot be read as YAML: could not determine a con",
        ),
        (
            "x: !!float x",
            "_base_: base.yml",
            "base.yml: cannot be read as YAML: does not fit tag:yaml.org,2002:float "
            "(could not convert string to float: 'x') in \"<byte string>\", line 1, column 4",
        ),
        ("x: &a {y: *a}", "_base_: base.yml", "base.yml: a value contains itself, expected values of finite depth"),
    ],
)
def test_what_is_refused(tmp_path: Path, base: str, own: str, message: str) -> None:
    file = written(tmp_path, base=base, own=own)
    for function in (resolve, flatten):
        with pytest.raises(OptionError) as caught:
            function(file)
        assert f"{tmp_path}/" in str(caught.value)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def recipe(project: Project, aacl_options: Options) -> Options:
    """Options of a file that inherits from `recipes/base.yml`, and differs."""
    (project.root / "recipes").mkdir()
    project.write(aacl_options, "recipes/base.yml")
    network = {"_delete_": True, "type": "AACLNet", "num_feat": 4, "num_group": 1, "num_block": 1}
    return {
        "_base_": "recipes/base.yml",
        "name": "heir",
        "network_g": {**network, "encoder_num_feat": 8},
        "train": {"total_iter": 2, "encoder_phase": {"iters": 1}},
        "val": None,
    }


@pytest.fixture
def flat(recipe: Options, aacl_options: Options) -> Options:
    """What `recipe` comes to, written by hand."""
    options = copy.deepcopy(aacl_options)
    options |= {"name": "flat", "val": None, "network_g": {**recipe["network_g"]}}
    del options["network_g"]["_delete_"]
    options["train"] |= {"total_iter": 2, "encoder_phase": {"iters": 1, "lr": 0.001}}
    return options


def weights(project: Project, name: str) -> dict[str, torch.Tensor]:
    file = project.root / "experiments" / name / "models" / "net_g_latest.pth"
    parts: dict[str, dict[str, torch.Tensor]] = torch.load(file, weights_only=True)
    return {f"{part}.{key}": parts[part][key] for part in ("params", "params_ema") for key in parts[part]}


def assert_equal(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


def test_a_run_is_that_of_the_flat_file_and_so_is_its_copy(
    project: Project, recipe: Options, flat: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_process("train", flat).status == 0
    expected = weights(project, "flat")
    given = (project.root / "options.yml").read_text()
    kept = (project.root / "experiments" / "flat" / "options.yml").read_text()
    assert kept.endswith(f"\n\n{given}")

    assert in_process("train", recipe).status == 0
    assert_equal(weights(project, "heir"), expected)
    file = project.root / "experiments" / "heir" / "options.yml"
    lines = file.read_text().splitlines()
    assert lines[1:4] == ["# CMD:", f"# train -opt {project.root / 'options.yml'}", ""]
    assert list(yaml.safe_load(file.read_text()).items()) == [*(flat | {"name": "heir"}).items()]

    # In place, where BasicSR moves the folder of the earlier run, and the file with it, before it copies the file.
    monkeypatch.setattr(project, "write", lambda _options: file)
    (project.root / "recipes" / "base.yml").unlink()
    assert in_process("train", {}).status == 0
    assert len(project.experiments) == 3
    assert_equal(weights(project, "heir"), expected)
    assert yaml.safe_load(file.read_text()) == flat | {"name": "heir"}


def test_merge_keys_in_a_file_that_does_not_inherit(
    project: Project, flat: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat["train"]["optim_g"] = {"<<": {"type": "Adam", "lr": 0.5}, "lr": 0.25}
    file = project.root / "merged.yml"
    file.write_text(yaml.safe_dump(flat, sort_keys=False).replace("'<<'", "<<"))
    monkeypatch.setattr(project, "write", lambda _options: file)
    outcome = in_process("train", {})
    assert outcome.status == 0
    assert "\n      lr: 0.25\n" in outcome.output
    assert "<<:" in (project.root / "experiments" / "flat" / "merged.yml").read_text()


def test_the_command_line_changes_what_is_inherited(project: Project, recipe: Options, in_process: Run) -> None:
    outcome = in_process("train", recipe, "--force_yml", "train:optim_g:lr=0.5", "train:total_iter=1")
    assert outcome.status == 0
    for line in ("\n    total_iter: 1\n", "\n      lr: 0.5\n", "iter:       1"):
        assert line in outcome.output
    assert "iter:       2" not in outcome.output
    kept = yaml.safe_load((project.root / "experiments" / "heir" / "options.yml").read_text())
    assert kept["train"]["optim_g"]["lr"] == 0.5
    assert kept["train"]["total_iter"] == 1


def test_resuming(project: Project, recipe: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file itself, then from the run's copy of it, which is copied onto itself."""
    saving = recipe | {"logger": {"save_checkpoint_freq": 1}}
    assert in_process("train", saving, "--force_yml", "train:total_iter=1").status == 0
    outcome = in_process("train", saving, "--auto_resume")
    assert "Resuming training from epoch: 0, iter: 1." in outcome.output
    file = project.root / "experiments" / "heir" / "options.yml"
    monkeypatch.setattr(project, "write", lambda _options: file)
    outcome = in_process("train", {}, "--auto_resume", "--force_yml", "train:total_iter=3")
    assert "Resuming training from epoch: 0, iter: 2." in outcome.output
    assert outcome.status == 0
    assert file.read_text().splitlines()[2].endswith("--force_yml train:total_iter=3")
    assert yaml.safe_load(file.read_text())["logger"] == resolve(project.root / "options.yml")["logger"]
    assert yaml.safe_load(file.read_text())["train"]["total_iter"] == 3
    assert project.experiments == ["heir"]


def test_a_test_run_inherits(project: Project, aacl_options: Options, in_process: Run) -> None:
    aacl_options["datasets"] = {"test": {**aacl_options["datasets"]["val"], "name": "test"}}
    aacl_options["val"]["metrics"] = None
    weights_for(project, aacl_options)
    project.write(aacl_options, "base.yml")
    outcome = in_process("test", {"_base_": "base.yml", "name": "heir", "val": {"save_img": True}})
    assert outcome.status == 0
    assert len(list((project.root / "results" / "heir").rglob("*.png"))) == 8


def test_a_bad_value_in_a_base(project: Project, aacl_options: Options, recipe: Options, in_process: Run) -> None:
    aacl_options["train"]["scheduler"]["gama"] = aacl_options["train"]["scheduler"].pop("gamma")
    project.write(aacl_options, "recipes/base.yml")
    outcome = in_process("train", recipe)
    assert outcome.status == 2
    (line,) = outcome.output.splitlines()
    assert line.startswith(f"error: {project.root}/recipes/base.yml:")
    assert ": train.scheduler.gama: unknown key, " in line

    aacl_options["name"] = recipe["name"] = "a/b"
    outcome = in_process("train", recipe)
    assert outcome.status == 2
    line = outcome.output.splitlines()[0]
    assert line == f"error: {project.root}/options.yml:2: name: 'a/b', expected the name of a folder"
    assert len(outcome.output.splitlines()) == 2

    outcome = in_process("train", recipe | {"_base_": "base.yml"})
    assert outcome.status == 2
    assert outcome.output == f"error: -opt: {project.root}/options.yml: _base_: base.yml: there is no such file\n"
    assert project.experiments == []
