"""Finding what to resume from: broken sets are passed over with a reason, and nothing in a folder is stumbled over."""

from __future__ import annotations

import copy
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsr_plugins.engine.checkpoint_sets import (
    CheckpointSet,
    Identity,
    RunFolders,
    Search,
    find_set,
    load_set,
    newest_complete,
    use_networks,
    wanted_networks,
)
from bsr_plugins.errors import BSRError
from tests.engine.tiny_training import (
    KEY,
    flip,
    identity_of,
    make_model,
    make_store,
    tiny_gan_options,
    tiny_options,
    train,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the sets of iterations 2 and 10, of which the first is BasicSR's own."""
    root = tmp_path_factory.mktemp("saved")
    opt = tiny_options(root)
    model = make_model(opt)
    train(model, 1, 2)
    model.save(0, 2)
    make_store(opt).save(model, 1, 10, {"best": 3.5})
    make_store(opt).save_latest(model, 10)
    return root


@pytest.fixture
def root(saved: Path, tmp_path: Path) -> Path:
    """A copy of it; a test may change it."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def search(root: Path, *wanted: str) -> Search:
    return newest_complete(RunFolders(root / "models", root / "training_states"), wanted or ("g",))


def only(root: Path) -> CheckpointSet:
    found, passed_over = search(root)
    assert found is not None
    assert passed_over == []
    return found


def reason(root: Path) -> str:
    """Search where the set of iteration 10 is broken, and return why."""
    found, passed_over = search(root)
    assert found is not None
    assert found.iteration == 2
    assert len(passed_over) == 1
    assert "\n" not in passed_over[0]
    return passed_over[0]


def test_the_newest_set_is_found_with_all_it_holds(root: Path) -> None:
    found = only(root)
    assert (found.iteration, found.file) == (10, root / "training_states" / "10.state")
    assert list(found.state) == ["epoch", "iter", "optimizers", "schedulers"]
    assert (found.state["epoch"], found.state["iter"], found.extras) == (1, 10, {"best": 3.5})
    assert found.networks == {"g": root / "models" / "net_g_10.pth"}
    assert found.identity == identity_of(tiny_options(root))


def test_a_set_of_basicsr_is_taken_for_what_it_is(root: Path) -> None:
    (root / "training_states" / "10.state").unlink()
    found = only(root)
    assert (found.iteration, found.identity, found.extras) == (2, None, {})
    assert found.networks == {"g": root / "models" / "net_g_2.pth"}
    (line,) = identity_of(tiny_options(root)).remarks_on(found.file.name, found.identity)
    assert line.startswith("2.state is BasicSR's, which keeps less")


@pytest.mark.parametrize("folder", ["training_states", "models", "."])
def test_missing_folders_hold_nothing(root: Path, folder: str) -> None:
    shutil.rmtree(root / folder)
    found, passed_over = search(root)
    assert found is None
    assert all("net_g" in line for line in passed_over)
    assert len(passed_over) == (2 if folder == "models" else 0)


def test_what_is_no_checkpoint_is_left_out(root: Path) -> None:
    states, models = root / "training_states", root / "models"
    for name in ("latest.state", "12.5.state", "0011.state", "-3.state", "²⁰.state", "11.state.bak", ".11.state.7.tmp"):
        (states / name).write_text("mine")
    for name in ("notes_10.txt", "net_g_best.pth", "net_g_11.pth", "net_g_010.pth", "_10.pth"):
        (models / name).write_text("mine")
    (models / "net_h_11.pth").mkdir()
    assert only(root).iteration == 10


def test_what_only_looks_like_a_state_is_passed_over(root: Path) -> None:
    states = root / "training_states"
    (states / "11.state").mkdir()
    (states / "12.state").symlink_to("nowhere")
    (states / "13.state").touch()
    (states / "14.state").write_text("not a pickle")
    os.mkfifo(states / "15.state")
    torch.save([1], states / "16.state")
    torch.save({"epoch": 0, "iter": 17, "optimizers": []}, states / "17.state")
    torch.save({"epoch": 0, "iter": True, "optimizers": [], "schedulers": []}, states / "18.state")
    shutil.copy(states / "10.state", states / "19.state")
    found, passed_over = search(root)
    assert found is not None
    assert found.iteration == 10
    expected = [
        "19.state: is of iteration 10, expected 19 as its name says",
        "18.state: has no 'iter' that is a int",
        "17.state: has no 'schedulers' that is a list",
        "16.state: holds list, expected a training state",
        "15.state: is no file",
        "14.state: cannot be loaded safely (",
        "13.state: cannot be loaded safely (",
        "12.state: cannot be read (No such file or directory)",
        "11.state: is no file",
    ]
    for line, start in zip(passed_over, expected, strict=True):
        assert line.startswith(f"training_states/{start}")


class Hostile:
    """What makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("form", ["zip", "old"])
def test_a_hostile_pickle_is_refused(root: Path, tmp_path: Path, form: str) -> None:
    file, trace = root / "training_states" / "10.state", tmp_path / "executed"
    content = {"epoch": 0, "iter": 10, "optimizers": [Hostile(trace)], "schedulers": []}
    torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    assert reason(root).startswith("training_states/10.state: cannot be loaded safely (")
    assert not trace.exists()
    with pytest.raises(
        BSRError, match=r"path\.resume_state: .*10\.state cannot be used: .*10\.state: cannot be loaded"
    ):
        load_set(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "it would have run"


def test_networks_that_are_not_those_of_the_state(root: Path) -> None:
    file = root / "models" / "net_g_10.pth"
    content = file.read_bytes()
    file.unlink()
    assert reason(root) == "models/net_g_10.pth: is missing"
    for changed in (content[:-1], content + b"x", b"", content[:500] + b"~" + content[501:]):
        file.write_bytes(changed)
        assert reason(root) == "models/net_g_10.pth: differs from what the state records"
    shutil.copy(root / "models" / "net_g_2.pth", file)
    assert reason(root) == "models/net_g_10.pth: differs from what the state records"
    file.unlink()
    file.mkdir()
    assert reason(root) == "models/net_g_10.pth: is missing"


def test_a_set_lacks_a_network_that_is_wanted(root: Path) -> None:
    found, passed_over = search(root, "g", "d")
    assert found is None
    assert [re.sub(", expected.*", "", line) for line in passed_over] == [
        "training_states/10.state: has no net_d_10.pth with it",
        "training_states/2.state: has no net_d_2.pth with it",
    ]


def test_a_network_next_to_the_recorded_ones_must_load(root: Path) -> None:
    other = root / "models" / "net_x_10.pth"
    shutil.copy(root / "models" / "net_g_2.pth", other)
    assert set(only(root).networks) == {"g", "x"}
    other.write_bytes(b"")
    assert reason(root).startswith("models/net_x_10.pth: cannot be loaded safely (")


def test_a_broken_network_of_basicsr(root: Path) -> None:
    (root / "training_states" / "10.state").unlink()
    file = root / "models" / "net_g_2.pth"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    found, (line,) = search(root)
    assert found is None
    assert re.match(r"models/net_g_2\.pth: cannot be (loaded safely|read) \(", line)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 2}, "bsr_plugins.version: 2, expected"),
        ({"run_id": 5}, "bsr_plugins.run_id: 5, expected text"),
        ({"manual_seed": None}, "bsr_plugins.manual_seed: None, expected a whole number"),
        ({"files": None}, "bsr_plugins.files: None, expected a block of keys"),
        ({"extras": [1]}, "bsr_plugins.extras: [1], expected a block of keys"),
        ({"files": {"net_g_10.pth": None}}, "bsr_plugins.files.net_g_10.pth: None"),
        ({"files": {"net_g_10.pth": {"size": "x", "digest": "x"}}}, "bsr_plugins.files.net_g_10.pth: 'x'"),
        ({"files": {"../net_g_2.pth": {"size": 1, "digest": "x"}}}, "net_g_2.pth: is missing"),
        (None, "bsr_plugins: 'nonsense', expected a block of keys"),
    ],
)
def test_a_state_that_says_nonsense_of_itself(root: Path, change: dict[str, Any] | None, expected: str) -> None:
    file = root / "training_states" / "10.state"
    state = torch.load(file, weights_only=True)
    state[KEY] = "nonsense" if change is None else {**state[KEY], **change}
    torch.save(state, file)
    assert expected in reason(root)


