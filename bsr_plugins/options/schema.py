"""What BasicSR's trainer, its stock models and datasets, and our engine read: keys, types, ranges, defaults, meanings.

What classes of this package read is declared beside them: `Options` (keys at the top) and `TrainOptions` (keys under
`train`) of the models, `data.dataset_options` of the dataset, and the signatures of archs, losses and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from pydantic import BeforeValidator, Field, create_model

from bsr_plugins.blocks import is_own, named_in
from bsr_plugins.data.dataset_options import LoaderOptions
from bsr_plugins.options.declared import OptionBlock, Whole

MAX_SEED = (1 << 32) - 1
"""NumPy's greatest seed; every process adds its rank to `manual_seed`."""

MAX_ITERATIONS = 10**12  # of which BasicSR can still say how long they will take
SET_BY_TRAINER = ("auto_resume", "dist", "is_train", "rank", "root_path", "world_size")
NETWORK = "network_"
_MAX_PORT = (1 << 16) - 1

Block = dict[Any, Any]


def _such(expected: str, fits: Callable[[Any], bool]) -> BeforeValidator:
    """Make the check that a value is what a message expects."""

    def check(value: object) -> object:
        if not fits(value):
            raise ValueError(f"expected {expected}")
        return value

    return BeforeValidator(check)


def _is_folder_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() not in ("", ".", "..") and not set("/\\\0\n") & set(value)


def _is_text_or_null(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value != "")


def _is_gpus(value: Any) -> bool:
    return value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _are_names(value: Any) -> bool:
    return value is None or all(isinstance(one, str) for one in (value if isinstance(value, list) else [value]))


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and "{}" in value and not set("{}") & set(value.replace("{}", "", 1))


FolderName = Annotated[str, _such("the name of a folder", _is_folder_name)]
PathOrNull = Annotated[str | None, _such("a path or null", _is_text_or_null)]
OneFolder = Annotated[str | None, _such("one folder", _is_text_or_null)]


class RunOptions(OptionBlock):
    """Keys at the top of an option file; `x-…` may hold anchors, and `network_…` are the blocks of networks."""

    name: FolderName = Field(description="The run's name, which its folders have.")
    model_type: str = Field(description="The model's class.")
    scale: float = Field(1, gt=0, description="How many HR pixels a side there are to an LR pixel.")
    num_gpu: Annotated[int | str, _such("a whole number at least 0, or auto", _is_gpus)] = Field(
        description="GPUs of this process: 0 for the CPU, `auto` for one where there is one."
    )
    manual_seed: Whole | None = Field(
        None, ge=0, le=MAX_SEED, description="Seed of every draw; drawn itself where it is not given."
    )
    datasets: Block = Field(description="The datasets, by phase: `train`, `val…`, `test…`.")
    path: Block = Field(description="Checkpoints to begin with.")
    train: Block | None = Field(None, description="Training: needed in a training run.")
    val: Block | None = Field(None, description="Validation, or testing; needed in a test run.")
    logger: Block | None = Field(None, description="Logs and checkpoints; needed in a training run.")
    dist_params: Block | None = Field(None, description="How the processes of slurm find each other.")
    find_unused_parameters: bool = Field(False, description="Handed to DistributedDataParallel.")


class PathOptions(OptionBlock):
    """Keys under `path`; every `network_X` has `pretrain_network_X`, `strict_load_X` and `param_key_X` too."""

    resume_state: PathOrNull = Field(None, description="Training state to go on from.")
    ignore_resume_networks: Annotated[Any, _such("a list of networks, as [network_g]", _are_names)] = Field(
        None, description="Networks that a resumed run does not take from its checkpoint, as `[network_g]`."
    )
    experiments_root: PathOrNull = Field(None, description="Set by the trainer.")
    results_root: PathOrNull = Field(None, description="Set by the trainer.")
    models: PathOrNull = Field(None, description="Set by the trainer.")
    training_states: PathOrNull = Field(None, description="Set by the trainer.")
    log: PathOrNull = Field(None, description="Set by the trainer.")
    visualization: PathOrNull = Field(None, description="Set by the trainer.")


class TrainOptions(OptionBlock):
    """Keys under `train` that the trainer reads, whatever model is trained."""

    total_iter: Whole = Field(ge=1, le=MAX_ITERATIONS, description="Iterations.")
    warmup_iter: Whole = Field(-1, ge=-1, description="Iterations in which the learning rate rises; -1 for none.")
    clip_grad_norm: float | None = Field(None, gt=0, description="Largest norm of a step's gradient.")
    log_grad_norm: bool = Field(False, description="Whether that norm, before clipping, is logged.")
    max_nonfinite_steps: Whole = Field(10, ge=1, description="Steps in a row without finite numbers that end the run.")


class ValOptions(OptionBlock):
    """Keys under `val`."""

    save_img: bool = Field(description="Whether images are saved.")
    val_freq: Whole = Field(5000, ge=1, description="Iterations between validations; needed in a training run.")
    suffix: str | int | float | None = Field(None, description="Ending of the names of saved images in a test run.")
    metrics: Block | None = Field(None, description="Metrics by name: `{type: calculate_psnr, crop_border: 4}`.")
    pbar: bool = Field(False, description="Whether a bar shows the progress.")


