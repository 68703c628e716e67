"""Validation with the images shared out among the processes, and the results of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, takewhile
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from basicsr.metrics import calculate_metric
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, imwrite, tensor2img
from mmengine.dist import all_gather_object, get_dist_info
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from bsr_plugins.errors import BSRError
from bsr_plugins.models.window_padding import super_resolve
from bsr_plugins.random_states import random_states_kept

_NAMED = 5  # images in the warning about a metric's values
_METHODS = ("validation", "dist_validation", "nondist_validation")


class Writer(Protocol):
    """What TensorBoard's writer does."""

    def add_scalar(self, name: str, value: float, step: object) -> None:
        """Write a number."""


class _Measured(NamedTuple):
    """The values of an image's metrics, in the order of `val.metrics`; `place` is the image's in the dataset."""

    place: int
    image: str
    values: list[float]


class _Failure(NamedTuple):
    """Why a rank could not validate; `expected` if it is the input's fault."""

    rank: int
    reason: str
    expected: bool


def _never() -> bool:
    return False


def validate(
    model: Any,
    loader: DataLoader[Any],
    current_iter: int | str,
    tb_logger: Writer | None,
    save_img: bool,
    stopping: Callable[[], bool] = _never,
) -> bool:
    """Validate or test a model on a dataset, as `model.validation` does, under one process or several.

    Rank r of W takes images r, r + W, … of the dataset. Results are added up in the order of the images, so that
    `metric_results` and `best_metric_results` are the same for any W, on every rank, and those of BasicSR's
    `SRModel.nondist_validation`. Images are saved where that saves them. Images of any size go through networks that
    work in windows, unless the model has a `test` of its own. Training mode and random states stay as they were.

    A model that is no `SRModel`, or has a validation of its own, uses that.

    Under several processes it is collective: every rank calls it.

    Args:
        model: The model.
        loader: Gives one image a batch; the dataset's `opt["name"]` names it.
        current_iter: The iteration, or what stands for it.
        tb_logger: Where metrics are logged besides, on rank 0.
        save_img: Whether to save the images.
        stopping: Asked between images on every rank: one on which it says so breaks off, the others finish their share
            unless it does there too, and nothing is concluded. A validation of the model's own is not broken off.

    Returns:
        Whether it came to its end.

    Raises:
        BSRError: An image cannot be used, an output has another size than its ground truth, a metric fails, or an image
            cannot be saved: on every rank, whichever of them met it.
    """
    with _undisturbed(model):
        if not _validates_like_srmodel(model):
            _validate_its_own_way(model, loader, current_iter, tb_logger, save_img)
            return True
        share = _Share(model, loader, current_iter, save_img)
        measured: list[_Measured] = []
        error: Exception | None = None
        try:
            measured = list(takewhile(lambda _: not stopping(), share.measure()))
        except Exception as caught:  # it is raised once the other ranks know
            error = caught
    told = _agree(measured, error)
    everything = sorted(chain.from_iterable(told), key=attrgetter("place"))
    if len(everything) < len(loader.dataset):  # type: ignore[arg-type]  # a Dataset's length is optional
        return False
    if model.opt["val"].get("metrics") is not None:
        _conclude(model, share.name, everything, current_iter, tb_logger)
    return True


class _Share:
    """This rank's images of a dataset."""

    def __init__(self, model: Any, loader: DataLoader[Any], current_iter: int | str, save_img: bool) -> None:
        dataset: Any = loader.dataset
        self.model, self.current_iter, self.save_img = model, current_iter, save_img
        self.name: str = dataset.opt["name"]
        self.rank, world_size = get_dist_info()
        self.places = range(self.rank, len(dataset), world_size)
        self.metrics: Mapping[str, Any] = model.opt["val"].get("metrics") or {}
        self.loader: DataLoader[Any] = DataLoader(
            Subset(dataset, self.places),
            batch_size=1,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            generator=torch.Generator(),
        )

    def measure(self) -> Iterator[_Measured]:
        """Super-resolve the images and measure them; one value per metric."""
        if len(self.loader.dataset.dataset) == 0:  # type: ignore[attr-defined]
            raise BSRError(f"dataset '{self.name}': holds no images, expected at least one")
        wanted = self.rank == 0 and self.model.opt["val"].get("pbar", False)
        with tqdm(total=len(self.places), unit="image", disable=not wanted) as bar:
            for place, data in zip(self.places, self.loader, strict=True):
                image = Path(data["lq_path"][0]).stem
                yield _Measured(place, image, self._measure_image(image, data))
                bar.update(1)
                bar.set_description(f"Test {image}")

    def _measure_image(self, image: str, data: Mapping[str, Any]) -> list[float]:
        _forget_images(self.model)  # a ground truth of another image, where this one has none
        self.model.feed_data(data)
        _super_resolve(self.model)
        visuals = self.model.get_current_visuals()
        images = {"img": tensor2img([visuals["result"]])}
        if "gt" in visuals:
            images["img2"] = tensor2img([visuals["gt"]])
        _forget_images(self.model)
        self._check_size(image, images)
        if self.save_img:
            self._save(image, images["img"])
        return [self._value(name, image, images) for name in self.metrics]

    def _check_size(self, image: str, images: Mapping[str, Any]) -> None:
        if "img2" not in images:
            return
        (height, width), (gt_height, gt_width) = (images[key].shape[:2] for key in ("img", "img2"))
        if (height, width) != (gt_height, gt_width):
            raise BSRError(
                f"dataset '{self.name}': {image} is super-resolved to {width}x{height}, expected "
                f"{gt_width}x{gt_height}, the size of its ground truth"
            )

    def _value(self, name: str, image: str, images: Mapping[str, Any]) -> float:
        block = self.metrics[name]
        try:
            return float(calculate_metric(dict(images), block))
        except Exception as error:
            if isinstance(error, BSRError):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise BSRError(
                f"val.metrics.{name}: {block['type']} fails on {image} of dataset '{self.name}', expected a number "
                f"({reason})"
            ) from error

    def _save(self, image: str, pixels: Any) -> None:
        opt = self.model.opt
        folder = Path(opt["path"]["visualization"])
        if opt["is_train"]:
            file = folder / image / f"{image}_{self.current_iter}.png"
        else:
            file = folder / self.name / f"{image}_{opt['val'].get('suffix') or opt['name']}.png"
        try:
            imwrite(pixels, str(file))
        except OSError as error:
            raise BSRError(f"{file}: cannot be written, expected a folder with room for an image ({error})") from error


