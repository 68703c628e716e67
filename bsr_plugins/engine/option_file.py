"""Whether an option file can be read, and holds what BasicSR's pipelines look up without asking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bsr_plugins.engine.inheritance import resolve
from bsr_plugins.errors import OptionError
from bsr_plugins.options import integer

_ALWAYS = ("name", "model_type", "num_gpu", "path", "datasets")
_IN_TRAINING = (
    "datasets.train.batch_size_per_gpu",
    "datasets.train.num_worker_per_gpu",
    "train.total_iter",
    "logger.print_freq",
    "logger.save_checkpoint_freq",
    "logger.use_tb_logger",
)
_IN_VALIDATION = ("val.val_freq", "val.save_img")
_IN_TEST = ("val.save_img", "val.suffix")
_IN_DATASETS = ("name", "type")
_PATHS = ("experiments_root", "results_root", "resume_state")
_MAX_SEED = (1 << 32) - 1  # NumPy's, which BasicSR seeds


def check_option_file(file: Path, is_train: bool) -> None:
    """Check an option file, with all that it inherits, before BasicSR reads it.

    Args:
        file: The file of `-opt`.
        is_train: Whether it is for training.

    Raises:
        OptionError: There is no such file, it is no YAML, it cannot be resolved, or a block or key is missing.
    """
    try:
        content = resolve(file)
    except OptionError as error:
        raise OptionError(f"-opt: {error}") from error
    _demand(file, content, _ALWAYS)
    _demand(file, content["path"], (), "path.")
    _demand(file, content["datasets"], (), "datasets.")
    _check_values(file, content)
    for phase, dataset in content["datasets"].items():
        _demand(file, dataset, _IN_DATASETS, f"datasets.{phase}.")
        _check_root(file, f"datasets.{phase}.dataroot_gt", dataset.get("dataroot_gt"))
    if not is_train:
        _demand(file, content, _IN_TEST)
        return
    _demand(file, content, _IN_TRAINING)
    if content.get("val") is not None:
        _demand(file, content, _IN_VALIDATION)


def _check_values(file: Path, content: Mapping[str, Any]) -> None:
    """Check the values that BasicSR uses while it reads the file."""
    name, seed = content["name"], content.get("manual_seed")
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise OptionError(f"-opt: {file}: name: {name!r}, expected the name of a folder")
    if seed is not None:
        integer(seed, f"-opt: {file}: manual_seed", 0, _MAX_SEED)
    for key, value in content["path"].items():
        if value is not None and (key.startswith("pretrain_network") or key in _PATHS) and not isinstance(value, str):
            raise OptionError(f"-opt: {file}: path.{key}: {value!r}, expected a path or null")
    for place in ("val", "val.metrics"):
        block: Any = content
        for key in place.split("."):
            block = (block or {}).get(key)
        if block is not None:
            _demand(file, block, (), f"{place}.")


def _check_root(file: Path, place: str, value: object) -> None:
    roots = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(root, str) for root in roots):
        raise OptionError(f"-opt: {file}: {place}: {value!r}, expected a folder or a list of folders")


def _demand(file: Path, block: Any, places: Iterable[str], where: str = "") -> None:
    """Check that `block`, at `where`, is one, and that it has a key at every place; dots lead into inner blocks."""
    if not isinstance(block, Mapping):
        raise OptionError(f"-opt: {file}: {where.rstrip('.') or 'the file'}: {block!r}, expected a block of keys")
    for place in places:
        key, _, rest = place.partition(".")
        if key not in block:
            raise OptionError(f"-opt: {file}: {where}{key}: the key is missing")
        if rest:
            _demand(file, block[key], (rest,), f"{where}{key}.")
