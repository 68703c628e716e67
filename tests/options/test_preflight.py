"""The options of a run as the pipelines get them: what BasicSR adds, the command line, and all faults at once."""

from __future__ import annotations

import copy
import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from basicsr.utils.options import parse_options

from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.errors import BSRError
from bsr_plugins.models import AACLModel
from bsr_plugins.options.faults import OptionFaults
from bsr_plugins.options.preflight import Prepared, prepare
from tests.options.test_bad_options import weights_for

if TYPE_CHECKING:
    from tests.conftest import Options, Project

Read = Callable[..., Prepared]


@pytest.fixture
def read(project: Project, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Read options of a run as the pipelines do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(project.root)

    def run(options: Options, *arguments: str, is_train: bool = True, resume: Any = None) -> Prepared:
        project.write(options)
        monkeypatch.setattr(sys, "argv", ["x", "-opt", "options.yml", *arguments])
        return prepare(str(project.root), is_train, resume)

    return run


def lines(read: Read, options: Options, *arguments: str, is_train: bool = True, resume: Any = None) -> list[str]:
    with pytest.raises(OptionFaults) as caught:
        read(options, *arguments, is_train=is_train, resume=resume)
    return list(caught.value.lines)


@pytest.mark.parametrize(
    "arguments", [(), ("--debug",), ("--auto_resume",), ("--local-rank=0",), ("--local_rank", "0")]
)
@pytest.mark.parametrize("is_train", [True, False])
def test_they_are_what_basicsr_makes_of_them(
    read: Read, project: Project, aacl_options: Options, is_train: bool, arguments: tuple[str, ...]
) -> None:
    weights_for(project, aacl_options)
    if not is_train:
        aacl_options["datasets"] = {"test_1": aacl_options["datasets"]["val"]}
    run = read(aacl_options, *arguments, is_train=is_train)
    sys.argv = [argument.replace("--local-rank", "--local_rank") for argument in sys.argv]
    expected, _ = parse_options(str(project.root), is_train)
    if is_train and "--debug" in arguments:  # BasicSR looks at the name instead, wherever it would log
        expected["logger"] |= {"use_tb_logger": False, "wandb": None}
    assert run.opt == expected
    assert run.opt["path"]["visualization"].startswith(str(project.root))
    assert run.file == Path("options.yml")
    assert run.resolved == Path("options.yml").read_bytes()
    assert not run.only_check


def test_a_name_alone_makes_no_run_for_debugging(read: Read, aacl_options: Options) -> None:
    opt = read(aacl_options | {"name": "debugged"}).opt
    assert opt["logger"] == read(aacl_options).opt["logger"]
    assert opt["val"] == aacl_options["val"]


def test_the_seeds_are_set(read: Read, aacl_options: Options) -> None:
    def drawn() -> list[Any]:
        return [random.random(), np.random.rand(), float(torch.rand(()))]  # noqa: NPY002  (BasicSR seeds it)

    first, second = ((read(aacl_options), drawn())[1] for _ in range(2))
    assert first == second


def test_a_seed_that_is_not_given_is_drawn_and_handed_on(read: Read, aacl_options: Options) -> None:
    del aacl_options["manual_seed"]
    del aacl_options["datasets"]["train"]["seed"]
    opt = read(aacl_options).opt
    assert isinstance(opt["manual_seed"], int)
    assert opt["datasets"]["train"]["seed"] == opt["manual_seed"]
    assert opt["datasets"]["val"]["seed"] == 10


def test_the_home_folder_is_put_in(
    read: Read, aacl_options: Options, monkeypatch: pytest.MonkeyPatch, photographs: Path
) -> None:
    monkeypatch.setenv("HOME", str(photographs.parent))
    aacl_options["datasets"]["train"]["dataroot_gt"] = ["~/" + photographs.name, str(photographs)]
    aacl_options["datasets"]["val"]["dataroot_gt"] = "~/" + photographs.name
    opt = read(aacl_options).opt
    assert opt["datasets"]["train"]["dataroot_gt"] == [str(photographs)] * 2
    assert opt["datasets"]["val"]["dataroot_gt"] == str(photographs)


def test_helper_keys_hold_anchors_and_are_no_options(read: Read, aacl_options: Options) -> None:
    assert "x-blocks" not in read(aacl_options | {"x-blocks": {"any": 1}}).opt
    (line,) = lines(read, aacl_options | {"xblocks": {"any": 1}})
    assert line.startswith("options.yml:")
    assert ": xblocks: unknown key, which neither AACLModel nor the trainer reads" in line


def test_the_command_line_sets_options(read: Read, aacl_options: Options) -> None:
    before = copy.deepcopy(aacl_options)
    arguments = ["--set", "train:total_iter=3e0", "train:optim_g:lr=1e-4", "--force_yml", "val:pbar=true"]
    run = read(aacl_options, *arguments, "--set", "train:warmup_iter=2")
    assert run.opt["train"]["total_iter"] == 3
    assert run.opt["train"]["optim_g"]["lr"] == 1e-4
    assert run.opt["val"]["pbar"] is True
    before["train"] |= {"total_iter": 3, "warmup_iter": 2}
    before["train"]["optim_g"]["lr"] = 1e-4
    before["val"]["pbar"] = True
    assert yaml.safe_load(run.resolved) == before


def test_all_faults_are_listed_each_with_its_place(read: Read, project: Project, aacl_options: Options) -> None:
    project.write(aacl_options, "base.yml")
    numbered = {line.strip(): n for n, line in enumerate(Path("base.yml").read_text().splitlines(), 1)}
    options: Options = {"_base_": "base.yml", "name": "a/b", "train": {"ema_deacy": 0.9, "optim_g": {"lr": "fast"}}}
    options |= {"network_g": {"num_feat": -1}, "datasets": {"val": {"dataroot_gt": "nowhere"}}}
    options |= {"val": {"metrics": {"psnr": {"crop_border": 48}}}, "logger": {"print_freq": 0.5}}
    found = lines(read, options, "--set", "path:resume_state=1.state", "train:total_iter=no", "train:lr")
    text = Path("options.yml").read_text().splitlines()
    own = {line.strip(): number for number, line in enumerate(text, 1)}
    expected = {
        f"options.yml:{own['name: a/b']}: name: 'a/b', expected the name of a folder",
        f"options.yml:{own['ema_deacy: 0.9']}: train.ema_deacy: unknown key, ",
        f"options.yml:{own['lr: fast']}: train.optim_g.lr: 'fast', expected a number",
        f"options.yml:{own['num_feat: -1']}: network_g.num_feat: -1, expected a whole number",
        f"options.yml:{own['dataroot_gt: nowhere']}: datasets.val.dataroot_gt: 'nowhere' is missing or no folder",
        f"options.yml:{own['print_freq: 0.5']}: logger.print_freq: 0.5, expected a whole number at least 1",
        "--set path:resume_state=1.state: path.resume_state: 1.state: there is no such file",
        "--set train:total_iter=no: train.total_iter: False, expected a whole number in [1, 1000000000000]",
        "options.yml: --set train:lr: expected KEY=VALUE or KEY:KEY=VALUE",
    }
    assert len(found) == len(expected), found
    for start in expected:
        assert [line for line in found if line.startswith(start)], (start, found)
    assert project.experiments == []

    del options["datasets"]
    (line,) = (line for line in lines(read, options) if "crop_border" in line)
    assert line.endswith("val.metrics.psnr.crop_border: 48, which leaves nothing of the smallest image, 96x96")
    aacl_options["train"]["scheduler"]["gama"] = 1
    (line,) = lines(read, aacl_options)
    assert line.startswith(f"options.yml:{numbered['gamma: 0.5'] + 1}: train.scheduler.gama: unknown key, ")


@pytest.mark.parametrize("name", ["train", "test"])
def test_only_to_check(project: Project, aacl_options: Options, in_process: Callable[..., Any], name: str) -> None:
    weights_for(project, aacl_options)
    if name == "test":
        aacl_options["datasets"] = {"test": aacl_options["datasets"]["val"]}
    outcome = in_process(name, aacl_options, "--check")
    assert outcome == (0, f"{project.root}/options.yml: no faults found\n")
    aacl_options["scale"] = 0
    outcome = in_process(name, aacl_options, "--check")
    assert outcome.status == 2
    assert ": scale: 0, expected a number above 0\n" in outcome.output
    assert not {"experiments", "results", "tb_logger"} & {file.name for file in project.root.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (
            ["--launcher", "pytorch"],
            {},
            "--launcher: 'pytorch', but RANK is '', expected processes that torchrun starts",
        ),
        (
            ["--launcher", "slurm"],
            {},
            "--launcher: 'slurm', but SLURM_PROCID is '', expected processes that srun starts",
        ),
        (
            [],
            {"RANK": "0", "WORLD_SIZE": "2"},
            "--launcher: 'none', but there are 2 processes (torchrun), expected 'pyt",
        ),
    ],
)
def test_a_launcher_that_is_another(
    read: Read,
    aacl_options: Options,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (line,) = lines(read, aacl_options, *arguments)
    assert line.startswith(message)


def test_arguments_are_not_guessed(read: Read, aacl_options: Options) -> None:
    for argument in ("--auto", "--chek", "--set"):
        with pytest.raises(SystemExit) as caught:
            read(aacl_options, argument)
        assert caught.value.code == 2


def test_options_are_printed_for_basicsr(
    project: Project, aacl_options: Options, in_process: Callable[..., Any]
) -> None:
    project.write(aacl_options | {"x-helper": 1}, "base.yml")
    heir = {"_base_": "base.yml", "name": "heir", "train": {"optim_g": {"lr": 1e-7}}}
    status, output = in_process("train", heir, "--print", "--set", "train:total_iter=3")
    assert status == 0
    assert "_base_" not in output
    printed = yaml.safe_load(output)
    aacl_options["train"] |= {"total_iter": 3, "optim_g": {"type": "Adam", "lr": 1e-7}}
    assert printed == aacl_options | {"name": "heir"}
    assert {file.name for file in project.root.iterdir()} == {"tools", "base.yml", "options.yml"}
    assert in_process("train", printed, "--check").status == 0
    status, output = in_process("train", heir, "--print", "--set", "train")
    assert status == 2
    assert "--set train: expected KEY=VALUE" in output


def test_all_is_built_once_and_handed_over(
    read: Read, project: Project, aacl_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is logged meanwhile comes into the log that is opened afterwards; BasicSR's logger is as it was."""
    logger = logging.getLogger("basicsr")
    before = (list(logger.handlers), logger.propagate, logger.level)
    built: list[str] = []
    for kind in (PairedDegradationDataset, AACLModel):
        monkeypatch.setattr(kind, "__init__", _noting(kind, built))
    prepared = read(aacl_options)
    assert sorted(built) == ["AACLModel", "PairedDegradationDataset", "PairedDegradationDataset"]
    assert {key: len(dataset) for key, dataset in prepared.datasets.items()} == {"train": 8, "val": 8}
    assert isinstance(prepared.model, AACLModel)
    assert prepared.late_reads() == []
    assert (list(logger.handlers), logger.propagate, logger.level) == before
    assert [file.name for file in sorted(project.root.iterdir())] == ["options.yml", "tools"]
    told: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: told.append(record.getMessage()))
    log = logging.Logger("log", logging.INFO)
    log.addHandler(handler)
    prepared.replay(log)
    assert "Dataset [PairedDegradationDataset] - train is built." in told
    assert told[-1] == "Model [AACLModel] is created."
    prepared.replay(log)
    assert told.count(told[-1]) == 1


def _noting(kind: type, built: list[str]) -> Callable[..., None]:
    build: Callable[..., None] = kind.__init__  # type: ignore[misc]

    def noting(self: Any, *args: Any) -> None:
        built.append(kind.__name__)
        build(self, *args)

    return noting


def test_a_run_that_goes_on_takes_what_resuming_says(read: Read, aacl_options: Options) -> None:
    asked: list[Options] = []

    def resume(opt: Options) -> None:
        asked.append(opt)
        opt["manual_seed"] = 77

    del aacl_options["manual_seed"], aacl_options["datasets"]["train"]["seed"]
    opt = read(aacl_options, resume=resume).opt
    assert asked == [opt]
    assert opt["datasets"]["train"]["seed"] == opt["manual_seed"] == 77
    assert read(aacl_options, "--check", resume=resume).only_check
    assert len(asked) == 1

    def refuse(_opt: Options) -> None:
        raise BSRError("1.state: is broken")

    aacl_options["datasets"]["val"]["protocol"] = "sixx"
    found = lines(read, aacl_options, resume=refuse)
    assert found[0] == "options.yml: 1.state: is broken"
    assert "unknown name 'sixx'" in found[1]