def _validates_like_srmodel(model: Any) -> bool:
    own = (getattr(type(model), name, None) is not getattr(SRModel, name) for name in _METHODS)
    return isinstance(model, SRModel) and not any(own)


def _super_resolve(model: Any) -> None:
    """Do what the model's `test` does, on images of any size where that is `SRModel`'s."""
    if type(model).test is not SRModel.test:
        model.test()
        return
    network: nn.Module = model.net_g_ema if hasattr(model, "net_g_ema") else model.net_g
    network.eval()
    with torch.no_grad():
        model.output = super_resolve(network, model.lq)


def _forget_images(model: Any) -> None:
    for name in ("lq", "gt", "output"):
        vars(model).pop(name, None)


def _validate_its_own_way(
    model: Any, loader: DataLoader[Any], current_iter: int | str, tb_logger: Writer | None, save_img: bool
) -> None:
    """Let the model validate: on rank 0 alone, unless it has a distributed validation of its own."""
    if getattr(type(model), "dist_validation", None) is not SRModel.dist_validation:
        # Ranks may wait for each other in there, so that nothing can be agreed on where one of them fails.
        model.validation(loader, current_iter, tb_logger, save_img)
        _agree(None, None)
        return
    error: Exception | None = None
    try:
        model.validation(loader, current_iter, tb_logger, save_img)
    except Exception as caught:  # it is raised once the other ranks know
        error = caught
    _agree(None, error)


def _agree(result: Any, error: Exception | None) -> list[Any]:
    """Return the results of all ranks, in their order.

    Raises:
        BSRError: A rank failed through the input's fault; the same on every rank.
        RuntimeError: Another one failed otherwise.
        Exception: This one did; it is the error itself.
    """
    rank, _ = get_dist_info()
    failure = None
    if error is not None:
        reason = str(error) if isinstance(error, BSRError) else f"{type(error).__name__}: {error}"
        failure = _Failure(rank, reason, isinstance(error, BSRError))
    told = all_gather_object((result, failure))
    failures = [failure for _, failure in told if failure is not None]
    if not failures:
        return [result for result, _ in told]
    first = min(failures, key=lambda one: not one.expected)
    if error is not None and (first.rank == rank or not isinstance(error, BSRError)):
        raise error
    if first.expected:
        raise BSRError(first.reason)
    raise RuntimeError(f"rank {first.rank} failed in validation ({first.reason})")


def _conclude(
    model: Any, dataset: str, measured: list[_Measured], current_iter: int | str, tb_logger: Writer | None
) -> None:
    """Average the metrics over the images, in their order, and log them as the model does."""
    rank, _ = get_dist_info()
    names = list(model.opt["val"]["metrics"])
    totals = dict.fromkeys(names, 0.0)
    for one in measured:
        for name, value in zip(names, one.values, strict=True):
            totals[name] += value
    model.metric_results = {name: total / len(measured) for name, total in totals.items()}
    model._initialize_best_metric_results(dataset)
    for name, value in model.metric_results.items():
        model._update_best_metric_result(dataset, name, value, current_iter)
    if rank == 0:
        for place, name in enumerate(names):
            _warn_of_no_numbers(dataset, name, [(one.image, one.values[place]) for one in measured])
        model._log_validation_metric_values(current_iter, dataset, tb_logger)


def _warn_of_no_numbers(dataset: str, metric: str, values: Sequence[tuple[str, float]]) -> None:
    """Warn of values, each with its image, that make the mean infinite or no number."""
    found = [f"{image} ({value})" for image, value in values if not math.isfinite(value)]
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        get_root_logger().warning(
            f"Validation {dataset}: {metric} is not finite on {', '.join(found[:_NAMED])}{more}, and so is its mean"
        )


@contextmanager
def _undisturbed(model: BaseModel) -> Iterator[None]:
    """Take networks out of their wrappers, and leave modes and random states as they were.

    Ranks run different images, and DDP's forward pass would wait for the others wherever there are buffers.
    """
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