class MetricOptions(OptionBlock):
    """Keys of a metric's block that mean the same for all metrics of BasicSR's."""

    better: Literal["higher", "lower"] = Field("higher", description="Which values are better.")
    crop_border: Whole = Field(0, ge=0, description="Pixels left out on every side.")
    test_y_channel: bool = Field(False, description="Whether luma alone is compared.")
    input_order: Literal["HWC", "CHW"] = Field("HWC", description="Order of dimensions; the trainer hands over HWC.")


class LoggerOptions(OptionBlock):
    """Keys under `logger`."""

    print_freq: Whole = Field(ge=1, description="Iterations between lines of the log.")
    save_checkpoint_freq: Whole = Field(ge=1, description="Iterations between checkpoints.")
    save_last_n: Whole | None = Field(None, ge=1, description="How many checkpoint sets are kept; all without it.")
    use_tb_logger: bool = Field(description="Whether TensorBoard is written.")
    wandb: Block | None = Field(None, description="Weights & Biases, to which TensorBoard is handed on.")


class WandbOptions(OptionBlock):
    """Keys under `logger.wandb`."""

    project: str | None = Field(None, description="The project; null for no use of it.")
    resume_id: str | None = Field(None, description="The id of a run to go on with.")


class DistOptions(OptionBlock):
    """Keys under `dist_params`."""

    backend: Literal["nccl", "gloo", "mpi"] = Field("nccl", description="How processes talk to each other.")
    port: Whole | None = Field(None, ge=1, le=_MAX_PORT, description="The port of the first process.")


class OptimiserOptions(OptionBlock):
    """Keys of an optimiser's block under `train`; the others are the class's arguments."""

    type: str = Field(description="The class: `Adam`.")
    lr: float = Field(ge=0, description="Learning rate.")
    betas: list[Annotated[float, Field(ge=0, le=1)]] = Field([0.9, 0.999], description="Decay of the two moments.")
    eps: float = Field(1e-8, ge=0, description="Added to the denominator.")
    weight_decay: float = Field(0, ge=0, description="Weight of the parameters' squared norm.")


class SchedulerOptions(OptionBlock):
    """Keys of the block `train.scheduler`; which of them are needed depends on its type."""

    type: str = Field(description="`MultiStepLR`, `MultiStepRestartLR` or `CosineAnnealingRestartLR`.")
    milestones: list[Annotated[Whole, Field(ge=0)]] = Field([], description="Iterations after which it falls.")
    gamma: float = Field(0.1, ge=0, description="By what factor it falls there.")
    periods: list[Annotated[Whole, Field(ge=1)]] = Field([], description="Iterations of every period of a cosine.")
    restarts: list[Annotated[Whole, Field(ge=0)]] = Field([0], description="Iterations at which it begins again.")
    restart_weights: list[Annotated[float, Field(ge=0)]] = Field([1], description="Its factor from there on.")
    eta_min: float = Field(0, ge=0, description="The least learning rate of a cosine.")


class LossOptions(OptionBlock):
    """Keys of a loss's block that mean the same for all losses of BasicSR's and ours."""

    loss_weight: float = Field(1, description="Factor on the loss.")


class SRTrainOptions(OptionBlock):
    """Keys under `train` that BasicSR's `SRModel` reads."""

    ema_decay: float = Field(0, ge=0, le=1, description="Decay of the average of `network_g`; 0 for none.")
    optim_g: Block | None = Field(None, description="Optimiser of `network_g`.")
    scheduler: Block | None = Field(None, description="Schedule of the learning rate.")
    pixel_opt: Block | None = Field(None, description="Loss between SR and HR images.")
    perceptual_opt: Block | None = Field(None, description="Perceptual loss between SR and HR images.")


class GANTrainOptions(SRTrainOptions):
    """Keys under `train` that BasicSR's `SRGANModel` reads."""

    optim_d: Block | None = Field(None, description="Optimiser of `network_d`.")
    gan_opt: Block | None = Field(None, description="Adversarial loss.")
    ldl_opt: Block | None = Field(None, description="Loss of locally discriminative learning.")
    net_d_iters: Whole = Field(1, ge=1, description="Steps of `network_d` to one of `network_g`.")
    net_d_init_iters: Whole = Field(0, ge=0, description="Steps of `network_d` before the first of `network_g`.")


class DatasetOptions(LoaderOptions):
    """Keys of the block of any dataset."""

    name: str | int = Field(description="What the dataset is called.")
    phase: str = Field("", description="Set by the trainer, from the block's key.")
    scale: float = Field(1, description="Set by the trainer, from `scale`.")


