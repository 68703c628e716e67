"""What is validated in the tests of validation: models, datasets and metrics with faults, on any number of ranks."""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from bsr_plugins.engine.validation import validate
from bsr_plugins.errors import BSRError

Options = dict[str, Any]
Outcome = dict[str, Any]
Item = dict[str, Any]
Change = Callable[[Item], Item]
PATIENCE = timedelta(seconds=60)
FIRST, SECOND = 5, 10  # iterations


def calculate_uneven(img: Any, img2: Any) -> float:
    """A metric whose sum over images depends on their order."""
    total = int(img.astype(np.int64).sum()) + int(img2.astype(np.int64).sum())
    return math.sin(total) * 10.0 ** (total % 7)


def calculate_picky(img: Any, img2: Any, broken: str) -> float:
    """A metric that fails, or gives no finite number, where the ground truth is black."""
    if img2.any():
        return float(img.mean())
    if broken == "raises":
        raise ZeroDivisionError("two\nlines")
    return float(broken)


def register_metrics() -> None:
    for metric in (calculate_uneven, calculate_picky):
        if metric.__name__ not in METRIC_REGISTRY:
            METRIC_REGISTRY.register(metric)


class Changed(Dataset[Any]):
    """Some items of a dataset, of which the second, or every one, is changed."""

    def __init__(self, dataset: Any, places: Sequence[int], change: Change, every: bool) -> None:
        self.dataset, self.places, self.opt = dataset, places, dataset.opt
        self.change, self.every = change, every

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Item:
        item: Item = self.dataset[self.places[place]]
        return self.change(item) if self.every or place == 1 else item


class OwnWay(SRModel):  # type: ignore[misc]  # BasicSR carries no annotations
    """A model that validates in its own way."""

    def nondist_validation(self, dataloader: Any, *_: Any) -> None:
        self.seen = []
        for data in dataloader:
            self.feed_data(data)
            self.test()
            self.seen.append(float(self.output.mean()))
            if not data["gt"].any():
                raise BSRError("black")


def black(item: Item) -> Item:
    return item | {"gt": torch.zeros_like(item["gt"])}


def smaller(item: Item) -> Item:
    return item | {"gt": item["gt"][:, :-6, :-4]}


def unusable(item: Item) -> Item:
    return item | {"lq": "nothing"}


def loader_of(
    opt: Options, places: Sequence[int] = range(8), change: Change = dict, every: bool = False
) -> DataLoader[Any]:
    """The loader of some images of the validation dataset."""
    dataset = build_dataset(copy.deepcopy(opt["datasets"]["val"]))
    return DataLoader(Changed(dataset, places, change, every), batch_size=1)


def make(opt: Options, kind: Callable[[Options], Any] = build_model) -> Any:
    """Build a model whose output is no plain interpolation."""
    torch.manual_seed(3)
    model = kind(copy.deepcopy(opt))
    brighten(model, 1.0)
    return model


def brighten(model: Any, factor: float) -> None:
    """Change what a model makes of images."""
    networks = [model.net_g, *([model.net_g_ema] if hasattr(model, "net_g_ema") else [])]
    with torch.no_grad():
        for network in networks:
            for number, parameter in enumerate(network.parameters()):
                parameter.add_(0.02 * factor * torch.sin(torch.arange(parameter.numel()) + number).view_as(parameter))


def results(model: Any) -> Outcome:
    return copy.deepcopy({"metrics": model.metric_results, "best": model.best_metric_results})


def message_of(action: Callable[[], object]) -> str:
    """What an action fails with, as type and message."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def with_metrics(opt: Options, **metrics: Any) -> Options:
    changed = copy.deepcopy(opt)
    changed["val"]["metrics"] = metrics
    return changed


def validate_all(opt: Options, folder: Path) -> Outcome:
    """Validate everything there is to validate, on this rank; images are saved in the folder."""
    register_metrics()
    opt["path"]["visualization"] = str(folder)
    outcome: Outcome = {}
    model = make(opt)
    lines: list[str] = []
    collect = partial(_keep, lines)
    logging.getLogger("basicsr").addFilter(collect)

    untouched = surroundings(model)
    validate(model, loader_of(opt), FIRST, None, save_img=True)
    outcome["first"] = results(model)
    brighten(model, -0.5)
    validate(model, loader_of(opt), SECOND, None, save_img=False)
    outcome["second"] = results(model)
    last = opt["rank"] == opt["world_size"] - 1  # which alone is asked to stop
    ended = validate(model, loader_of(opt), FIRST, None, False, after_image=lambda: last)
    outcome["broken off"] = not ended and results(model) == outcome["second"]
    outcome["left alone"] = surroundings(model) == untouched
    for count in (1, 2):
        validate(model, loader_of(opt, range(count)), SECOND, None, save_img=False)
        outcome[f"first {count}"] = dict(model.metric_results)

    picky = {name: {"type": "calculate_picky", "broken": name} for name in ("raises", "inf", "nan")}
    for name in ("inf", "nan"):
        measured = make(with_metrics(opt, **{name: picky[name]}))
        lines.clear()
        validate(measured, loader_of(opt, change=black), FIRST, None, save_img=False)
        outcome[name] = repr(measured.metric_results[name]), [line for line in lines if "not finite" in line]

    failing = {
        "size": (make(opt), loader_of(opt, change=smaller)),
        "metric": (make(with_metrics(opt, raises=picky["raises"])), loader_of(opt, change=black)),
        "crash": (make(opt), loader_of(opt, change=unusable)),
        "own": (make(opt, OwnWay), loader_of(opt, change=black)),
    }
    for name, (broken, loader) in failing.items():
        outcome[name] = message_of(partial(validate, broken, loader, FIRST, None, save_img=False))
    own = make(opt, OwnWay)
    validate(own, loader_of(opt, range(3)), FIRST, None, save_img=False)
    outcome["own way"] = getattr(own, "seen", None)
    logging.getLogger("basicsr").removeFilter(collect)
    return outcome


def surroundings(model: Any) -> list[Any]:
    """What validation has nothing to do with."""
    modes = [module.training for module in model.net_g.modules()]
    gradients = [parameter.grad is None for parameter in model.net_g.parameters()]
    states: list[Any] = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002
    return [isinstance(model.net_g, DistributedDataParallel), modes, gradients, *states]


def _keep(lines: list[str], record: logging.LogRecord) -> bool:
    lines.append(record.getMessage())
    return True


def _run_rank(rank: int, ranks: int, opt: Options, folder: str) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks, timeout=PATIENCE)
    opt |= {"dist": True, "rank": rank, "world_size": ranks}
    torch.save(validate_all(opt, Path(folder) / "images"), f"{folder}/rank{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


def on_ranks(ranks: int, opt: Options, folder: Path) -> list[Outcome]:
    """Validate on several processes; returns what each of them found."""
    folder.mkdir()
    start_processes(_run_rank, (ranks, copy.deepcopy(opt), str(folder)), nprocs=ranks, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(ranks)]


class Doubling(nn.Module):
    """Repeats every pixel, works in windows of 8 pixels, and insists on it."""

    window_size = 8

    def forward(self, lq: Tensor) -> Tensor:
        assert lq.shape[-1] % self.window_size == lq.shape[-2] % self.window_size == 0
        return doubled(lq)


def doubled(image: Tensor) -> Tensor:
    return image.repeat_interleave(2, -1).repeat_interleave(2, -2)
