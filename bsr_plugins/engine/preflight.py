"""What can be known about a run before anything is made: folders, files, networks, how all fits, the machine."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import LOSS_REGISTRY

from bsr_plugins.blocks import integer
from bsr_plugins.degradations import build_degradation
from bsr_plugins.engine.dataset_checks import check_datasets
from bsr_plugins.engine.faults import Faults
from bsr_plugins.engine.named_blocks import is_loss, is_own, model_class, registered, stock_optimisers
from bsr_plugins.engine.network_checks import check_images, check_networks
from bsr_plugins.engine.option_reads import reads_of
from bsr_plugins.engine.perceptual import fetch_vgg
from bsr_plugins.engine.schema import MAX_SEED
from bsr_plugins.engine.train_options import check_train_options
from bsr_plugins.engine.validation_options import check_validation
from bsr_plugins.errors import OptionError
from bsr_plugins.models.assembled_model import check_device
from bsr_plugins.random_states import random_states_kept

_BASICSR = "basicsr"
_REAL_ESRGAN_STAGE = (
    *("resize_prob", "resize_range", "gaussian_noise_prob", "noise_range", "poisson_scale_range", "gray_noise_prob"),
    "jpeg_range",
)


def check_run(opt: Mapping[str, Any], faults: Faults, fetch: bool) -> None:
    """Check a run's options, as BasicSR's `parse_options` returns them, where nothing has been found wrong yet.

    Networks, losses, optimisers and metrics are built and run for trial, and images found and their headers read, as
    these are what most often fails later. The global random states are left as they were.

    Args:
        opt: The options; keys, types and ranges are checked.
        faults: What has been found wrong; takes what is wrong besides.
        fetch: Whether to fetch weights that a loss needs, if nothing is wrong.
    """
    model = model_class(opt)
    if faults.free(("num_gpu",)):
        with faults.noted("num_gpu"):
            check_device(opt)
            _check_cuda_model(opt, model)
    for key in _taken_unasked(opt, model):
        if opt.get(key) is None:
            faults.at((key,), f"the key is missing, {model.__name__} needs it")
    seed, processes = opt["manual_seed"], opt["world_size"]
    if faults.free(("manual_seed",)) and seed is not None and seed + processes - 1 > MAX_SEED:
        faults.at(("manual_seed",), f"{seed}, expected room for {processes} processes up to {MAX_SEED}")
    _check_scale(opt, model, faults)
    _check_files(opt, faults)
    if opt["is_train"]:
        _check_loggers(opt, faults)
    if opt.get("degradation") is not None and faults.free(("degradation",), ("scale",)):
        with faults.noted("degradation"):
            build_degradation(opt["degradation"], opt.get("scale"))
    with random_states_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will give them
        found = check_datasets(opt, model, faults)
        if model is not None:
            if opt["is_train"] and isinstance(opt.get("train"), Mapping):
                check_train_options(opt["train"], model, _needed_optimisers(model), faults)
            networks = check_networks(opt, _needed_networks(opt, model), faults)
            if "network_g" in networks:
                check_images(opt, model, networks["network_g"], found, faults)
        check_validation(opt, model, found, faults)
    if fetch and not faults.lines and opt["is_train"]:
        _fetch_weights(opt, model, faults)


def _check_cuda_model(opt: Mapping[str, Any], model: Any) -> None:
    """Check that a model of BasicSR into which CUDA is written gets a CUDA device, and batches that fill its queue."""
    stock = _stock_of(model, "__init__") or _stock_of(model, "feed_data")
    if stock is None or not opt["is_train"]:
        return
    if opt["num_gpu"] == 0:
        raise OptionError(f"num_gpu: 0, expected a CUDA device, without which BasicSR's {stock.__name__} does not run")
    queue, batch = opt.get("queue_size"), (opt["datasets"].get("train") or {}).get("batch_size_per_gpu")
    if isinstance(queue, int) and isinstance(batch, int) and batch > 0 and queue % batch:
        raise OptionError(f"queue_size: {queue}, expected a multiple of batch_size_per_gpu, which is {batch}")


def _taken_unasked(opt: Mapping[str, Any], model: Any) -> Iterator[str]:
    """Yield the keys at the top without which the code of BasicSR's Real-ESRGAN models fails at the first batch."""
    if not opt["is_train"]:
        return
    if _stock_of(model, "optimize_parameters") is RealESRGANModel:
        yield from ("l1_gt_usm", "percep_gt_usm", "gan_gt_usm")
    stock = _stock_of(model, "feed_data")
    if stock is None or not opt.get("high_order_degradation", True):
        return
    yield from ("gt_size", "second_blur_prob", *(("gt_usm",) if stock is RealESRNetModel else ()))
    yield from (f"{key}{stage}" for stage in ("", "2") for key in _REAL_ESRGAN_STAGE)


