"""BasicSR projects that only add `import bsr_plugins`: installed or copied, under BasicSR's own pipeline and models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import bsr_plugins

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

Run = Callable[..., "Outcome"]
PACKAGE = Path(bsr_plugins.__file__).parent

TRAIN = """from os import path as osp

import bsr_plugins
from basicsr.train import train_pipeline

if __name__ == '__main__':
    root_path = osp.abspath(osp.join(__file__, osp.pardir))
    train_pipeline(root_path)
"""


@pytest.fixture
def paired_options(aacl_options: Options) -> Options:
    """A stock config, `SRModel` and `MSRResNet`, that takes our dataset."""
    del aacl_options["network_moco"]
    for key in ("encoder_phase", "sigma_alignment", "contrastive_opt"):
        del aacl_options["train"][key]
    train = aacl_options["datasets"]["train"]
    del train["num_views"]
    train |= {"degrade_on": "worker", "degradation": aacl_options.pop("degradation")}
    aacl_options["model_type"] = "SRModel"
    aacl_options["network_g"] = {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 4}
    return aacl_options


def parameters(project: Project, name: str, run: str = "tiny") -> dict[str, torch.Tensor]:
    file = project.root / "experiments" / run / "models" / f"{name}_latest.pth"
    loaded: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["params"]
    assert all(bool(value.isfinite().all()) for value in loaded.values())
    return loaded


def test_aacl_trains_in_a_project_that_imports_the_package(project: Project, aacl_options: Options) -> None:
    aacl_options["degradation"]["sampler"] = {"type": "ads", "grid": 5}
    (project.root / "train.py").write_text(TRAIN)
    outcome = project.python("train.py", "-opt", project.write(aacl_options))
    assert outcome.status == 0, outcome.output
    for text in ("iter:       4", "l_pix: ", "l_contrast: ", "contrast_accuracy: ", "# psnr: "):
        assert text in outcome.output
    assert int(parameters(project, "net_moco")["queue_filled"]) == 16
    assert "encoder.features.0.weight" in parameters(project, "net_g")
    assert (project.root / "experiments" / "tiny" / "degradation_calibration.json").is_file()


def test_a_copy_of_the_package_is_enough(project: Project, paired_options: Options, photographs: Path) -> None:
    """Copied and not installed, with a stock model, roots in a list, workers, and the CUDA prefetcher on the CPU."""
    shutil.copytree(PACKAGE, project.root / "bsr_plugins", ignore=shutil.ignore_patterns("__pycache__"))
    (project.root / "train.py").write_text(TRAIN + "    print('from', bsr_plugins.__file__)\n")
    loading = {"num_worker_per_gpu": 1, "prefetch_mode": "cuda", "pin_memory": True}
    paired_options["datasets"]["train"] |= {"dataroot_gt": [str(photographs), "demo"], **loading}
    outcome = project.python("train.py", "-opt", project.write(paired_options), package=None)
    assert outcome.status == 0, outcome.output
    assert f"from {project.root / 'bsr_plugins' / '__init__.py'}" in outcome.output
    assert "Number of train images: 15" in outcome.output
    assert "prefetch_mode: 'cuda' needs CUDA, and there is none" in outcome.output
    assert set(parameters(project, "net_g")) >= {"conv_first.weight", "conv_last.bias"}


@pytest.mark.parametrize("prefetch_mode", [None, "cpu", "cuda"])
def test_a_stock_model_trains_the_same_behind_every_prefetcher(
    project: Project, paired_options: Options, in_process: Run, prefetch_mode: str | None
) -> None:
    train = paired_options["datasets"]["train"]
    train |= {"degradation": {**train["degradation"], "sampler": {"type": "ads", "grid": 5}}}
    assert in_process("stock train", paired_options).status == 0
    train |= {"prefetch_mode": prefetch_mode, "pin_memory": prefetch_mode == "cuda", "num_worker_per_gpu": 2}
    assert in_process("stock train", paired_options | {"name": "again"}).status == 0
    plain, again = (parameters(project, "net_g", run) for run in ("tiny", "again"))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_blind_models_train_under_the_stock_pipeline(project: Project, aacl_options: Options, in_process: Run) -> None:
    for key in ("encoder_phase", "sigma_alignment", "contrastive_opt"):
        del aacl_options["train"][key]
    del aacl_options["network_moco"]
    aacl_options |= {"model_type": "BlindSRModel"}
    outcome = in_process("stock train", aacl_options)
    assert outcome.status == 0
    assert "l_pix: " in outcome.output
    assert "encoder.features.0.weight" in parameters(project, "net_g")


def simple_align(options: Options) -> Options:
    """Make options of ReDSR some of Simple-Align."""
    del options["network_degrader"], options["datasets"]["train"]["num_views"]
    for key in ("redegradation_opt", "representation_opt"):
        del options["train"][key]
    options["network_g"] = {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 2}
    options["train"] |= {"pixel_opt": {"type": "L1Loss"}, "align_opt": {"type": "AlignmentLoss"}}
    return options | {"model_type": "SimpleAlignModel", "degradation": {"type": "SecondOrderDegradation"}}


METHODS = {
    "aacl": ["l_pix", "l_contrast", "contrast_accuracy"],
    "redsr": ["l_pix", "l_redegradation", "l_representation"],
    "dasr": ["l_pix", "l_contrast"],
    "simple_align": ["l_pix", "l_align"],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_under_the_stock_pipeline(
    request: pytest.FixtureRequest, in_process: Run, method: str
) -> None:
    """From the import alone, and goes on from its own checkpoint there."""
    options = request.getfixturevalue("redsr_options" if method == "simple_align" else f"{method}_options")
    options = simple_align(options) if method == "simple_align" else options
    options["logger"]["save_checkpoint_freq"] = 3
    outcome = in_process("stock train", options)
    assert outcome.status == 0, outcome.output
    for figure in METHODS[method]:
        assert f"{figure}: " in outcome.output
    options["path"]["resume_state"] = "experiments/tiny/training_states/3.state"
    resumed = in_process("stock train", options)
    assert resumed.status == 0, resumed.output
    assert "iter: 3." in resumed.output


def test_what_a_stock_pipeline_hears_of_bad_options(aacl_options: Options, in_process: Run) -> None:
    aacl_options["network_moco"]["queue_size"] = 3
    outcome = in_process("stock train", aacl_options)
    assert outcome.status == 2
    assert "network_moco.queue_size: 3, expected at least 4, the keys of one step" in outcome.output.splitlines()[-1]
