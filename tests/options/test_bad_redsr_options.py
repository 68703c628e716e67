"""Options of ReDSR and DASR runs that cannot be used: one line and a status, at start-up, with nothing made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from tests.options.test_bad_options import MISSING, assert_refused, change, weights_for

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

Run = Callable[..., "Outcome"]
Changes = dict[str, Any]
ORACLE = {"type": "OracleEncoder", "num_feat": 8, "representation_dim": 6}
PLAIN: Changes = {  # a run without re-degradation
    "network_degrader": None,
    "train.redegradation_opt": None,
    "train.pixel_opt": {"type": "L1Loss"},
    "datasets.train.num_views": 1,
}
OTHER_DATASET: Changes = {"name": "val", "type": "PairedImageDataset", "dataroot_gt": "gt", "dataroot_lq": "lq"}
OTHER_DATASET |= {"io_backend": {"type": "disk"}}
SINGLES = {"name": "test", "type": "SingleImageDataset", "dataroot_lq": "lq", "io_backend": {"type": "disk"}}
ISO = {"type": "ClassicalDegradation", "blur_iso": {"sigma": [0.2, 4.0]}}

REDSR_CASES: list[tuple[Changes, str]] = [
    # what is changed, what the line says
    (
        {"datasets.train.num_views": 1},
        r"datasets.train.num_views: 1 with degrade_on: device, expected 2 with degrade_on: device with train.redegrad",
    ),
    ({"datasets.train.num_views": None}, r"datasets.train.num_views: 1 with degrade_on: device, expected 2"),
    ({"datasets.train.num_views": 3}, r"datasets.train.num_views: 3 with degrade_on: device, expected 2"),
    (
        {**PLAIN, "datasets.train.num_views": 2},
        r"datasets.train.num_views: 2 with .*, expected 1 with degrade_on: device without train.redegradation_opt",
    ),
    (
        {**PLAIN, "datasets.train.num_views": MISSING, "degradation": None}
        | {"datasets.train.degrade_on": "worker", "datasets.train.degradation": ISO},
        r"datasets.train.num_views: 1 with degrade_on: worker, expected 1 with degrade_on: device",
    ),
    ({"network_degrader.scale": 4}, r"network_degrader.scale: 4, expected scale, which is 2"),
    ({"network_degrader.scale": MISSING}, r"network_degrader.scale: 4, expected scale, which is 2"),
    ({"network_degrader.scale": "2"}, r"network_degrader.scale: '2', expected one of 2, 3, 4"),
    ({"network_degrader.representation_dim": 8}, r"network_degrader.representation_dim: 8, expected 6, as network_g"),
    ({"network_degrader.num_fet": 8}, r"network_degrader.num_fet: unknown key, .*did you mean 'num_feat'"),
    ({"network_degrader.type": "ReDSRDegradr"}, r"network_degrader.type: .*did you mean 'ReDSRDegrader'"),
    (
        {"network_degrader": {"type": "ReDSREncoder"}},
        r"network_degrader.type: 'ReDSREncoder', expected 'ReDSRDegrader'",
    ),
    ({"network_degrader": None}, r"network_degrader: the block is missing, train.redegradation_opt needs it"),
    ({"network_degrader": MISSING}, r"network_degrader: the block is missing, train.redegradation_opt needs it"),
    ({"train.redegradation_opt": None}, r"train.redegradation_opt: the block is missing, network_degrader needs it"),
    (
        {"train.redegradation_opt": {"type": "ModulatedL1Loss"}},
        r"train.redegradation_opt.type: 'ModulatedL1Loss' wants 'distance', expected among what ReDSRModel's step off",
    ),
    ({"train.pixel_opt": {"type": "InfoNCELoss"}}, r"train.pixel_opt.type: 'InfoNCELoss' wants 'query', expected amon"),
    (
        {"train.pixel_opt": {"type": "EnergyDistanceLoss"}},
        r"train.pixel_opt.type: 'EnergyDistanceLoss', expected a loss",
    ),
    (
        {"train.redegradation_opt": {"type": "L1Loss", "reduction": "none"}},
        r"train.redegradation_opt: .*'none'.*, expected a loss that is one number, as with reduction: mean",
    ),
    (
        {"train.representation_opt": {"type": "KLDivergenceLoss"}, "datasets.train.batch_size_per_gpu": 1},
        r"datasets.train.batch_size_per_gpu: 1, expected at least 2 in all for KLDivergenceLoss",
    ),
    ({"network_degrader.scale": 2.0}, r"network_degrader.scale: 2.0, expected one of 2, 3, 4"),
    ({"train.redegradation_opt.type": "L1Los"}, r"train.redegradation_opt.type: .*did you mean 'L1Loss'"),
    (
        {**PLAIN, "train.pixel_opt": {"type": "ModulatedL1Loss"}},
        r"train.pixel_opt.type: 'ModulatedL1Loss' wants 'distance', expected among what ReDSRModel's step offers",
    ),
    ({"train.pixel_opt.loss_wight": 1}, r"train.pixel_opt.loss_wight: unknown key, .*did you mean 'loss_weight'"),
    ({"train.pixel_opt.loss_weight": -1}, r"train.pixel_opt.loss_weight: -1, expected a number"),
    (
        {"train.representation_opt.distribution": "gausian"},
        r"train.representation_opt.distribution: unknown name 'gausian', .*did you mean 'gaussian'",
    ),
    (
        {"train.representation_opt.distribution": ["gaussian"]},
        r"train.representation_opt.distribution: unknown name \[",
    ),
    (
        {"train.representation_opt.num_samples": 0},
        r"train.representation_opt.num_samples: 0, expected a whole number at least 1",
    ),
    (
        {"train.representation_opt.num_samples": 2.5},
        r"train.representation_opt.num_samples: 2.5, expected a whole number",
    ),
    ({"train.representation_opt.m": 64}, r"train.representation_opt.m: unknown key, expected one of"),
    (
        {"train.representation_opt": {"type": "KLDivergenceLoss", "num_samples": 64}},
        r"train.representation_opt.num_samples: unknown key",
    ),
    (
        {"datasets.train.gt_size": 46},
        r"datasets.train.gt_size: 46, expected at least 48, as ReDSREncoder takes LR patches of at least 24 pixels",
    ),
    ({"network_g.encoder.type": "ReDSREncodr"}, r"network_g.encoder.type: .*did you mean 'ReDSREncoder'"),
    ({"network_g.encoder.num_fet": 4}, r"network_g.encoder.num_fet: unknown key, .*did you mean 'num_feat'"),
    ({"network_g.encoder.num_feat": 0}, r"network_g.encoder.num_feat: 0, expected a whole number"),
    ({"network_g.reduction": 16}, r"network_g.reduction: 16, expected a whole number in \[1, 8\]"),
    ({"network_g.upscale": 4}, r"network_g.upscale: 4, expected scale, which is 2"),
    ({"network_g": {"type": "MSRResNet", "upscale": 2}}, r"network_g.type: 'MSRResNet' gives no representation"),
    (
        {"network_g": {"type": "MSRResNet", "upscale": 2}, "train.representation_opt": None},
        r"network_g.type: 'MSRResNet', expected a network with a representation",
    ),
    (
        {"network_g.encoder": {**ORACLE, "kernel_size": 15}, "datasets.val.protocol": MISSING}
        | {"datasets.val.settings": MISSING, "datasets.val.degradation": {**ISO, "kernel_size": 15}},
        r"degradation: blurs with 21 taps, expected kernels of 15, as network_g.encoder takes",
    ),
    (
        {"network_g.encoder": {**ORACLE, "kernel_size": 15}, "degradation.kernel_size": 15},
        r"datasets.val.protocol: blurs with 21 taps, expected kernels of 15, as network_g.encoder takes",
    ),
    (
        {"network_g.encoder": ORACLE, "datasets.val.protocol": MISSING, "datasets.val.settings": MISSING}
        | {"datasets.val.degradation": {**ISO, "kernel_size": 9}},
        r"datasets.val.degradation: blurs with 9 taps, expected kernels of 21, as network_g.encoder takes",
    ),
    (
        {"network_g.encoder": ORACLE, "datasets.val": OTHER_DATASET},
        r"datasets.val.type: 'PairedImageDataset', expected 'PairedDegradationDataset', which knows the blur kernels",
    ),
    (
        {"network_g.encoder": {**ORACLE, "kernel_size": 20}},
        r"network_g.encoder.kernel_size: 20, expected an odd number",
    ),
    ({"network_g.encoder": {**ORACLE, "kernel": 21}}, r"network_g.encoder.kernel: unknown key, .*mean 'kernel_size'"),
    ({"degradation": None}, r"degradation: the block is missing"),
    ({"model_type": "ReDSRModl"}, r"model_type: unknown name 'ReDSRModl', .*did you mean 'ReDSRModel'"),
]

DASR_CASES: list[tuple[Changes, str]] = [
    (
        {"train.contrastive_opt": {"type": "L1Loss"}},
        r"train.contrastive_opt.type: 'L1Loss', expected a loss of query, such a",
    ),
    ({"datasets.train.num_views": 3}, r"datasets.train.num_views: 3, expected 2, a query and its positive"),
    ({"datasets.train.num_views": 1}, r"datasets.train.num_views: 1, expected 2, a query and its positive"),
    ({"datasets.train.num_views": MISSING}, r"datasets.train.num_views: 1, expected 2, a query and its positive"),
    (
        {"network_moco.encoder.img_range": 1},
        r"network_moco.encoder.img_range: 1.0, expected 255.0, as in the encoder that is trained",
    ),
    ({"network_moco.encoder.img_range": MISSING}, r"network_moco.encoder.img_range: 1.0, expected 255.0"),
    ({"network_g.img_range": 1}, r"network_moco.encoder.img_range: 255.0, expected 1.0"),
    ({"network_moco.encoder.img_range": 0}, r"network_moco.encoder.img_range: 0, expected a number"),
    ({"network_g.encoder_num_feat": 8}, r"network_moco.encoder: builds another network than the encoder"),
    ({"network_moco": MISSING}, r"network_moco: the block is missing, DASRModel needs it"),
    (
        {"train.pixel_opt": {"type": "ModulatedL1Loss"}},
        r"train.pixel_opt.type: 'ModulatedL1Loss' wants 'distance', expected among what DASRModel's step offers",
    ),
    ({"train.contrastive_opt": None}, r"train.contrastive_opt: the block is missing, DASRModel needs it"),
    ({"train.encoder_phase.itrs": 2}, r"train.encoder_phase.itrs: unknown key, .*did you mean 'iters'"),
    (
        {"train.representation_opt": {"type": "EnergyDistanceLoss", "num_samples": 0}},
        r"train.representation_opt.num_samples: 0, expected",
    ),
]


def apply(options: Options, changes: Changes) -> Options:
    for place, value in changes.items():
        change(options, place, value)
    return options


@pytest.mark.parametrize(("changes", "message"), REDSR_CASES, ids=[message for _, message in REDSR_CASES])
def test_a_redsr_run_is_refused(
    project: Project, redsr_options: Options, in_process: Run, changes: Changes, message: str
) -> None:
    for folder, side in (("gt", 32), ("lq", 16)):
        (project.root / folder).mkdir()
        cv2.imwrite(str(project.root / folder / "a.png"), np.zeros((side, side, 3), np.uint8))
    assert_refused(in_process("train", apply(redsr_options, changes)), message)
    assert project.experiments == []


@pytest.mark.parametrize(("changes", "message"), DASR_CASES, ids=[message for _, message in DASR_CASES])
def test_a_dasr_run_is_refused(
    project: Project, dasr_options: Options, in_process: Run, changes: Changes, message: str
) -> None:
    assert_refused(in_process("train", apply(dasr_options, changes)), message)
    assert project.experiments == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network_g": {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 2}},
            r"network_g.type: 'MSRResNet' gives no representation, expected one that does, for train.representation_o",
        ),
    ],
)
def test_a_plain_run_with_a_loss_on_representations_is_refused(
    project: Project, redsr_options: Options, in_process: Run, changes: Changes, message: str
) -> None:
    plain = {place: MISSING if value is None else value for place, value in PLAIN.items()}
    options = apply(redsr_options, {**plain, "model_type": "BlindSRModel"})
    assert_refused(in_process("train", apply(options, changes)), message)
    assert project.experiments == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets.test": SINGLES}, r"datasets.test.type: 'SingleImageDataset', expected 'PairedDegradationDataset'"),
        ({"network_g.encoder.kernel_size": 15}, r"datasets.test.protocol: blurs with 21 taps, expected kernels of 15"),
        ({"network_g": {"type": "MSRResNet", "upscale": 2}}, r"network_g.type: 'MSRResNet', expected a network with"),
    ],
)
def test_a_test_run_of_an_oracle_is_refused(
    project: Project, photographs: Path, redsr_options: Options, in_process: Run, changes: Changes, message: str
) -> None:
    options = {key: redsr_options[key] for key in ("scale", "num_gpu", "manual_seed", "network_g", "val")}
    options |= {"name": "tested", "model_type": "ReDSRModel", "path": {"pretrain_network_g": None}}
    options["datasets"] = {"test": {**redsr_options["datasets"]["val"], "name": "test"}}
    options["network_g"]["encoder"] = dict(ORACLE)
    options["val"] = options["val"] | {"metrics": None}
    apply(options, changes)
    weights_for(project, options)
    (project.root / "lq").symlink_to(photographs)
    assert_refused(in_process("test", options), message)


@pytest.mark.parametrize("changes", [{}, PLAIN, {"network_g.encoder": ORACLE}])
def test_the_redsr_cases_start_from_options_that_run(redsr_options: Options, in_process: Run, changes: Changes) -> None:
    outcome = in_process("train", apply(redsr_options, {**changes, "train.total_iter": 1, "val": None}))
    assert outcome.status == 0, outcome.output


def test_the_dasr_cases_start_from_options_that_run(dasr_options: Options, in_process: Run) -> None:
    outcome = in_process("train", apply(dasr_options, {"train.total_iter": 3, "val": None}))
    assert outcome.status == 0, outcome.output
