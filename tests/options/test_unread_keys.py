"""Keys that nothing reads: faults where they are known to be slips, and told of after the first step elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from tests.options.stock_options import gan

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome

Run = Callable[..., "Outcome"]


class StrangersModel(SRModel):  # type: ignore[misc]  # BasicSR carries no annotations
    """Reads options at first, late, and never."""

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        train = opt["train"]
        self.smoothness = train.get("smoothness", 1)
        self.mine = dict(self.opt["my_block"])["inner"] if "my_block" in opt else None
        self.later = train.get("nested")

    def optimize_parameters(self, current_iter: int) -> None:
        if "read_late" in self.opt["train"] and self.later is not None:
            assert self.later["deep"] == self.opt["train"]["read_late"]
        super().optimize_parameters(current_iter)


class LateDataset(PairedImageDataset):  # type: ignore[misc]
    """Reads a key of its block for every item."""

    def __getitem__(self, index: int) -> Any:
        assert self.opt.get("sharpness", 1)
        return super().__getitem__(index)


@pytest.fixture(autouse=True)
def strangers() -> Iterator[None]:
    """Have other people's classes in BasicSR's registries."""
    MODEL_REGISTRY._obj_map["StrangersModel"] = StrangersModel
    DATASET_REGISTRY._obj_map["LateDataset"] = LateDataset
    yield
    del MODEL_REGISTRY._obj_map["StrangersModel"], DATASET_REGISTRY._obj_map["LateDataset"]


def unknown(outcome: Outcome) -> set[str]:
    """The places of all unknown keys of a run that is refused for them, or none."""
    lines = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
    assert outcome.status == (2 if lines else 0), outcome.output
    assert all(": unknown key, " in line for line in lines), lines
    return {line.split(": ")[2] for line in lines}


def put(options: Options, *places: str) -> Options:
    """Put keys into a copy of options."""
    options = copy.deepcopy(options)
    for place in places:
        block, (*folders, last) = options, place.split(".")
        for folder in folders:
            block = block.setdefault(folder, {})
        block.setdefault(last, BLOCKS.get(place, 1))
    return options


BLOCKS: dict[str, Any] = {
    "degradation": {"type": "ClassicalDegradation"},
    "train.optim_d": {"type": "Adam", "lr": 1},
    "path.pretrain_network_moco": None,
}


STRANGE: tuple[str, ...] = (
    "degradation",
    "seed",
    "train.align_opt",
    "train.dropout",
    "train.tap_layer",
    "train.encoder_phase",
)
STRANGE += ("train.ema_deacy", "train.lr", "train.sigma_alignment", "path.pretrain_netwrk_g", "val.freq")
STRANGE += ("logger.print_frq", "path.pretrain_network_moco", "train.optim_d", "train.gan_opt", "train.net_d_iters")


def test_a_stock_model_reads_what_is_declared_for_it(pairs: Options, in_process: Run) -> None:
    assert unknown(in_process("train", put(pairs, *STRANGE), "--check")) == set(STRANGE)
    pairs = put(pairs, "val.pbar", "logger.save_last_n", "train.max_nonfinite_steps")
    pairs["val"]["pbar"], pairs["path"]["param_key_g"], pairs["train"]["ema_decay"] = False, "params", 0.9
    assert unknown(in_process("train", pairs, "--check")) == set()


def test_a_stock_gan_reads_more(pairs: Options, in_process: Run) -> None:
    options = put(gan(pairs), "train.align_opt")
    assert unknown(in_process("train", options, "--check")) == {"train.align_opt"}


@pytest.mark.parametrize("kind", ["aacl", "redsr", "dasr"])
def test_our_models_read_what_they_declare(kind: str, in_process: Run, request: pytest.FixtureRequest) -> None:
    options = request.getfixturevalue(f"{kind}_options")
    wrong = {"seed", "train.ema_deacy", "train.lr", "path.pretrain_netwrk_g", "val.freq", "logger.print_frq"}
    wrong |= {"train.net_d_iters"} | ({"train.sigma_alignment"} if kind != "aacl" else set())
    assert unknown(in_process("train", put(options, *wrong), "--check")) == wrong


def test_slips_of_our_models_are_found_with_whatever_else_is_wrong(aacl_options: Options, in_process: Run) -> None:
    outcome = in_process(
        "train", put(aacl_options, "train.ema_deacy", "datasets.val.protocl") | {"scale": 0}, "--check"
    )
    for line in ("train.ema_deacy: unknown key", "datasets.val.protocl: unknown key", "scale: 0, expected a number"):
        assert f": {line}" in outcome.output


def test_a_strangers_keys_are_known_by_its_reads(pairs: Options, in_process: Run) -> None:
    pairs["model_type"] = "StrangersModel"
    pairs["my_block"] = {"inner": 1}
    pairs["train"] |= {"smoothness": 1, "nested": {"deep": 1}, "read_late": 1}
    assert unknown(in_process("train", pairs, "--check")) == set()
    slips = {"train.smoothnes", "my_blok", "train.ema_deacy", "val.save_imgs", "train.optim_d"}
    assert unknown(in_process("train", put(pairs, *slips), "--check")) == slips
    outcome = in_process("train", put(pairs, "train.smoothnes"), "--check")
    assert "; did you mean 'smoothness'?" in outcome.output


def test_what_nobody_has_read_by_the_first_step_is_told_of(pairs: Options, in_process: Run) -> None:
    pairs["model_type"] = "StrangersModel"
    pairs["train"] |= {"nested": {"deep": 1, "unused": 2}, "read_late": 1, "forgotten": 3, "total_iter": 2}
    pairs["elsewhere"] = {"x": 1}
    outcome = in_process("train", pairs)
    assert outcome.status == 0, outcome.output
    told = [line for line in outcome.output.splitlines() if "WARNING" in line and "unknown key" in line]
    assert {line.split(": ")[2] for line in told} == {"train.nested.unused", "train.forgotten", "elsewhere"}
    assert all("options.yml:" in line for line in told)
    before = outcome.output.index("iter:       1")
    assert outcome.output.index("train.forgotten: unknown key") < before < outcome.output.index("iter:       2")


def test_a_test_run_reads_nothing_of_training(pairs: Options, in_process: Run, project: Any) -> None:
    assert in_process("train", pairs).status == 0
    pairs["datasets"] = {"test": pairs["datasets"]["val"]}
    pairs["path"] = {"pretrain_network_g": str(project.root / "experiments/tiny/models/net_g_latest.pth")}
    pairs |= {"model_type": "StrangersModel", "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3}}
    pairs["train"]["forgotten"] = 1
    assert unknown(in_process("test", pairs, "--check")) == set()


def test_an_inherited_key_may_be_taken_back(pairs: Options, in_process: Run, project: Any) -> None:
    project.write(put(pairs, "train.gan_opt"), "base.yml")
    assert unknown(in_process("train", {"_base_": "base.yml"}, "--check")) == {"train.gan_opt"}
    assert unknown(in_process("train", {"_base_": "base.yml", "train": {"gan_opt": None}}, "--check")) == set()


def test_keys_of_datasets(pairs: Options, aacl_options: Options, in_process: Run) -> None:
    options = put(pairs, "datasets.train.gt_sise", "datasets.val.protocol", "datasets.val.filename_tmp")
    wrong = {"datasets.train.gt_sise", "datasets.val.protocol", "datasets.val.filename_tmp"}
    assert unknown(in_process("train", options, "--check")) == wrong
    options = put(aacl_options, "datasets.train.interval_list", "datasets.val.gt_sise")
    assert unknown(in_process("train", options, "--check")) == {"datasets.train.interval_list", "datasets.val.gt_sise"}
    pairs["datasets"]["train"] |= {"interval_list": [1], "dataroot_flow": None, "use_shuffle": True}
    pairs["datasets"]["val"] |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    assert unknown(in_process("train", pairs, "--check")) == set()


def test_a_strangers_dataset_is_known_by_an_item(pairs: Options, in_process: Run) -> None:
    pairs["datasets"]["train"] |= {"type": "LateDataset", "sharpness": 2, "on_bad_image": "error", "else": 1}
    pairs["train"]["total_iter"] = 1
    slip = put(pairs, "datasets.train.sharpnes")
    assert unknown(in_process("train", slip, "--check")) == {"datasets.train.sharpnes"}
    outcome = in_process("train", pairs)
    assert outcome.status == 0, outcome.output
    assert "datasets.train.else: unknown key, which neither LateDataset nor the trainer reads" in outcome.output
    assert "datasets.train.sharpness" not in outcome.output


def test_bad_images_are_skipped_in_training_alone(pairs: Options, in_process: Run) -> None:
    for phase in ("train", "val"):
        pairs["datasets"][phase]["on_bad_image"] = "skip"
    assert unknown(in_process("train", pairs, "--check")) == {"datasets.val.on_bad_image"}


def test_keys_that_the_trainer_sets(pairs: Options, in_process: Run) -> None:
    pairs |= {"rank": 3}
    pairs["datasets"]["train"] |= {"phase": "val", "scale": 2}
    outcome = in_process("train", pairs, "--check")
    for line in (
        "rank: 3, expected no such key, as the trainer sets it",
        "datasets.train.phase: 'val', expected 'train', which the trainer puts there",
        "datasets.train.scale: 2, expected 4, which the trainer puts there",
    ):
        assert f": {line}\n" in outcome.output


def test_keywords_that_are_swallowed(pairs: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """BasicSR's metrics take `**kwargs` for `better` alone, so that a misspelt key changes what is measured."""

    def metric(img: Any, crop_border: int, **kwargs: Any) -> float:
        return float(img.mean()) + crop_border + len(kwargs)

    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "metric", metric)
    pairs["val"]["metrics"]["psnr"]["any"] = True
    pairs["val"]["metrics"]["mine"] = {"type": "metric", "crop_border": 1, "any": 1}
    assert unknown(in_process("train", pairs, "--check")) == {"val.metrics.psnr.any"}
    pairs["val"]["metrics"]["mine"] |= {"crop_bordr": 1}
    assert unknown(in_process("train", pairs, "--check")) == {"val.metrics.psnr.any", "val.metrics.mine.crop_bordr"}


def test_all_wrong_keys_of_a_block_are_found(aacl_options: Options, in_process: Run) -> None:
    wrong = {"network_g.num_fet", "network_g.bakbone", "train.optim_g.beta", "degradation.nois"}
    assert unknown(in_process("train", put(aacl_options, *wrong), "--check")) == wrong
