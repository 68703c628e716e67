"""What BasicSR's own keys may hold, and which of them a run needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY

from bsr_plugins.blocks import boolean, integer, number
from bsr_plugins.engine.faults import Faults, dotted
from bsr_plugins.engine.named_blocks import is_own, registered
from bsr_plugins.engine.option_yaml import Place
from bsr_plugins.errors import OptionError, did_you_mean

MAX_SEED = (1 << 32) - 1
"""NumPy's greatest seed; every process adds its rank to `manual_seed`."""

_MAX_WORKERS = 1024
_MAX_ITERATIONS = 10**12  # of which BasicSR can still say how long they will take
_MAX_PORT = (1 << 16) - 1
Check = Callable[[Any, str], Any]

_BLOCKS: tuple[Place, ...] = (
    ("path",),
    ("datasets",),
    ("train",),
    ("val",),
    ("val", "metrics"),
    ("logger",),
    ("logger", "wandb"),
    ("dist_params",),
)
_ALWAYS: tuple[Place, ...] = (("name",), ("model_type",), ("num_gpu",), ("path",), ("datasets",))
_IN_TRAINING: tuple[Place, ...] = (
    ("datasets", "train"),
    ("datasets", "train", "batch_size_per_gpu"),
    ("datasets", "train", "num_worker_per_gpu"),
    ("train",),
    ("train", "total_iter"),
    ("logger",),
    ("logger", "print_freq"),
    ("logger", "save_checkpoint_freq"),
    ("logger", "use_tb_logger"),
)
_IN_VALIDATION: tuple[Place, ...] = (("val", "val_freq"), ("val", "save_img"))
_IN_TEST: tuple[Place, ...] = (("val",), ("val", "save_img"))
_IN_DATASETS = ("name", "type")


def whole(low: int, high: int | None = None) -> Check:
    """Make the check of a whole number, which may be written as `5e3`."""

    def check(value: Any, where: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return integer(value, where, low, high)

    return check


def real(low: float = float("-inf"), high: float = float("inf"), above: float | None = None) -> Check:
    """Make the check of a number in [low, high], or of one above a limit."""

    def check(value: Any, where: str) -> Any:
        if above is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > above):
            raise OptionError(f"{where}: {value!r}, expected a number above {above:g}")
        number(value, where, low, high)
        return value

    return check


def one_of(*known: str) -> Check:
    """Make the check of a name among a few."""

    def check(value: Any, where: str) -> Any:
        if value not in known:
            raise OptionError(
                f"{where}: unknown name {value!r}, expected one of {', '.join(known)}{did_you_mean(value, known)}"
            )
        return value

    return check


def or_null(check: Check) -> Check:
    """Make a check that takes null too."""
    return lambda value, where: None if value is None else check(value, where)


def of_type(kind: type | tuple[type, ...], expected: str) -> Check:
    """Make the check of a value's type."""

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, kind) or value == "":
            raise OptionError(f"{where}: {value!r}, expected {expected}")
        return value

    return check


