"""Validation with the images shared out among the processes, and the results of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, takewhile
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from basicsr.metrics import calculate_metric
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, imwrite, tensor2img
from basicsr.utils.dist_util import get_dist_info
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from bsr_plugins.atomic_file import reported
from bsr_plugins.engine.ranks import gather
from bsr_plugins.errors import BSRError, described
from bsr_plugins.models.window_padding import super_resolve
from bsr_plugins.random_states import random_states_kept

_NAMED = 5  # images in the warning about a metric's values
_METHODS = ("validation", "dist_validation", "nondist_validation")


class _Measured(NamedTuple):
    """The values of an image's metrics, in the order of `val.metrics`; `place` is the image's in the dataset."""

    place: int
    image: str
    values: list[float]


def validate(
    model: Any,
    loader: DataLoader[Any],
    current_iter: int | str,
    tb_logger: Any,
    save_img: bool,
    after_image: Callable[[], bool] = lambda: False,
) -> bool:
    """Validate or test a model on a dataset, as `model.validation` does, under one process or several.

    Every rank calls it; rank r of W takes images r, r + W, … of the dataset. Results are added up in the order of the
    images, so that `metric_results` and `best_metric_results` are the same for any W, on every rank, and those of
    BasicSR's `SRModel.nondist_validation`. Images are saved where that saves them. Images of any size go through
    networks that work in windows, unless the model defines `test`. Training mode and random states stay as they were. A
    model that is no `SRModel`, or defines its validation, uses that.

    `loader` gives one image a batch, in this process; the dataset's `opt["name"]` names it. `current_iter` is the run's
    name in a test. `after_image` is called after each image, unless the model defines its validation. A rank on which
    it says true breaks off, the others finish their share, nothing is concluded, and false is returned.

    Raises:
        BSRError: An image cannot be used, an output has another size than its ground truth, a metric fails, or an image
            cannot be saved: on every rank, whichever of them met it.
    """
    dataset: Any = loader.dataset
    is_stock = isinstance(model, SRModel) and all(_is_stock(model, name) for name in _METHODS)
    measured: list[_Measured] = []
    error: Exception | None = None
    with _undisturbed(model):
        try:
            if is_stock:
                share = _measure(model, loader, current_iter, save_img)
                measured = list(takewhile(lambda _: not after_image(), share))
            else:
                model.validation(loader, current_iter, tb_logger, save_img)
        except Exception as caught:
            if not _is_stock(model, "dist_validation"):  # ranks may wait for each other in there, and cannot agree
                raise
            error = caught
    everything = sorted(chain.from_iterable(_agree(measured, error)), key=attrgetter("place"))
    if not is_stock:
        return True
    if len(everything) < len(dataset):
        return False
    if model.opt["val"].get("metrics") is not None:
        _conclude(model, str(dataset.opt["name"]), everything, current_iter, tb_logger)
    return True


def _measure(model: Any, loader: DataLoader[Any], current_iter: int | str, save_img: bool) -> Iterator[_Measured]:
    """Super-resolve this rank's images of a dataset and measure them; one value per metric."""
    dataset: Any = loader.dataset
    name = str(dataset.opt["name"])
    if len(dataset) == 0:
        raise BSRError(f"dataset '{name}': holds no images, expected at least one")
    rank, world_size = get_dist_info()
    places = range(rank, len(dataset), world_size)
    share: DataLoader[Any] = DataLoader(
        Subset(dataset, places), pin_memory=loader.pin_memory, generator=torch.Generator()
    )
    metrics = model.opt["val"].get("metrics") or {}
    has_bar = rank == 0 and model.opt["val"].get("pbar", False)
    with tqdm(total=len(places), unit="image", disable=not has_bar) as bar:
        for place, data in zip(places, share, strict=True):
            image = Path(data["lq_path"][0]).stem
            images = _super_resolve(model, data)
            (height, width), expected = (images.get(key, images["img"]).shape[:2] for key in ("img", "img2"))
            if (height, width) != expected:
                raise BSRError(
                    f"dataset '{name}': {image} is super-resolved to {width}x{height}, expected "
                    f"{expected[1]}x{expected[0]}, the size of its ground truth"
                )
            if save_img:
                file = _file_of(model.opt, name, image, current_iter)
                with reported(file, "written"):
                    imwrite(images["img"], str(file))
            values = [_value(images, block, key, f"{image} of dataset '{name}'") for key, block in metrics.items()]
            yield _Measured(place, image, values)
            bar.update(1)
            bar.set_description(f"Test {image}")