class TrainDatasetOptions(DatasetOptions):
    """The same of the training dataset."""

    batch_size_per_gpu: Whole = Field(ge=1, description="Items of a batch, of every process.")
    num_worker_per_gpu: Whole = Field(ge=0, le=1024, description="Worker processes that load, of every process.")
    on_bad_image: Literal["error", "skip"] = Field(
        "error", description="Whether a bad image ends the run, or another image takes its place."
    )


class WholeDatasetOptions(DatasetOptions):
    """The same of a dataset to validate or test on."""

    name: FolderName = Field(description="What the dataset, and the folder of its results, are called.")


class StockDatasetOptions(OptionBlock):
    """What the option files of BasicSR's datasets have; not all of these read all of it."""

    dataroot_gt: OneFolder = Field(None, description="Folder or LMDB of HR images.")
    dataroot_lq: OneFolder = Field(None, description="Folder or LMDB of LR images.")
    dataroot_flow: OneFolder = Field(None, description="Folder of optical flow.")
    meta_info_file: PathOrNull = Field(None, description="File that lists the images.")
    filename_tmpl: Annotated[str, _such("text that holds '{}' once, as '{}x4'", _is_template)] = Field(
        "{}", description="Names of LR images."
    )
    io_backend: Any = Field({"type": "disk"}, description="Where images are stored.")
    gt_size: Whole | None = Field(None, ge=1, description="Side of HR patches in pixels.")
    use_hflip: bool = Field(False, description="Whether images are mirrored.")
    use_rot: bool = Field(False, description="Whether images are turned.")
    color: str | None = Field(None, description="`y` for luma alone.")
    interval_list: list[int] = Field([1], description="Steps between the frames of a clip.")


OPTIMISERS: dict[str, Callable[..., Any]] = {"Adam": torch.optim.Adam}
SCHEDULERS: dict[str, Callable[..., Any]] = {
    "MultiStepLR": MultiStepRestartLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingRestartLR": CosineAnnealingRestartLR,
}

STOCK_MODELS: dict[Any, type[OptionBlock]] = {
    SRModel: SRTrainOptions,
    SRGANModel: GANTrainOptions,
    ESRGANModel: GANTrainOptions,
}
"""Models of BasicSR, and what declares their keys under `train`."""


def stock_optimisers(model: Any) -> bool:
    """Whether a model makes its optimisers and schedules as BasicSR does."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return False
    return all(getattr(model, name) is getattr(BaseModel, name) for name in ("get_optimizer", "setup_schedulers"))


def declared_by(model: Any) -> tuple[list[type[OptionBlock]], list[type[OptionBlock]]]:
    """Return what declares a model's keys at the top of the file, and those under `train`."""
    stock = next((STOCK_MODELS[kind] for kind in getattr(model, "__mro__", ()) if kind in STOCK_MODELS), None)
    top, train = getattr(model, "Options", None), getattr(model, "TrainOptions", None)
    return [top] if top else [], [kind for kind in (train, stock) if kind]


def is_closed(model: Any) -> bool:
    """Whether all keys that a model reads are declared, so that any other one is a fault."""
    return model in STOCK_MODELS or (is_own(model) and hasattr(model, "TrainOptions"))


def path_options(options: Mapping[str, Any]) -> type[OptionBlock]:
    """Return what declares the block `path` for the networks that there are."""
    fields: dict[str, Any] = {}
    for key in {f"{NETWORK}g", *options}:
        if isinstance(key, str) and key.startswith(NETWORK):
            letter = key.removeprefix(NETWORK)
            fields[f"pretrain_{key}"] = (PathOrNull, Field(None, description="Weights that the network begins with."))
            fields[f"strict_load_{letter}"] = (bool, Field(True, description="Whether they have to fit it wholly."))
            fields[f"param_key_{letter}"] = (str | None, Field("params", description="Where they are in the file."))
    made: type[OptionBlock] = create_model("PathOptions", __base__=PathOptions, **fields)
    return made


def registered(registry: Any, block: object) -> Any:
    """Return what a block's `type` names in one of BasicSR's registries, or None."""
    return named_in(dict(iter(registry)), block.get("type") if isinstance(block, Mapping) else None)


def model_class(options: Mapping[str, Any]) -> Any:
    """Return the class that `model_type` names, or None."""
    return named_in(dict(iter(MODEL_REGISTRY)), options.get("model_type"))


def dataset_class(block: object) -> Any:
    """Return the dataset that a block names, or None."""
    return registered(DATASET_REGISTRY, block)


def losses_of(options: Mapping[str, Any], model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the blocks under `train` that are losses, with their keys.

    Of a model of BasicSR's or ours these are all that are called so, of another's those that name a registered loss.
    """
    for key, block in (options.get("train") or {}).items():
        known = key.endswith("_opt") and (model not in STOCK_MODELS or key in STOCK_MODELS[model].model_fields)
        if known and block is not None and (is_own(model) or registered(LOSS_REGISTRY, block) is not None):
            yield key, block


def metrics_of(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the blocks of the metrics."""
    metrics = (options.get("val") or {}).get("metrics")
    return metrics if isinstance(metrics, Mapping) else {}
