"""Validation shared out among processes gives what one process gives, which is what BasicSR gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from basicsr.models.sr_model import SRModel
from torch import Tensor, nn

from bsr_plugins.engine.validation import validate
from bsr_plugins.errors import BSRError
from tests.engine.sharded_validation import (
    FIRST,
    SECOND,
    Doubling,
    Item,
    Outcome,
    brighten,
    doubled,
    loader_of,
    make,
    on_ranks,
    register_metrics,
    results,
    smaller,
    surroundings,
    validate_all,
)
from tests.engine.tiny_training import content_of

if TYPE_CHECKING:
    from tests.conftest import Options

RANKS = (2, 3)


@pytest.fixture
def opt(dasr_options: Options, as_read: Callable[[Options], Options], tmp_path: Path) -> Options:
    """Options of a stock model with batch normalisation, whose DDP wrapper waits for other ranks in every pass."""
    register_metrics()
    dasr_options["train"]["ema_decay"] = 0
    dasr_options["val"]["metrics"] = {
        "psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True},
        "ssim": {"type": "calculate_ssim", "crop_border": 2, "better": "lower"},
        "uneven": {"type": "calculate_uneven"},
    }
    dasr_options["path"]["visualization"] = str(tmp_path / "images")
    return as_read(dasr_options) | {"model_type": "SRModel"}


@pytest.mark.parametrize("ranks", RANKS)
def test_any_number_of_processes_find_the_same(opt: Options, tmp_path: Path, ranks: int) -> None:
    several = on_ranks(ranks, opt, tmp_path / "several")
    alone = validate_all(copy.deepcopy(opt), tmp_path / "alone")
    images = content_of(tmp_path / "alone")
    assert len(images) == 8
    assert content_of(tmp_path / "several" / "images") == images
    for rank, outcome in enumerate(several):
        for name in ("first", "second", "first 1", "first 2"):
            assert outcome[name] == alone[name], (rank, name)
        check_faults(outcome, rank)
    check_faults(alone, 0)
    assert all(outcome["left alone"] and outcome["broken off"] for outcome in (alone, *several))
    assert [outcome["own way"] is None for outcome in several] == [False] + [True] * (ranks - 1)
    assert several[0]["own way"] == alone["own way"]
    assert several[0]["crash"].startswith("RuntimeError: rank 1 failed in validation (AttributeError: ")
    assert several[1]["crash"].startswith("AttributeError: ")


def check_faults(outcome: Outcome, rank: int) -> None:
    """Check that every rank has heard of the faults of one."""
    assert outcome["size"] == (
        "BSRError: dataset 'val': astronaut1_sig1.8 is super-resolved to 96x96, expected 92x90, the size of its ground "
        "truth"
    )
    assert outcome["metric"] == (
        "BSRError: val.metrics.raises: calculate_picky fails on astronaut1_sig1.8 of dataset 'val', expected a number "
        "(ZeroDivisionError: two lines)"
    )
    assert outcome["own"] == "BSRError: black"
    for name in ("inf", "nan"):
        line = f"Validation val: {name} is not finite on astronaut1_sig1.8 ({name}), and so is its mean"
        assert outcome[name] == (name, [line] if rank == 0 else []), "rank 0 tells"


@pytest.mark.parametrize("ema_decay", [0, 0.5])
def test_one_process_finds_what_basicsr_finds(opt: Options, tmp_path: Path, ema_decay: float) -> None:
    opt["train"]["ema_decay"] = ema_decay
    models = [make(opt) for _ in range(2)]
    for model, folder in zip(models, ("ours", "stock"), strict=True):
        model.opt["path"]["visualization"] = str(tmp_path / folder)
    for iteration in (FIRST, SECOND):
        validate(models[0], loader_of(opt), iteration, None, save_img=True)
        models[1].nondist_validation(loader_of(opt), iteration, None, True)
        assert results(models[0]) == results(models[1])
        for model in models:
            brighten(model, -0.5)
    best = models[0].best_metric_results["val"]
    assert {name: record["iter"] for name, record in best.items()} != dict.fromkeys(best, FIRST), "some got better"
    assert content_of(tmp_path / "ours") == content_of(tmp_path / "stock")
    assert len(content_of(tmp_path / "ours")) == 16
    assert all(type(value) is float for value in models[0].metric_results.values())


def test_the_order_of_the_sum_matters(opt: Options) -> None:
    """The other tests would notice if results were added up rank by rank."""
    model, found = make(opt), []
    for place in range(8):
        validate(model, loader_of(opt, [place]), FIRST, None, save_img=False)
        found.append(model.metric_results)
    for ranks in RANKS:
        by_rank = [one for rank in range(ranks) for one in found[rank::ranks]]
        # `sum` makes good for rounding in newer versions of Python
        assert any(reduce(add, [one[m] for one in by_rank]) != reduce(add, [one[m] for one in found]) for m in found[0])


@pytest.mark.parametrize("suffix", [None, "x2"])
def test_test_images_are_where_basicsr_saves_them(opt: Options, tmp_path: Path, suffix: str | None) -> None:
    opt["val"]["suffix"] = suffix
    opt["is_train"] = False
    for model, folder in ((make(opt), "ours"), (make(opt), "stock")):
        model.opt["path"]["visualization"] = str(tmp_path / folder)
        if folder == "ours":
            validate(model, loader_of(opt, range(2)), opt["name"], None, save_img=True)
        else:
            model.nondist_validation(loader_of(opt, range(2)), opt["name"], None, True)
    assert content_of(tmp_path / "ours") == content_of(tmp_path / "stock")
    assert f"val/astronaut0_sig1.8_{suffix or 'tiny'}.png" in content_of(tmp_path / "ours")


def test_without_metrics_images_are_saved(opt: Options, tmp_path: Path) -> None:
    opt["val"]["metrics"] = None
    model = make(opt)
    validate(model, loader_of(opt, range(2)), FIRST, None, save_img=True)
    assert set(content_of(tmp_path / "images")) == {
        f"astronaut{number}_sig1.8/astronaut{number}_sig1.8_5.png" for number in range(2)
    }
    assert not hasattr(model, "metric_results")


def test_metrics_are_logged(opt: Options) -> None:
    class Writer:
        def __init__(self) -> None:
            self.lines: list[tuple[str, float, object]] = []

        def add_scalar(self, name: str, value: float, step: object) -> None:
            self.lines.append((name, value, step))

    model, writer = make(opt), Writer()
    validate(model, loader_of(opt), FIRST, writer, save_img=False)
    assert writer.lines == [(f"metrics/val/{name}", value, FIRST) for name, value in model.metric_results.items()]


def test_a_progress_bar(opt: Options, capsys: pytest.CaptureFixture[str]) -> None:
    for wanted in (False, True):
        opt["val"]["pbar"] = wanted
        validate(make(opt), loader_of(opt, range(2)), FIRST, None, save_img=False)
        err = capsys.readouterr().err
        assert ("Test astronaut1_sig1.8" in err and "2/2" in err) == wanted


def test_a_ground_truth_of_training_is_not_taken_for_an_images_own(opt: Options) -> None:
    model = make(opt)
    model.gt = torch.zeros(4, 3, 16, 16)

    def without_gt(item: Item) -> Item:
        return {key: value for key, value in item.items() if key != "gt"}

    with pytest.raises(BSRError, match=r"^val.metrics.psnr: calculate_psnr fails on .* argument: 'img2'\)$"):
        validate(model, loader_of(opt, [0], without_gt, every=True), FIRST, None, save_img=False)


def test_networks_in_windows_take_images_of_any_size(opt: Options) -> None:
    def odd(item: Item) -> Item:
        return item | {"lq": item["lq"][:, :33, :21], "gt": doubled(item["lq"][:, :33, :21])}

    model = make(opt)
    model.net_g = Doubling()
    validate(model, loader_of(opt, [0], odd, every=True), FIRST, None, save_img=False)
    assert model.metric_results["psnr"] == float("inf")
    assert model.metric_results["ssim"] == pytest.approx(1)


def test_a_test_of_ones_own_is_kept(opt: Options) -> None:
    class Inverting(SRModel):  # type: ignore[misc]  # BasicSR carries no annotations
        def test(self) -> None:
            super().test()
            self.output: Tensor = 1 - self.output

    models = make(opt, Inverting), make(opt, Inverting)
    validate(models[0], loader_of(opt), FIRST, None, save_img=False)
    models[1].nondist_validation(loader_of(opt), FIRST, None, False)
    assert results(models[0]) == results(models[1])
    plain = make(opt)
    validate(plain, loader_of(opt), FIRST, None, save_img=False)
    assert results(plain) != results(models[0])


def test_frozen_parts_stay_in_evaluation(opt: Options) -> None:
    model = make(opt)
    frozen = next(module for module in model.net_g.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    before = surroundings(model)
    validate(model, loader_of(opt, [0]), FIRST, None, save_img=False)
    assert surroundings(model) == before
    assert not frozen.training
    with pytest.raises(BSRError):
        validate(model, loader_of(opt, [0], smaller, every=True), FIRST, None, save_img=False)
    assert surroundings(model) == before


def test_images_that_cannot_be_saved_are_named(opt: Options, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "astronaut0_sig1.8"
    (folder / "astronaut0_sig1.8_5.png").mkdir(parents=True)
    with pytest.raises(BSRError, match=rf"^{folder}/astronaut0_sig1.8_5.png: cannot be written "):
        validate(make(opt), loader_of(opt, [0]), FIRST, None, save_img=True)


def test_an_empty_dataset(opt: Options) -> None:
    with pytest.raises(BSRError, match=r"^dataset 'val': holds no images, expected at least one$"):
        validate(make(opt), loader_of(opt, []), FIRST, None, save_img=False)


def test_many_values_that_are_not_finite_are_not_all_named(opt: Options, capfd: pytest.CaptureFixture[str]) -> None:
    def exact(item: Item) -> Item:
        return item | {"gt": doubled(item["lq"])}

    model = make(opt)
    model.net_g = Doubling()
    validate(model, loader_of(opt, change=exact, every=True), FIRST, None, save_img=False)
    err = capfd.readouterr().err
    assert "psnr is not finite on astronaut0_sig1.8 (inf), " in err
    assert ", astronaut3_sig1.8 (inf), coffee0_sig1.8 (inf) and 3 more, and so is its mean" in err
