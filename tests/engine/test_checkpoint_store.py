"""What a run saves: BasicSR's contents, bounded, whole, and refused where it could not be read back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import dist_util
from basicsr.utils.misc import check_resume

from bsr_plugins.engine import checkpoints
from bsr_plugins.engine.checkpoint_sets import RunFolders, newest_complete, use_networks
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.options.declared import read_block
from bsr_plugins.options.schema import LoggerOptions
from tests.engine.tiny_training import (
    KEY,
    Options,
    assert_same,
    content_of,
    files_in,
    identity_of,
    make_model,
    make_store,
    tiny_gan_options,
    tiny_options,
    train,
)


def load(file: Path) -> Any:
    return torch.load(file, weights_only=True)


@pytest.fixture
def opt(tmp_path: Path) -> Options:
    return tiny_options(tmp_path)


def without_ema(root: Path) -> Options:
    opt = tiny_options(root)
    del opt["train"]["ema_decay"]
    return opt


@pytest.fixture
def aacl(aacl_options: Options, as_read: Callable[[Options], Options]) -> Options:
    return as_read(aacl_options)


@pytest.fixture
def redsr(redsr_options: Options, as_read: Callable[[Options], Options]) -> Options:
    return as_read(redsr_options)


@pytest.mark.parametrize("kind", ["SRModel", "without EMA", "SRGANModel", "aacl", "redsr"])
def test_contents_are_those_of_basicsr(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    made = {"SRModel": tiny_options, "without EMA": without_ema, "SRGANModel": tiny_gan_options}
    opt = made[kind](tmp_path) if kind in made else request.getfixturevalue(kind)
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    for root in (stock, ours):
        tiny_options(root)
    model = make_model(opt)
    if kind in made and kind != "SRGANModel":
        train(model, 1, 3)
    for root in (stock, ours):
        model.opt["path"] |= {"models": str(root / "models"), "training_states": str(root / "training_states")}
        if root is ours:
            store = make_store({**opt, "path": model.opt["path"]})
            store.save(model, 1, 3, {})
            store.save_latest(model, 3)
        else:
            model.save(1, 3)
            model.save(-1, -1)
    assert files_in(ours) == files_in(stock)
    assert len(files_in(stock)) >= 3
    for file in stock.rglob("*.*"):
        found = load(ours / file.relative_to(stock))
        assert found.pop(KEY)["iteration"] == 3
        assert_same(found, load(file), file.name)


def test_files_say_what_they_belong_to(opt: Options, tmp_path: Path) -> None:
    store = make_store(opt)
    store.save(make_model(opt), 2, 7, {"best": {"psnr": np.float64(31.5)}, "count": np.int64(2), "rows": [(1, None)]})
    belongs = load(tmp_path / "models" / "net_g_7.pth")[KEY]
    identity = identity_of(opt)
    assert belongs == {
        "version": 1,
        "iteration": 7,
        "run_id": "run",
        "name": "tiny",
        "world_size": 1,
        "total_batch": 4,
        "num_samples": 10,
        "manual_seed": 3,
        "options_digest": identity.options_digest,
    }
    state = load(tmp_path / "training_states" / "7.state")[KEY]
    assert list(state.pop("files")) == ["net_g_7.pth"]
    assert_same(state.pop("extras"), {"best": {"psnr": 31.5}, "count": 2, "rows": [(1, None)]})
    assert state == belongs


def continued(opt: Options, resume: Callable[[Options], dict[str, Any]]) -> Any:
    """Resume a model, and train it up to iteration 6."""
    opt = {**opt, "path": dict(opt["path"])}
    state = resume(opt)
    model = make_model(opt)
    model.resume_training(state)
    train(model, state["iter"] + 1, 6)
    return model


def our_way(opt: Options) -> dict[str, Any]:
    found = newest_complete(RunFolders.of(opt["path"]), ["g"]).found
    assert found is not None
    use_networks(opt, found)
    return found.state


def stock_way(opt: Options) -> dict[str, Any]:
    opt["path"]["resume_state"] = f"{opt['path']['training_states']}/3.state"
    state: dict[str, Any] = load(Path(opt["path"]["resume_state"]))
    check_resume(opt, state["iter"])
    return state


@pytest.mark.parametrize("saved_by", ["us", "stock"])
@pytest.mark.parametrize("resumed_by", ["us", "stock"])
def test_either_resumes_from_the_files_of_either(opt: Options, saved_by: str, resumed_by: str) -> None:
    model = make_model(opt)
    train(model, 1, 3)
    if saved_by == "us":
        make_store(opt).save(model, 0, 3, {})
    else:
        model.save(0, 3)
    train(model, 4, 6)
    resumed = continued(opt, our_way if resumed_by == "us" else stock_way)
    for name in ("net_g", "net_g_ema", "optimizer_g"):
        assert_same(getattr(resumed, name).state_dict(), getattr(model, name).state_dict(), name)
    assert resumed.schedulers[0].state_dict() == model.schedulers[0].state_dict()


def test_the_model_is_as_before(opt: Options) -> None:
    model = make_model(opt)
    before = set(vars(model))
    make_store(opt).save(model, 0, 1, {})
    assert set(vars(model)) == before
    assert model.save_network.__func__ is SRModel.save_network


def test_sets_beyond_those_to_keep_are_removed(opt: Options, tmp_path: Path) -> None:
    model = make_model(opt)
    models, states = tmp_path / "models", tmp_path / "training_states"
    make_store(opt).save_latest(model, 1)
    foreign = {"notes.txt", "mine_2.pth", "net_g_best.pth", "last.state", "net_g_1.pth", "net_x_300.pth"}
    for name in foreign:
        (models / name).write_text("mine")
    (states / "1.state").mkdir()
    kept = foreign | {"net_g_latest.pth"}
    for iteration in (2, 4, 6, 8):
        make_store(opt, keep=2).save(model, 0, iteration, {})
        last = [n for n in (2, 4, 6, 8) if n <= iteration][-2:]
        assert files_in(tmp_path) == kept | {f"net_g_{n}.pth" for n in last} | {f"{n}.state" for n in last}
    # a run that has gone back to 4 leaves what lies ahead of it alone, until it comes there
    make_store(opt).save(model, 0, 4, {})
    store = make_store(opt, keep=1)
    store.save(model, 0, 5, {})
    there = {f"net_g_{n}.pth" for n in (5, 6, 8)} | {f"{n}.state" for n in (5, 6, 8)}
    assert files_in(tmp_path) == kept | there
    store.save(model, 0, 8, {})
    assert files_in(tmp_path) == kept | {"8.state", "net_g_8.pth"}


def test_old_sets_of_basicsr_and_of_all_networks_are_removed(tmp_path: Path) -> None:
    opt = tiny_gan_options(tmp_path)
    model = make_model(opt)
    model.save(0, 1)
    make_store(opt, keep=1).save(model, 0, 2, {})
    assert files_in(tmp_path) == {"net_g_2.pth", "net_d_2.pth", "2.state"}


def test_networks_whose_state_is_gone_are_removed_if_this_run_wrote_them(opt: Options, tmp_path: Path) -> None:
    model = make_model(opt)
    for iteration in (1, 2, 3):
        make_store(opt).save(model, 0, iteration, {})
    for iteration in (1, 2):
        (tmp_path / "training_states" / f"{iteration}.state").unlink()
    other = load(tmp_path / "models" / "net_g_2.pth")
    other[KEY]["run_id"] = "another"
    torch.save(other, tmp_path / "models" / "net_g_2.pth")
    make_store(opt, keep=1).save(model, 0, 4, {})
    assert files_in(tmp_path) == {"net_g_2.pth", "net_g_4.pth", "4.state"}


@pytest.mark.parametrize("keep", [0, -1, 1.5, True, "2"])
def test_a_number_of_sets_that_cannot_be(keep: Any) -> None:
    logger = {"print_freq": 1, "save_checkpoint_freq": 1, "use_tb_logger": False, "save_last_n": keep}
    with pytest.raises(OptionError, match=r"logger\.save_last_n: .*, expected a whole number at least 1, or null"):
        read_block(LoggerOptions, logger, "logger")


def test_leftovers_of_killed_writers_are_removed(opt: Options, tmp_path: Path) -> None:
    for name in ("models/.net_g_4.pth.123.tmp", "training_states/.4.state.123.tmp"):
        (tmp_path / name).touch()
    make_store(opt)
    assert files_in(tmp_path) == set()


def test_other_ranks_write_nothing(opt: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(SRModel, "save", lambda _self, epoch, iteration: calls.append((epoch, iteration)))
    for module in (dist_util, checkpoints):
        monkeypatch.setattr(module, "get_dist_info", lambda: (1, 2))
    (tmp_path / "models" / ".net_g_4.pth.123.tmp").touch()
    store = make_store(opt, keep=1)
    store.save(make_model(opt), 0, 3, {})
    store.save_latest(make_model(opt), 3)
    assert calls == [(0, 3), (-1, -1)], "a model may need all ranks to save itself"
    assert files_in(tmp_path) == {".net_g_4.pth.123.tmp"}


class Swapping(SRModel):  # type: ignore[misc]  # BasicSR carries no annotations
    """Saves its state first, then other weights than it has, and puts its own back."""

    def save(self, epoch: int, current_iter: int) -> None:
        self.save_training_state(epoch, current_iter)
        bias = self.net_g.conv_last.bias
        held = bias.data.clone()
        bias.data.fill_(7.0)
        self.save_network(self.net_g, "net_g", current_iter)
        bias.data.copy_(held)


def test_weights_are_those_at_the_moment_of_saving(opt: Options, tmp_path: Path) -> None:
    make_store(opt).save(Swapping(opt), 0, 1, {})
    assert load(tmp_path / "models" / "net_g_1.pth")["params"]["conv_last.bias"].tolist() == [7.0] * 3
    assert newest_complete(RunFolders.of(opt["path"]), ["g"]).found is not None


class Twice(SRModel):  # type: ignore[misc]
    """Saves its latest networks with every set."""

    def save(self, epoch: int, current_iter: int) -> None:
        super().save(epoch, current_iter)
        super().save(-1, -1)


def test_the_latest_networks_are_no_part_of_a_set(opt: Options, tmp_path: Path) -> None:
    model, store = Twice(opt), make_store(opt)
    store.save(model, 0, 1, {})
    assert files_in(tmp_path) == {"net_g_1.pth", "net_g_latest.pth", "1.state"}
    model.net_g.conv_last.bias.data.fill_(7.0)
    store.save_latest(model, 2)
    found = newest_complete(RunFolders.of(opt["path"]), ["g"]).found
    assert found is not None
    assert found.iteration == 1
    assert load(tmp_path / "models" / "net_g_latest.pth")[KEY]["iteration"] == 2


class Own(SRModel):  # type: ignore[misc]
    """Has its own way of writing networks."""

    def save_network(self, _net: Any, net_label: str, current_iter: int, param_key: str = "params") -> None:  # noqa: ARG002
        torch.save({"params": {}}, f"{self.opt['path']['models']}/{net_label}_{current_iter}.pth")


def test_own_ways_of_writing_stay_with_a_warning(
    opt: Options, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, store = Own({**opt, "train": {**opt["train"], "ema_decay": 0}}), make_store(opt)
    for iteration in (1, 2):
        store.save(model, 0, iteration, {})
    assert capfd.readouterr().err.count("WARNING: Own defines save_network: what it writes may be broken") == 1
    assert load(tmp_path / "models" / "net_g_2.pth") == {"params": {}}
    found = newest_complete(RunFolders.of(opt["path"]), ["g"]).found
    assert found is not None
    assert found.iteration == 2
    assert found.networks == {"g": tmp_path / "models" / "net_g_2.pth"}


class Failing(SRModel):  # type: ignore[misc]
    """Fails in the middle of saving."""

    def save(self, _epoch: int, current_iter: int) -> None:
        self.save_network(self.net_g, "net_g", current_iter)
        raise KeyError("mine")


def test_a_model_that_fails_while_saving_leaves_nothing(opt: Options, tmp_path: Path) -> None:
    make_store(opt).save(make_model(opt), 0, 1, {})
    before = content_of(tmp_path)
    model = Failing(opt)
    store = make_store(opt)
    for save in (partial(store.save, model, 0, 1, {}), partial(store.save_latest, model, 1)):
        with pytest.raises(KeyError, match="mine"):
            save()
        assert content_of(tmp_path) == before
        assert "save_network" not in vars(model)


class Scheduler:
    """Keeps what cannot be loaded safely."""

    def state_dict(self) -> dict[str, Any]:
        return {"path": Path("x")}


def test_what_could_not_be_read_back_is_refused_at_once(opt: Options, tmp_path: Path) -> None:
    model = make_model(opt)
    model.schedulers.append(Scheduler())
    with pytest.raises(BSRError, match=r"3\.state: what SRModel keeps: cannot be loaded safely \("):
        make_store(opt).save(model, 0, 3, {})
    assert files_in(tmp_path) == set()


def test_a_set_saved_again_takes_the_new_extras(opt: Options) -> None:
    model, store = make_model(opt), make_store(opt, keep=1)
    for best in (1, 2):
        store.save(model, 0, 3, {"best": best})
        found = newest_complete(RunFolders.of(opt["path"])).found
        assert found is not None
        assert found.extras == {"best": best}
