"""Keys that nothing reads are faults, each model's and dataset's own."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY, METRIC_REGISTRY
from bsr_plugins.engine.known_keys import check_keys
from bsr_plugins.engine.option_reads import reads_of, unread_keywords
from tests.options.unknown_keys import found, stock

from bsr_plugins.models import AACLModel, BlindSRModel, DASRModel, ReDSRModel, SimpleAlignModel
from bsr_plugins.options.faults import Faults

if TYPE_CHECKING:
    from tests.conftest import Options

OURS = {kind.__name__: kind for kind in (AACLModel, BlindSRModel, DASRModel, ReDSRModel, SimpleAlignModel)}
ONLY = {
    ("network_moco",): {"AACLModel", "DASRModel"},
    ("network_degrader",): {"ReDSRModel"},
    ("network_d",): {"SRGANModel"},
    ("degradation",): set(OURS),
    ("train", "align_opt"): set(OURS),
    ("train", "dropout"): set(OURS),
    ("train", "tap_layer"): set(OURS),
    ("train", "representation_opt"): set(OURS),
    ("train", "contrastive_opt"): {"AACLModel", "DASRModel"},
    ("train", "encoder_phase"): {"AACLModel", "DASRModel"},
    ("train", "sigma_alignment"): {"AACLModel"},
    ("train", "redegradation_opt"): {"ReDSRModel"},
    ("train", "optim_d"): {"SRGANModel"},
    ("train", "gan_opt"): {"SRGANModel"},
    ("train", "net_d_iters"): {"SRGANModel"},
    ("train", "pixel_opt"): {*OURS, "SRModel", "SRGANModel"},
    ("train", "ema_decay"): {*OURS, "SRModel", "SRGANModel"},
    ("train", "ema_deacy"): set(),
    ("train", "lr"): set(),
    ("path", "pretrain_network_moco"): {"AACLModel", "DASRModel"},
    ("path", "param_key_degrader"): {"ReDSRModel"},
    ("path", "pretrain_netwrk_g"): set(),
    ("val", "pbar"): {*OURS, "SRModel", "SRGANModel"},
    ("val", "freq"): set(),
    ("logger", "print_frq"): set(),
    ("logger", "save_last_n"): {*OURS, "SRModel", "SRGANModel"},
    ("seed",): set(),
    ("network_h",): set(),
}


@pytest.mark.parametrize("model", [*OURS, "SRModel", "SRGANModel"])
def test_every_model_reads_its_own_keys(aacl_options: Options, model: str) -> None:
    for place, readers in ONLY.items():
        options = stock(aacl_options, model)
        block = options
        for key in place[:-1]:
            block = block[key]
        block.setdefault(place[-1], None)
        assert (found(options) == []) == (model in readers), place


def test_an_inherited_key_may_be_taken_back(aacl_options: Options) -> None:
    options = stock(aacl_options, "SRModel") | {"network_moco": None}
    assert found(options) == ["network_moco"]
    assert found(options, {("network_moco",)}) == []


def test_keys_of_datasets(aacl_options: Options) -> None:
    options = copy.deepcopy(aacl_options)
    options["datasets"]["train"]["gt_sise"] = 1
    options["datasets"]["val"] |= {"type": "PairedImageDataset", "dataroot_lq": "x", "color": "y", "filename_tmp": 1}
    assert set(found(options)) == {
        *("datasets.train.gt_sise", "datasets.val.protocol", "datasets.val.settings"),
        *("datasets.val.seed", "datasets.val.filename_tmp"),
    }
    assert reads_of(PairedImageDataset, is_dataset=True).keys_of(()) >= {
        "dataroot_gt",
        "gt_size",
        "use_hflip",
        "scale",
        "mean",
    }
    assert "PairedImageDataset" in DATASET_REGISTRY


@pytest.mark.parametrize("kind", ["PairedImageDataset", "PairedDegradationDataset"])
def test_bad_images_are_skipped_in_training_alone(kind: str, aacl_options: Options) -> None:
    for phase in ("train", "val"):
        aacl_options["datasets"][phase] = {"type": kind, "dataroot_gt": "x", "on_bad_image": "skip"}
    assert found(aacl_options) == ["datasets.val.on_bad_image"]


def test_keys_of_basicsrs_own_option_files(aacl_options: Options) -> None:
    aacl_options["datasets"]["train"] = {"type": "Vimeo90KDataset", "interval_list": [1], "dataroot_flow": None}
    assert found(aacl_options) == []
    aacl_options["datasets"]["train"] = {"type": "PairedDegradationDataset", "interval_list": [1]}
    assert found(aacl_options) == ["datasets.train.interval_list"]


def test_keys_that_the_trainer_sets(aacl_options: Options) -> None:
    faults = Faults("x")
    options = aacl_options | {"rank": 3}
    options["datasets"]["train"] |= {"phase": "val", "scale": 2}
    options["datasets"]["val"] |= {"phase": "val", "scale": 4}
    check_keys(options, AACLModel, set(), faults)
    assert faults.lines == (
        "x: rank: 3, expected no such key, as the trainer sets it",
        "x: datasets.train.phase: 'val', expected 'train', which the trainer puts there",
        "x: datasets.train.scale: 2, expected 4, which the trainer puts there",
    )


def test_keywords_that_are_swallowed(aacl_options: Options) -> None:
    """BasicSR's metrics take `**kwargs` for `better` alone, so that a misspelt key changes what is measured."""

    def passes_on(crop_border: int, **kwargs: Any) -> Any:
        return dict(crop_border=crop_border, **kwargs)

    assert unread_keywords(METRIC_REGISTRY.get("calculate_psnr"))
    assert not unread_keywords(passes_on)
    aacl_options["val"]["metrics"]["psnr"]["test_y_chanel"] = True
    assert found(aacl_options) == ["val.metrics.psnr.test_y_chanel"]


def test_all_wrong_keys_of_a_block_are_found(aacl_options: Options) -> None:
    aacl_options["network_g"] |= {"num_fet": 1, "bakbone": 2}
    aacl_options["train"]["optim_g"]["beta"] = 1
    aacl_options["degradation"]["nois"] = 1
    assert set(found(aacl_options)) == {
        *("network_g.num_fet", "network_g.bakbone", "train.optim_g.beta", "degradation.nois"),
    }