@given(st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=40)
def test_a_state_that_breaks_off_is_broken(saved: Path, tmp_path_factory: pytest.TempPathFactory, part: float) -> None:
    file = tmp_path_factory.mktemp("broken") / "10.state"
    content = (saved / "training_states" / "10.state").read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(BSRError, match=r"10\.state: cannot be (loaded safely|read) \("):
        load_set(file, saved / "models")


@given(st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=60)
def test_a_state_with_a_flipped_bit_is_broken_or_the_same(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, part: float
) -> None:
    original = saved / "training_states" / "10.state"
    file = Path(shutil.copy(original, tmp_path_factory.mktemp("flipped")))
    flip(file, int(part * file.stat().st_size))
    try:
        state = load_set(file, saved / "models").state
    except BSRError:
        return
    assert_equal(state, load_set(original, saved / "models").state)


def test_a_flipped_bit_in_a_tensor_is_noticed(root: Path) -> None:
    file = root / "training_states" / "10.state"
    moment = torch.load(file, weights_only=True)["optimizers"][0]["state"][0]["exp_avg"]
    place = file.read_bytes().index(moment.numpy().tobytes())
    flip(file, place + 3)
    assert reason(root).startswith("training_states/10.state: ")


def assert_equal(one: Any, other: Any) -> None:
    """Check that two states are the same."""
    assert str(one) == str(other)


