"""The guide to extending: its files are short, and run together from a folder outside the package."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.examples import examples

if TYPE_CHECKING:
    from tests.conftest import Options, Project

LINES = {
    "box_blur_stage.py": 45,
    "middle_sampler.py": 25,
    "my_backbone.py": 40,
    "my_arch.py": 40,
    "edge_loss.py": 25,
    "noisy_model.py": 40,
    "blur_steps_protocol.py": 25,
    "train.py": 10,
}
CHECKED = """
import sys

import blur_steps_protocol
import train
from bsr_plugins.engine import run, train_pipeline

for file in ("whole.yml", "arch.yml", "misspelt.yml"):
    sys.argv = ["train.py", "-opt", file]
    print(file, run(train_pipeline, __file__.rpartition("/")[0]), flush=True)
"""


def merged(options: Any, changes: Any) -> Any:
    """Merge blocks of options deeply."""
    if not (isinstance(options, dict) and isinstance(changes, dict)):
        return copy.deepcopy(changes)
    return options | {key: merged(options.get(key), value) for key, value in changes.items()}


@pytest.mark.parametrize("name", LINES)
def test_every_file_of_the_guide_is_short(name: str) -> None:
    assert set(examples()) == set(LINES)
    assert len(examples()[name].code.splitlines()) <= LINES[name]


def test_they_run_together(project: Project, aacl_options: Options) -> None:
    found = examples()
    for name, example in found.items():
        (project.root / name).write_text(example.code)
    whole = copy.deepcopy(aacl_options)
    del whole["degradation"]["types"]
    for name in ("middle_sampler", "box_blur_stage", "my_backbone", "edge_loss", "blur_steps_protocol"):
        whole = merged(whole, found[f"{name}.py"].options)
    whole["degradation"]["noise"]["sampler"] = found["middle_sampler.py"].options["degradation"]["noise"]["sampler"]
    for key in ("blur_iso", "blur_aniso", "jpeg"):
        del whole["degradation"][key]
    del whole["datasets"]["val"]["settings"]
    whole["network_g"] |= {"num_feat": 8}
    project.write(whole | {"name": "whole"}, "whole.yml")

    arch = copy.deepcopy(aacl_options)
    del arch["network_moco"]
    for key in ("encoder_phase", "sigma_alignment", "contrastive_opt"):
        del arch["train"][key]
    arch = merged(arch, found["noisy_model.py"].options)
    arch["network_g"] = found["my_arch.py"].options["network_g"] | {"num_feat": 8, "num_block": 1}
    arch["datasets"]["train"]["num_views"] = 1
    project.write(arch | {"name": "arch"}, "arch.yml")

    misspelt = copy.deepcopy(whole)
    misspelt["degradation"]["blur_box"]["widht"] = misspelt["degradation"]["blur_box"].pop("width")
    misspelt["network_g"]["backbone"]["width"] = 0
    misspelt["train"]["edge_opt"]["loss_wieght"] = 1
    project.write(misspelt, "misspelt.yml")

    (project.root / "all.py").write_text(CHECKED)
    outcome = project.python("all.py")
    for file, status in (("whole.yml", 0), ("arch.yml", 0), ("misspelt.yml", 2)):
        assert f"{file} {status}\n" in outcome.output, outcome.output
    for figure in ("l_edge: ", "edge_sharpness: ", "lq_noise: ", "# psnr: "):
        assert figure in outcome.output
    for line in (
        "degradation.blur_box.widht: unknown key, expected one of ",
        "network_g.backbone.width: 0, expected a whole number in [1, 16]",
        "train.edge_opt.loss_wieght: unknown key, expected one of ",
    ):
        assert f": {line}" in outcome.output, outcome.output
