"""What the pipelines do with a run that has been prepared: nothing is built twice, and nothing is lost for the log."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from basicsr.utils.registry import DATASET_REGISTRY
from torch import nn
from torch.utils.data import IterableDataset

from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.engine import pipelines, validation
from bsr_plugins.models import ReDSRModel
from bsr_plugins.options import preflight

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

Run = Callable[..., "Outcome"]


def counted(kind: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have the objects of a class listed that are built from now on."""
    built: list[Any] = []
    stock: Any = kind.__init__

    def initialise(self: Any, *arguments: Any) -> None:
        built.append(self)
        stock(self, *arguments)

    monkeypatch.setattr(kind, "__init__", initialise)
    return built


def with_remarks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have the preparation of a pipeline give warnings; returns what it has prepared."""
    stock, prepared = preflight.prepare, []

    def prepare(*arguments: Any, **settings: Any) -> Any:
        made = stock(*arguments, **settings)
        names = ("opt", "file", "resolved", "only_check", "datasets", "model", "replay")
        kept = {name: getattr(made, name) for name in names}
        prepared.append(SimpleNamespace(**kept, warnings=["an early remark"], late_reads=lambda: ["a late remark"]))
        return prepared[-1]

    monkeypatch.setattr(pipelines, "prepare", prepare)
    return prepared


def test_a_training_run_takes_what_was_prepared(
    project: Project, redsr_options: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, prepared = counted(ReDSRModel, monkeypatch), with_remarks(monkeypatch)
    assert in_process("train", redsr_options).status == 0
    assert models == [prepared[0].model]
    (file,) = project.root.glob("experiments/tiny/*.log")
    log = file.read_text()
    events = [
        "Model [ReDSRModel] is created.",
        "WARNING: an early remark",
        "Start training from epoch: 0",
        "WARNING: a late remark",
        "iter:       1,",
        "iter:       2,",
        "End of training",
    ]
    places = [log.index(event) for event in events]
    assert places == sorted(places)
    assert log.count("a late remark") == log.count("an early remark") == 1


def test_a_test_run_takes_what_was_prepared(
    project: Project, redsr_options: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_process("train", redsr_options).status == 0
    options = {
        key: redsr_options[key] for key in ("name", "model_type", "scale", "num_gpu", "manual_seed", "network_g")
    }
    options |= {"datasets": {"test": redsr_options["datasets"]["val"]}, "val": redsr_options["val"]}
    options["path"] = {"pretrain_network_g": "experiments/tiny/models/net_g_latest.pth", "strict_load_g": True}
    prepared, measured = with_remarks(monkeypatch), []
    stock = validation.validate

    def validate(model: nn.Module, loader: Any, *arguments: Any) -> bool:
        measured.append((model, loader.dataset))
        return stock(model, loader, *arguments)

    monkeypatch.setattr(pipelines, "validate", validate)
    outcome = in_process("test", options)
    assert outcome.status == 0, outcome.output
    ((model, dataset),) = measured
    assert model is prepared[0].model
    assert dataset is prepared[0].datasets["test"]
    assert isinstance(dataset, PairedDegradationDataset)
    (file,) = project.root.glob("results/tiny/*.log")
    log = file.read_text()
    events = ["WARNING: an early remark", "Testing ", "WARNING: a late remark", "Validation "]
    places = [log.index(event) for event in events]
    assert places == sorted(places)
    assert log.count("a late remark") == log.count("an early remark") == 1


class Endless(IterableDataset[Any]):
    """A dataset without indices."""


def test_datasets_without_indices_are_refused(
    redsr_options: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Endless", Endless)
    redsr_options["datasets"]["train"]["type"] = "Endless"
    outcome = in_process("train", redsr_options)
    assert outcome.status == 2
    assert "datasets.train.type: 'Endless' has no indices, expected a dataset with them" in outcome.output