def _super_resolve(model: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Do what the model's `test` does, on images of any size where that is `SRModel`'s.

    Returns `img`, and `img2`, the ground truth, if there is one: uint8, BGR HWC.
    """
    _forget_images(model)  # a ground truth of another image, where this one has none
    model.feed_data(data)
    if _is_stock(model, "test"):
        network: nn.Module = model.net_g_ema if hasattr(model, "net_g_ema") else model.net_g
        network.eval()
        with torch.no_grad():
            model.output = super_resolve(network, model.lq)
    else:
        model.test()
    visuals = model.get_current_visuals()
    _forget_images(model)
    names = {"img": "result", "img2": "gt"}
    return {key: tensor2img([visuals[name]]) for key, name in names.items() if name in visuals}


def _value(images: Mapping[str, Any], block: Mapping[str, Any], key: str, image: str) -> float:
    try:
        return float(calculate_metric(dict(images), block))
    except BSRError:
        raise
    except Exception as error:
        said = f"{block['type']} fails on {image}, expected a number ({described(error)})"
        raise BSRError(f"val.metrics.{key}: {said}") from error


def _file_of(opt: Mapping[str, Any], dataset: str, image: str, current_iter: int | str) -> Path:
    folder = Path(opt["path"]["visualization"])
    if opt["is_train"]:
        return folder / image / f"{image}_{current_iter}.png"
    return folder / dataset / f"{image}_{opt['val'].get('suffix') or opt['name']}.png"


def _is_stock(model: Any, method: str) -> bool:
    return getattr(type(model), method, None) is getattr(SRModel, method)


def _forget_images(model: Any) -> None:
    for name in ("lq", "gt", "output"):
        vars(model).pop(name, None)


def _agree(measured: list[_Measured], error: Exception | None) -> list[list[_Measured]]:
    """Return the results of all ranks, in their order, or raise what has failed on one; the input's faults go first."""
    is_expected = isinstance(error, BSRError)
    reason = None if error is None else str(error) if is_expected else described(error)
    outcomes = gather((measured, reason, is_expected))
    failures = [
        (not expected, rank, reason) for rank, (_, reason, expected) in enumerate(outcomes) if reason is not None
    ]
    if not failures:
        return [found for found, _, _ in outcomes]
    is_unexpected, rank, reason = min(failures)
    if error is not None and (rank == get_dist_info()[0] or not is_expected):
        raise error
    raise RuntimeError(f"rank {rank} failed in validation ({reason})") if is_unexpected else BSRError(reason)


def _conclude(model: Any, dataset: str, measured: list[_Measured], current_iter: int | str, tb_logger: Any) -> None:
    """Average the metrics over the images, in their order, and log them as the model does."""
    totals = dict.fromkeys(model.opt["val"]["metrics"], 0.0)
    for one in measured:
        for name, value in zip(totals, one.values, strict=True):
            totals[name] += value
    model.metric_results = {name: total / len(measured) for name, total in totals.items()}
    model._initialize_best_metric_results(dataset)
    for name, value in model.metric_results.items():
        model._update_best_metric_result(dataset, name, value, current_iter)
    if get_dist_info()[0] != 0:
        return
    for place, name in enumerate(totals):
        bad = [f"{one.image} ({one.values[place]})" for one in measured if not math.isfinite(one.values[place])]
        if bad:  # they make the mean infinite or no number
            more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            get_root_logger().warning(
                f"Validation {dataset}: {name} is not finite on {', '.join(bad[:_NAMED])}{more}, and so is its mean"
            )
    model._log_validation_metric_values(current_iter, dataset, tb_logger)


@contextmanager
def _undisturbed(model: BaseModel) -> Iterator[None]:
    """Leave modes and random states as they were, and take networks out of DDP, which would wait for other ranks."""
    wrapped = {
        name: value for name, value in vars(model).items() if isinstance(value, DataParallel | DistributedDataParallel)
    }
    vars(model).update({name: value.module for name, value in wrapped.items()})
    networks = [value for value in vars(model).values() if isinstance(value, nn.Module)]
    modes = [(module, module.training) for network in networks for module in network.modules()]
    devices = [torch.cuda.current_device()] if model.device.type == "cuda" else []
    try:
        with random_states_kept(devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        vars(model).update(wrapped)