def test_an_explicit_state_brings_the_networks_next_to_it(root: Path, tmp_path: Path) -> None:
    found = load_set(root / "training_states" / "10.state")
    assert found.networks == {"g": root / "models" / "net_g_10.pth"}
    copied = Path(shutil.copy(found.file, root / "training_states" / "good.state"))
    assert load_set(copied).iteration == 10
    with pytest.raises(BSRError, match=r"path\.resume_state: .*missing\.state cannot be used: .*No such file"):
        load_set(tmp_path / "missing.state")
    (root / "models" / "net_g_10.pth").unlink()
    with pytest.raises(
        BSRError, match=r"path\.resume_state: .*10\.state cannot be used: models/net_g_10\.pth: is miss"
    ):
        load_set(found.file)


def test_what_the_options_ask_for(root: Path, tmp_path: Path) -> None:
    opt = tiny_options(root)
    assert find_set(opt) == (None, [])
    opt["path"]["resume_state"] = str(root / "training_states" / "2.state")
    named = find_set(opt).found
    assert named is not None
    assert named.iteration == 2
    opt["auto_resume"] = True
    both = find_set(opt).found
    assert both is not None
    assert both.iteration == 10
    flip(root / "models" / "net_g_10.pth", 100)
    newest, passed_over = find_set(opt)
    assert newest is not None
    assert (newest.iteration, len(passed_over)) == (2, 1)
    elsewhere = tiny_options(tmp_path / "elsewhere")
    elsewhere |= {"auto_resume": True}
    assert find_set(elsewhere) == (None, [])
    elsewhere["path"]["resume_state"] = opt["path"]["resume_state"]
    begun = find_set(elsewhere).found
    assert begun is not None
    assert begun.networks == {"g": root / "models" / "net_g_2.pth"}


def test_options_are_pointed_at_the_networks(root: Path) -> None:
    opt, found = tiny_gan_options(root), only(root)
    opt["path"]["resume_state"] = str(found.file)
    with pytest.raises(
        BSRError, match=r"10\.state: has no net_d_10\.pth with it, expected it, or network_d in path\.ig"
    ):
        find_set(opt)
    opt["path"] |= {
        "ignore_resume_networks": ["network_d"],
        "pretrain_network_d": "mine.pth",
        "param_key_d": "params_ema",
        "pretrain_network_g": "start.pth",
        "param_key_g": "params_ema",
    }
    opt["network_e"] = None
    before = copy.deepcopy(opt["path"])
    assert wanted_networks(opt) == ["g"]
    use_networks(opt, found)
    assert opt["path"] == before | {
        "resume_state": str(found.file),
        "pretrain_network_g": str(root / "models" / "net_g_10.pth"),
        "param_key_g": "params",
    }
    for ignored in ("network_g", ["network_g", "network_d"]):
        opt["path"]["ignore_resume_networks"] = ignored
        assert "g" not in wanted_networks(opt)


def test_the_identity_of_a_run(tmp_path: Path) -> None:
    opt = tiny_options(tmp_path)
    identity = Identity.of(opt, 10)
    assert (identity.total_batch, identity.world_size, identity.num_samples) == (4, 1, 10)
    assert Identity.of(opt, 10).run_id != identity.run_id
    assert Identity.of({**opt, "num_gpu": 2}, 10).total_batch == 8
    spread = Identity.of({**opt, "dist": True, "world_size": 3, "num_gpu": 1}, 10)
    assert (spread.total_batch, spread.world_size) == (12, 3)


def test_why_a_resume_is_not_exact(root: Path) -> None:
    opt, found = tiny_options(root), only(root)

    def lines(num_samples: int = 10, **changes: Any) -> list[str]:
        identity = Identity.of({**copy.deepcopy(opt), **changes}, num_samples)
        return identity.remarks_on(found.file.name, found.identity)

    assert lines() == []
    train_opt, train_set = opt["train"], opt["datasets"]["train"]
    harmless: dict[str, Any] = {
        "name": "renamed",
        "logger": {"print_freq": 3},
        "val": {"val_freq": 2},
        "path": {},
        "train": dict(reversed((train_opt | {"total_iter": 7}).items())),
        "datasets": {"val": {"name": "v"}, "train": train_set | {"num_worker_per_gpu": 9, "prefetch_mode": "cpu"}},
    }
    assert lines(**harmless) == []
    end = ": the run does not go on exactly as it would have."
    assert lines(num_samples=11) == [f"10.state was saved with 10 training images, and not 11{end}"]
    assert lines(manual_seed=4)[0] == f"10.state was saved with 3 as manual_seed, and not 4{end}"
    assert lines(dist=True, world_size=2)[:2] == [
        f"10.state was saved with 1 processes, and not 2{end}",
        f"10.state was saved with 4 samples a batch over all processes, and not 8{end}",
    ]
    kept = "Optimisers and schedules go on as 10.state has them, learning rates and milestones included, "
    other = [f"10.state was saved with other options of training{end}", f"{kept}whatever the options say now."]
    assert lines(train={**train_opt, "ema_decay": 0.8}) == other
    assert lines(datasets={"train": {**train_set, "gt_size": 32}}) == other
    assert lines(network_g={**opt["network_g"], "num_block": 2}) == other