def _list_of(each: Check, expected: str) -> Check:
    def check(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise OptionError(f"{where}: {value!r}, expected {expected}")
        return [each(item, where) for item in value]

    return check


def _folder_name(value: Any, where: str) -> Any:
    if not isinstance(value, str) or value.strip() in ("", ".", "..") or any(sign in value for sign in "/\\\0\n"):
        raise OptionError(f"{where}: {value!r}, expected the name of a folder")
    return value


def _roots(value: Any, where: str) -> Any:
    roots = value if isinstance(value, list) else [value]
    if value is not None and not (roots and all(isinstance(root, str) and root for root in roots)):
        raise OptionError(f"{where}: {value!r}, expected a folder or a list of folders")
    return value


def _gpus(value: Any, where: str) -> Any:
    return value if value == "auto" else integer(value, where, 0)


_text = of_type(str, "text")
_path = or_null(of_type(str, "a path or null"))
_numbers = _list_of(real(0), "a list of numbers")
_iterations = _list_of(whole(0), "a list of whole numbers")

_VALUES: dict[Place, Check] = {
    ("name",): _folder_name,
    ("model_type",): _text,
    ("scale",): real(above=0),
    ("num_gpu",): _gpus,
    ("manual_seed",): or_null(whole(0, MAX_SEED)),
    ("find_unused_parameters",): boolean,
    ("path", "resume_state"): _path,
    ("path", "experiments_root"): _path,
    ("path", "results_root"): _path,
    ("path", "ignore_resume_networks"): or_null(
        _list_of(of_type(str, "names of networks, as network_g"), "a list of networks, as [network_g]")
    ),
    ("path", "pretrain_network_*"): _path,
    ("path", "strict_load_*"): boolean,
    ("path", "param_key_*"): or_null(_text),
    ("train", "total_iter"): whole(1, _MAX_ITERATIONS),
    ("train", "warmup_iter"): whole(-1),
    ("train", "ema_decay"): real(0, 1),
    ("train", "clip_grad_norm"): or_null(real(above=0)),
    ("train", "log_grad_norm"): boolean,
    ("train", "max_nonfinite_steps"): whole(1),
    ("train", "net_d_iters"): whole(1),
    ("train", "net_d_init_iters"): whole(0),
    ("train", "*_opt", "loss_weight"): real(),
    ("train", "optim_*", "lr"): real(0),
    ("train", "optim_*", "weight_decay"): real(0),
    ("train", "optim_*", "eps"): real(0),
    ("train", "optim_*", "betas"): _list_of(real(0, 1), "a list of two numbers"),
    ("train", "scheduler", "gamma"): real(0),
    ("train", "scheduler", "eta_min"): real(0),
    ("train", "scheduler", "milestones"): _iterations,
    ("train", "scheduler", "periods"): _list_of(whole(1), "a list of whole numbers"),
    ("train", "scheduler", "restarts"): _iterations,
    ("train", "scheduler", "restart_weights"): _numbers,
    ("val", "val_freq"): whole(1),
    ("val", "save_img"): boolean,
    ("val", "pbar"): boolean,
    ("val", "suffix"): or_null(of_type((str, int, float), "text")),
    ("val", "metrics", "*", "better"): one_of("higher", "lower"),
    ("val", "metrics", "*", "crop_border"): whole(0),
    ("val", "metrics", "*", "test_y_channel"): boolean,
    ("val", "metrics", "*", "input_order"): one_of("HWC", "CHW"),
    ("logger", "print_freq"): whole(1),
    ("logger", "save_checkpoint_freq"): whole(1),
    ("logger", "save_last_n"): or_null(whole(1)),
    ("logger", "use_tb_logger"): boolean,
    ("logger", "wandb", "project"): or_null(_text),
    ("logger", "wandb", "resume_id"): or_null(_text),
    ("dist_params", "backend"): one_of("nccl", "gloo", "mpi"),
    ("dist_params", "port"): or_null(whole(1, _MAX_PORT)),
    ("datasets", "train*", "name"): of_type((str, int), "text"),
    ("datasets", "val*", "name"): _folder_name,
    ("datasets", "test*", "name"): _folder_name,
    ("datasets", "*", "batch_size_per_gpu"): whole(1),
    ("datasets", "*", "num_worker_per_gpu"): whole(0, _MAX_WORKERS),
    ("datasets", "*", "dataset_enlarge_ratio"): real(above=0),
    ("datasets", "*", "prefetch_mode"): or_null(one_of("cpu", "cuda")),
    ("datasets", "*", "num_prefetch_queue"): whole(1),
    ("datasets", "*", "pin_memory"): boolean,
    ("datasets", "*", "persistent_workers"): boolean,
    ("datasets", "*", "use_shuffle"): or_null(boolean),
    ("datasets", "*", "use_hflip"): boolean,
    ("datasets", "*", "use_rot"): boolean,
    ("datasets", "*", "on_bad_image"): one_of("error", "skip"),
    ("datasets", "*", "dataroot_*"): _roots,
    ("datasets", "*", "gt_size"): or_null(whole(1)),
}  # fmt: skip


_OF_KNOWN_CLASSES = frozenset(
    [
        ("train", "*_opt", "loss_weight"),
        *(("datasets", "*", key) for key in ("use_hflip", "use_rot", "dataroot_*", "gt_size")),
    ]
)


def check_schema(options: dict[str, Any], is_train: bool, faults: Faults) -> bool:
    """Check that the blocks are blocks, that no key is missing, and all values of keys that BasicSR reads itself.

    Args:
        options: Resolved options; whole numbers written as `5e3` become whole numbers.
        is_train: Whether they are for training.
        faults: Takes what is wrong.

    Returns:
        Whether all outer blocks are blocks, so that others may look into them.
    """
    _check_texts(options, (), faults)
    sound = _check_blocks(options, faults)
    for place in _needed(options, is_train):
        if _is_missing(options, place):
            faults.at(place, "the key is missing")
    for pattern, check in _VALUES.items():
        for place, block in _matching(options, pattern, ()):
            if pattern in _OF_KNOWN_CLASSES and not _is_known_class(place[0], block):
                continue
            try:
                block[place[-1]] = check(block[place[-1]], dotted(place))
            except OptionError as error:
                faults.add(str(error), place)
    return sound


def _is_known_class(registry: str, block: Mapping[str, Any]) -> bool:
    """Whether a block is of a class of BasicSR's or ours; another's may give these keys a meaning of its own."""
    kind = registered(DATASET_REGISTRY if registry == "datasets" else LOSS_REGISTRY, block.get("type"))
    return kind is None or is_own(kind)


def _check_texts(value: Any, place: Place, faults: Faults) -> None:
    """Check that keys are text: BasicSR writes all of them into the log."""
    if isinstance(value, list):
        for number_, item in enumerate(value):
            _check_texts(item, (*place, number_), faults)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                faults.at((*place, key), f"the key is {key!r}, expected text; put it in quotes")
            _check_texts(item, (*place, key), faults)


def _check_blocks(options: dict[str, Any], faults: Faults) -> bool:
    sound = all(isinstance(key, str) for key in options)
    for place in _BLOCKS:
        block: Any = options
        for key in place[:-1]:
            block = block.get(key) if isinstance(block, Mapping) else None
        given = isinstance(block, Mapping) and place[-1] in block
        value = block[place[-1]] if given else None
        if given and not isinstance(value, Mapping) and (value is not None or place in (("path",), ("datasets",))):
            faults.at(place, f"{value!r}, expected a block of keys")
            sound = False
    for phase, dataset in options["datasets"].items() if isinstance(options.get("datasets"), Mapping) else ():
        if not isinstance(dataset, Mapping):
            faults.at(("datasets", phase), f"{dataset!r}, expected a block of keys")
            sound = False
    return sound and all(isinstance(options.get(key), Mapping) for key in ("path", "datasets"))


def _needed(options: Mapping[str, Any], is_train: bool) -> Iterator[Place]:
    yield from _ALWAYS
    yield from _IN_TRAINING if is_train else _IN_TEST
    if is_train and options.get("val") is not None:
        yield from _IN_VALIDATION
    datasets = options.get("datasets")
    for phase, dataset in datasets.items() if isinstance(datasets, Mapping) else ():
        if isinstance(dataset, Mapping):
            yield from (("datasets", phase, key) for key in _IN_DATASETS)


def _is_missing(options: Mapping[str, Any], place: Place) -> bool:
    """Whether the key is missing from a block that is there; a block that is missing is one fault, not one for each."""
    block: Any = options
    for key in place[:-1]:
        block = block.get(key) if isinstance(block, Mapping) else None
    if not isinstance(block, Mapping):
        return False
    return place[-1] not in block or (block[place[-1]] is None and place in (("train",), ("logger",)))


def _matching(block: Any, pattern: Place, place: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the places that a pattern matches, with the blocks that they are in."""
    if not isinstance(block, dict):
        return
    for key in _keys(block, pattern[0]):
        if len(pattern) == 1:
            yield (*place, key), block
        else:
            yield from _matching(block[key], pattern[1:], (*place, key))


def _keys(block: Mapping[Any, Any], pattern: str) -> Iterable[Any]:
    begin, star, end = pattern.partition("*")
    if not star:
        return [pattern] if pattern in block else []
    return [key for key in block if isinstance(key, str) and key.startswith(begin) and key.endswith(end)]