def _stock_of(model: Any, method: str) -> Any:
    """Return which of BasicSR's Real-ESRGAN models a model has its own method from, or None."""
    own = (stock for stock in (RealESRNetModel, RealESRGANModel) if method in vars(stock))
    return next((stock for stock in own if getattr(model, method, None) is getattr(stock, method)), None)


def _check_scale(opt: Mapping[str, Any], model: Any, faults: Faults) -> None:
    if "scale" in opt and faults.free(("scale",)) and is_own(model) and issubclass(model, SRModel):
        with faults.noted("scale"):
            integer(opt["scale"], "scale", 1)


def _check_files(opt: Mapping[str, Any], faults: Faults) -> None:
    for key, value in opt["path"].items():
        names_file = key.startswith("pretrain_network") or key == "resume_state"
        if key == "resume_state" and opt["auto_resume"]:
            continue  # it is looked for if the run has no checkpoint of its own
        if names_file and isinstance(value, str) and not Path(value).is_file():
            faults.at(("path", key), f"{value}: there is no such file")


def _check_loggers(opt: Mapping[str, Any], faults: Faults) -> None:
    logger_opt = opt.get("logger") or {}
    if logger_opt.get("use_tb_logger") is True and find_spec("tensorboard") is None:
        faults.at(("logger", "use_tb_logger"), "true, but the package tensorboard is not installed, expected false")
    if (logger_opt.get("wandb") or {}).get("project") is None:
        return
    if logger_opt.get("use_tb_logger") is not True:
        faults.at(("logger", "use_tb_logger"), "false, expected true with logger.wandb.project")
    if find_spec("wandb") is None:
        faults.at(("logger", "wandb", "project"), "given, but the package wandb is not installed, expected null")


def _needed_optimisers(model: type) -> set[str]:
    """Return the keys of the optimisers that a model cannot do without, as far as that is known."""
    if not (issubclass(model, SRModel) and is_own(model)):
        return {"optim_g"} if issubclass(model, SRModel) and stock_optimisers(model) else set()
    return {key for key in reads_of(model).keys_of(("train",)) if key.startswith("optim_")}


def _needed_networks(opt: Mapping[str, Any], model: type) -> set[str]:
    """Return the keys of the networks that a model cannot do without, as far as that is known."""
    needed = {"network_g"} if issubclass(model, SRModel) else set()
    if opt["is_train"] and model.__module__.partition(".")[0] == _BASICSR:
        needed |= {key for key in reads_of(model).keys_of(()) if key.startswith("network_")}
    return needed


def _fetch_weights(opt: Mapping[str, Any], model: Any, faults: Faults) -> None:
    for key, block in opt["train"].items():
        if is_loss(key, block, model):
            loss = registered(LOSS_REGISTRY, block["type"])
            if isinstance(loss, type) and issubclass(loss, PerceptualLoss):
                with faults.noted("train", key):
                    fetch_vgg(block, f"train.{key}")
