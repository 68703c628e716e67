"""What a user sees of an error: one line, a status, and the log's last word."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import basicsr.test
import basicsr.train
import pytest
import torch
from basicsr.models import build_model
from basicsr.utils import get_root_logger, set_random_seed
from basicsr.utils.options import parse_options

from bsr_plugins.engine import run
from bsr_plugins.errors import BadImageError, OptionError
from bsr_plugins.options.preflight import prepare

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

Run = Callable[..., "Outcome"]


def raising(error: BaseException) -> Callable[[str], None]:
    def pipeline(_root: str) -> None:
        raise error

    return pipeline


def test_the_root_is_handed_on(tmp_path: Path) -> None:
    given: list[str] = []
    assert run(given.append, tmp_path) == 0
    assert given == [str(tmp_path)]


def test_bad_input_is_one_line_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(raising(OptionError("scale: 5, expected 4")), tmp_path) == 2
    assert capfd.readouterr() == ("", "error: scale: 5, expected 4\n")


def test_a_workers_error_is_its_last_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "Caught BadImageError in DataLoader worker process 0.\nOriginal Traceback:\n  File x, line 1\n"
    error = BadImageError(f"{text}bsr_plugins.errors.BadImageError: a.png: cannot be decoded\n")
    assert run(raising(error), tmp_path) == 2
    assert capfd.readouterr().err == "error: a.png: cannot be decoded\n"


def test_a_run_that_has_a_log_logs_its_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    get_root_logger(log_level=logging.INFO, log_file=str(tmp_path / "run.log"))
    assert run(raising(OptionError("too late")), tmp_path) == 2
    assert (tmp_path / "run.log").read_text().endswith("ERROR: too late\n")
    assert capfd.readouterr().err.count("too late") == 1


def test_an_interrupt_before_training_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(raising(KeyboardInterrupt()), tmp_path) == 130
    assert capfd.readouterr() == ("", "interrupted\n")


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()), tmp_path)


@pytest.mark.parametrize("loading", [{}, {"num_worker_per_gpu": 1}, {"prefetch_mode": "cpu"}])
def test_a_truncated_image_is_named(
    with_a_truncated_image: Path, aacl_options: Options, in_process: Run, loading: Options
) -> None:
    aacl_options["datasets"]["train"] |= {"dataroot_gt": str(with_a_truncated_image), **loading}
    outcome = in_process("train", aacl_options)
    assert outcome.status == 2
    (complaint,) = (line for line in outcome.output.splitlines() if "ERROR: " in line)
    assert f"ERROR: {with_a_truncated_image / '2.png'}: cannot be decoded, expected a whole image file" in complaint
    assert "Traceback" not in outcome.output


@pytest.mark.parametrize("option", [None, "nowhere"])
def test_basicsr_is_left_as_it_was(
    project: Project, aacl_options: Options, in_process: Run, option: str | None
) -> None:
    before = [basicsr.train.parse_options, basicsr.test.parse_options]
    aacl_options["path"]["pretrain_network_g"] = option
    aacl_options["train"] |= {"total_iter": 1, "encoder_phase": None}
    assert in_process("train", aacl_options).status == (0 if option is None else 2)
    assert [basicsr.train.parse_options, basicsr.test.parse_options] == before
    assert project.root.joinpath("experiments").is_dir() == (option is None)


def test_several_gpus_where_there_is_none(aacl_options: Options, in_process: Run) -> None:
    outcome = in_process("train", aacl_options | {"num_gpu": 2})
    assert ": num_gpu: 2, but there is no CUDA device here" in outcome.output


def test_several_gpus_in_one_process_become_one(
    aacl_options: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    outcome = in_process("train", aacl_options | {"num_gpu": 2}, "--check")
    assert "One process runs on one GPU, so num_gpu: 1 in place of 2; torchrun uses them all." in outcome.output


def test_the_check_does_not_change_the_run(
    aacl_options: Options, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are those that BasicSR builds: what is built or run for trial before has drawn no random number."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["train", "-opt", str(project.write(aacl_options))])
    prepared = prepare(str(project.root), is_train=True)
    opt, _ = parse_options(str(project.root), is_train=True)
    set_random_seed(opt["manual_seed"])
    expected = build_model(opt).net_g.state_dict()
    found = prepared.model.net_g.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
