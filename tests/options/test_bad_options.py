"""Options that cannot be used: one line and a status, at start-up, with nothing made or moved."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

Run = Callable[..., "Outcome"]
MISSING = "(left out)"

CASES: list[tuple[str, Any, str]] = [
    # place, value, what the line says
    ("datasets.train.dataroot_gt", "/no/such", "datasets.train.dataroot_gt: '/no/such' is missing or no folder"),
    ("datasets.val.dataroot_gt", "/no/such", "datasets.val.dataroot_gt: '/no/such' is missing or no folder"),
    ("datasets.train.gt_size", 66, "datasets.train.gt_size: 66, expected a multiple of scale 4"),
    ("datasets.train.gt_size", 128, "astronaut0.png: is 96x96, expected both sides at least gt_size 128"),
    ("datasets.train.gt_sze", 64, "datasets.train.gt_sze: unknown key, .*did you mean 'gt_size'"),
    ("datasets.val.protocol", "sixx", "unknown name 'sixx', .*did you mean 'six'"),
    ("datasets.val.protocl", "six", "datasets.val.protocl: unknown key, .*did you mean 'protocol'"),
    (
        "datasets.train.type",
        "PairedDegradationDatset",
        "datasets.train.type: .*did you mean 'PairedDegradationDataset'",
    ),
    ("datasets.train.num_views", 1, "datasets.train.num_views: 1, expected at least train.sigma_alignment.keep, .* 2"),
    ("datasets.train.degrade_on", "worker", "datasets.train.num_views: 3 has no use with degrade_on: worker"),
    ("datasets.train.batch_size_per_gpu", "8", "datasets.train.batch_size_per_gpu: '8', expected a whole number"),
    (
        "datasets.train.batch_size_per_gpu",
        900,
        "batch_size_per_gpu: 900 in all, expected at most 800, as an epoch has 8",
    ),
    ("datasets.train.num_worker_per_gpu", -1, "datasets.train.num_worker_per_gpu: -1, expected a whole number"),
    (
        "datasets.train.prefetch_mode",
        "gpu",
        "datasets.train.prefetch_mode: unknown name 'gpu', expected one of cpu, cuda",
    ),
    ("datasets.train.prefetch_mode", "cuda", "datasets.train.pin_memory: None, expected true with prefetch_mode: cuda"),
    ("datasets.train", MISSING, "datasets.train: the key is missing"),
    ("datasets.val", None, "datasets.val: None, expected a block"),
    ("network_g.backbone", "edrs", "network_g.backbone: unknown name 'edrs', .*did you mean 'edsr'"),
    ("network_g.type", "AACLNett", "network_g.type: unknown name 'AACLNett', .*did you mean 'AACLNet'"),
    ("network_g.num_fet", 8, "network_g.num_fet: unknown key, .*did you mean 'num_feat'"),
    ("network_g.num_feat", "8", "network_g.num_feat: '8', expected a whole number"),
    ("network_g.upscale", 2, "network_g.upscale: 2, expected scale, which is 4"),
    ("network_g.encoder_num_feat", 4, "network_moco.encoder: builds another network than the encoder that is trained"),
    ("network_g", {"type": "MSRResNet"}, "network_g.type: 'MSRResNet', expected a network with an encoder"),
    ("network_g", {"type": "MSRResNet", "num_feat": "x"}, "network_g: MSRResNet cannot be built from this block"),
    ("network_g", "AACLNet", "network_g: expected a block with the key 'type', got 'AACLNet'"),
    ("network_moco.type", "MoCoo", "network_moco.type: unknown name 'MoCoo', .*did you mean 'MoCo'"),
    ("network_moco.queue", 64, "network_moco.queue: unknown key, .*did you mean 'queue_size'"),
    ("network_moco.encoder.num_fet", 8, "network_moco.encoder.num_fet: unknown key, .*did you mean 'num_feat'"),
    ("network_moco.dim", 16, "network_moco.dim: 16, expected 32"),
    ("network_moco.queue_size", 3, "network_moco.queue_size: 3, expected at least 4, the keys of one step"),
    ("network_moco", MISSING, "network_moco: the block is missing, AACLModel needs it"),
    ("degradation.type", "ClasicalDegradation", "degradation.type: .*did you mean 'ClassicalDegradation'"),
    ("degradation.sampler", "adz", "degradation.sampler.*: unknown name 'adz', .*did you mean 'ads'"),
    ("degradation.blur_iso.sigma", [0.2, 40], "degradation.blur_iso.sigma: .*40.*, expected"),
    ("degradation.blur_aniso.sigma", [0, 4], "degradation.blur_aniso.sigma: .*0, 4.*expected widths above 0"),
    ("degradation.jpeg.quality", [0, 95], "degradation.jpeg.quality: .*0.*, expected"),
    ("degradation.noise.level", [-1, 5], "degradation.noise.level: .*-1.*, expected"),
    ("degradation.types", ["iso+nois"], "degradation.types: .*unknown name 'nois', .*did you mean 'noise'"),
    ("degradation.blur_is", {}, "degradation.blur_is: unknown key, .*did you mean 'blur_iso'"),
    ("degradation.scale", 2, "degradation.scale: 2, expected scale, which is 4"),
    ("degradation", None, "degradation: the block is missing"),
    ("model_type", "AACLModl", "model_type: unknown name 'AACLModl', .*did you mean 'AACLModel'"),
    ("num_gpu", 1, "num_gpu: 1, but there is no CUDA device here, expected 0"),
    ("num_gpu", "two", "num_gpu: 'two', expected a whole number"),
    ("num_gpu", MISSING, "num_gpu: the key is missing"),
    ("scale", "4", r"options.yml:\d+: scale: '4', expected a number above 0"),
    ("scale", 4.5, r"options.yml:\d+: scale: 4.5, expected a whole number"),
    ("path.pretrain_network_g", "/no/g.pth", "path.pretrain_network_g: /no/g.pth: there is no such file"),
    ("path.pretrain_network_moco", "/no/m.pth", "path.pretrain_network_moco: /no/m.pth: there is no such file"),
    ("path.resume_state", "/no/1.state", "path.resume_state: /no/1.state: there is no such file"),
    ("path", None, "path: None, expected a block"),
    ("train.total_iter", "4k", "train.total_iter: '4k', expected a whole number"),
    ("train.total_iter", 4.5, "train.total_iter: 4.5, expected a whole number"),
    ("train.ema_decay", 2, "train.ema_decay: 2, expected a number"),
    ("train.pixel_opt.type", "L1Los", "train.pixel_opt.type: unknown name 'L1Los', .*did you mean 'L1Loss'"),
    ("train.pixel_opt.loss_wieght", 1, "train.pixel_opt.loss_wieght: unknown key, .*did you mean 'loss_weight'"),
    ("train.pixel_opt.reduction", "men", "train.pixel_opt: L1Loss cannot be built .*Unsupported reduction mode: men"),
    ("train.pixel_opt", None, "train.pixel_opt: expected this block"),
    (
        "train.perceptual_opt",
        {"type": "PerceptualLoss", "layer_weights": {}, "layers": 1},
        "train.perceptual_opt.layers: unknown key",
    ),
    ("train.contrastive_opt", None, "train.contrastive_opt: the block is missing"),
    ("train.contrastive_opt.temperature", 0, "temperature: 0, expected a number"),
    ("train.contrastive_opt.temprature", 1, "train.contrastive_opt.temprature: unknown key"),
    ("train.encoder_phase.iters", 5, "train.encoder_phase.iters: 5, expected a whole number in .0, 4"),
    ("train.sigma_alignment.kep", 2, "train.sigma_alignment.kep: unknown key, .*did you mean 'keep'"),
    ("train.optim_g.lr", "1e-4x", "train.optim_g.lr: '1e-4x', expected a number"),
    ("train.optim_g.type", "Adamm", "train.optim_g.type: unknown name 'Adamm', .*did you mean 'Adam'"),
    ("train.optim_g.beta", [0.9, 0.9], "train.optim_g.beta: unknown key, .*did you mean 'betas'"),
    ("train.optim_g", None, "train.optim_g: expected a block with the key 'type', got None"),
    ("train.scheduler.type", "MultiStep", "train.scheduler.type: unknown name 'MultiStep', .*did you mean"),
    ("train.scheduler.milestone", [1], "train.scheduler.milestone: unknown key, .*did you mean 'milestones'"),
    ("val.metrics.psnr.type", "calculate_psn", "val.metrics.psnr.type: .*did you mean 'calculate_psnr'"),
    ("val.val_freq", MISSING, "val.val_freq: the key is missing"),
    ("val.val_freq", "5k", "val.val_freq: '5k', expected a whole number"),
    ("val.metrics", "psnr", "val.metrics: 'psnr', expected a block"),
    ("val.metrics.psnr.crop_border", MISSING, "val.metrics.psnr.crop_border: the key is missing"),
    ("val.metrics.psnr.better", "larger", "val.metrics.psnr.better: unknown name 'larger'"),
    ("logger.print_freq", MISSING, "logger.print_freq: the key is missing"),
    ("logger.print_freq", 0, "logger.print_freq: 0, expected a whole number"),
    ("logger.save_checkpoint_freq", "5k", "logger.save_checkpoint_freq: '5k', expected a whole number"),
    ("network_g", MISSING, "network_g: the block is missing, AACLModel needs it"),
    ("name", 5, r"options.yml:1: name: 5, expected the name of a folder"),
    ("name", "..", r"options.yml:1: name: '..', expected the name of a folder"),
    ("name", "a/b", r"options.yml:1: name: 'a/b', expected the name of a folder"),
    ("manual_seed", -1, r"options.yml:\d+: manual_seed: -1, expected a whole number"),
    ("manual_seed", "x", r"options.yml:\d+: manual_seed: 'x', expected a whole number"),
    ("datasets.train.dataroot_gt", 5, "datasets.train.dataroot_gt: 5, expected a folder, 'demo', or a list of folders"),
    ("datasets.train.gt_size", 8, "datasets.train.gt_size: 8, expected at least 11 for the degradation's kernels"),
    ("path.pretrain_network_g", 5, r"options.yml:\d+: path.pretrain_network_g: 5, expected a path or null"),
    ("train.warmup_iter", "x", "train.warmup_iter: 'x', expected a whole number"),
    ("train.pixel_opt.loss_weight", "1e", "train.pixel_opt.loss_weight: '1e', expected a number"),
    ("train.optim_g.type", [], "train.optim_g.type: unknown name "),
    ("train.scheduler.type", {}, "train.scheduler.type: unknown name "),
    ("train.scheduler.gamma", None, "train.scheduler.gamma: None, expected a number"),
    ("train.scheduler.milestones", 5, "train.scheduler.milestones: 5, expected a list, each a whole number"),
    ("train.scheduler.milestones", ["a"], "train.scheduler.milestones: 'a', expected a whole number at least 0"),
    (
        "train.scheduler",
        {"type": "CosineAnnealingRestartLR", "periods": [1]},
        r"train.scheduler.periods: \[1\] sum to 1, expected at least 2, the iterations of the schedule",
    ),
]


def change(options: Options, place: str, value: Any) -> None:
    block = options
    *folders, last = place.split(".")
    for folder in folders:
        block = block[folder]
    if value is MISSING:
        del block[last]
    else:
        block[last] = value


def weights_for(project: Project, options: Options) -> None:
    """Put weights of `network_g` into the project, for a test run of it."""
    arguments = {key: value for key, value in options["network_g"].items() if key != "type"}
    network = ARCH_REGISTRY.get(options["network_g"]["type"])(**arguments)
    torch.save({"params": network.state_dict()}, project.root / "g.pth")
    options["path"] = {"pretrain_network_g": "g.pth"}


def assert_refused(outcome: Outcome, message: str) -> None:
    """Check for one line of complaint, a status, and nothing else."""
    assert outcome.status == 2, outcome.output
    lines = outcome.output.splitlines()
    assert len(lines) == 1, outcome.output
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]


@pytest.mark.parametrize(("place", "value", "message"), CASES, ids=[f"{place}={value}" for place, value, _ in CASES])
def test_a_training_run_is_refused(
    project: Project, aacl_options: Options, in_process: Run, place: str, value: Any, message: str
) -> None:
    for folder in ("experiments", "tb_logger"):
        (project.root / folder / "tiny").mkdir(parents=True)
        (project.root / folder / "tiny" / "earlier").touch()
    aacl_options["logger"]["use_tb_logger"] = True
    change(aacl_options, place, value)
    assert_refused(in_process("train", aacl_options), message)
    for folder in ("experiments", "tb_logger"):
        left = [str(file.relative_to(project.root / folder)) for file in sorted((project.root / folder).rglob("*"))]
        assert left == ["tiny", "tiny/earlier"]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("datasets.val.dataroot_gt", "/no/such", "datasets.test.dataroot_gt: '/no/such' is missing or no folder"),
        ("datasets.val.settings", ["is"], "datasets.test.settings: unknown name 'is', .*did you mean 'iso'"),
        ("network_g.backbone", "edrs", "network_g.backbone: unknown name 'edrs'"),
        ("path.pretrain_network_g", "/no/g.pth", "path.pretrain_network_g: /no/g.pth: there is no such file"),
        ("val.metrics.psnr.type", "psnr", "val.metrics.psnr.type: unknown name 'psnr'"),
        ("num_gpu", 1, "num_gpu: 1, but there is no CUDA device here"),
    ],
)
def test_a_test_run_is_refused(
    project: Project, aacl_options: Options, in_process: Run, place: str, value: Any, message: str
) -> None:
    (project.root / "results" / "tiny").mkdir(parents=True)
    weights_for(project, aacl_options)
    change(aacl_options, place, value)
    del aacl_options["datasets"]["train"]
    aacl_options["datasets"]["test"] = {**aacl_options["datasets"].pop("val"), "name": "test"}
    assert_refused(in_process("test", aacl_options), message)
    assert [folder.name for folder in (project.root / "results").iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("name", "datasets", "message"),
    [
        (
            "train",
            ("train", "test"),
            "datasets.test: expected a name that begins with train or val in this kind of run",
        ),
        ("test", ("train",), "datasets.train: expected a name that begins with test in this kind of run"),
        ("test", (), "datasets: {}, expected at least one dataset"),
    ],
)
def test_datasets_of_another_kind_of_run(
    project: Project, aacl_options: Options, in_process: Run, name: str, datasets: tuple[str, ...], message: str
) -> None:
    weights_for(project, aacl_options)
    blocks = aacl_options["datasets"] | {"test": {**aacl_options["datasets"]["val"], "name": "test"}}
    aacl_options["datasets"] = {phase: blocks[phase] for phase in datasets}
    assert_refused(in_process(name, aacl_options), message)


def test_an_image_that_is_too_small_for_the_kernels(
    project: Project, aacl_options: Options, in_process: Run, photographs: Path
) -> None:
    (project.root / "small").mkdir()
    pixels = cv2.imread(str(photographs / "coffee0.png"))
    assert pixels is not None
    cv2.imwrite(str(project.root / "small" / "small.png"), pixels[:11, :40])
    aacl_options["datasets"]["val"]["dataroot_gt"] = "small"
    assert_refused(in_process("train", aacl_options), "small/small.png: is 40x11, expected both sides at least 11 for")
    aacl_options["datasets"]["val"]["protocol"] = "bicubic"
    aacl_options["datasets"]["val"]["settings"] = None
    del aacl_options["val"]["metrics"]
    assert in_process("train", aacl_options).status == 0


def test_a_folder_without_images(project: Project, aacl_options: Options, in_process: Run) -> None:
    (project.root / "empty").mkdir()
    aacl_options["datasets"]["train"]["dataroot_gt"] = ["empty"]
    assert_refused(in_process("train", aacl_options), "datasets.train.dataroot_gt: 'empty' holds no image, expected")
    assert project.experiments == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", r"options.yml: cannot be read as YAML: .*line 1, column 8"),
        ("name: tiny\n\tscale: 4", r"options.yml: cannot be read as YAML: .*line 2, column 1"),
        ("\x00\xff", r"options.yml: cannot be read as YAML: "),
        ("", r"options.yml: the file: None, expected a block"),
        ("- 1", r"options.yml: the file: \[1\], expected a block"),
    ],
)
def test_an_option_file_that_is_none(
    project: Project, in_process: Run, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    def write(_options: Options) -> Path:
        file = project.root / "options.yml"
        file.write_bytes(text.encode("latin-1"))
        return file

    monkeypatch.setattr(project, "write", write)
    assert_refused(in_process("train", {}), message)


def test_an_option_file_that_is_not_there(project: Project, in_process: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "write", lambda _options: "options/trian.yml")
    assert_refused(in_process("train", {}), "-opt: options/trian.yml: there is no such file")
    monkeypatch.setattr(project, "write", lambda _options: str(project.root))
    assert_refused(in_process("train", {}), f"-opt: {project.root}: is a folder, expected an option file")


def test_the_cases_start_from_options_that_run(project: Project, aacl_options: Options, in_process: Run) -> None:
    before = copy.deepcopy(aacl_options)
    outcome = in_process("train", aacl_options)
    assert outcome.status == 0
    assert project.experiments == ["tiny"]
    assert aacl_options == before
    assert (project.root / "experiments" / "tiny" / "models" / "net_moco_latest.pth").is_file()
    for line in ("iter:       4", "l_pix: ", "l_contrast: ", "# psnr: ", "# ssim: "):
        assert line in outcome.output
