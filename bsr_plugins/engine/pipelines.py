"""BasicSR's own pipelines, with a check between reading the options and acting on them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import basicsr.test
import basicsr.train

from bsr_plugins.engine.inheritance import as_yaml, flatten, resolve
from bsr_plugins.engine.option_file import check_option_file
from bsr_plugins.engine.preflight import check_options
from bsr_plugins.options import integer


def train_pipeline(root_path: str) -> None:
    """Train as the command line's option file says, like `basicsr.train.train_pipeline`.

    The file may inherit from others, see `bsr_plugins.engine.inheritance`; the run's copy of it then holds all options,
    so that it can be run by itself.

    Raises:
        BSRError: The options cannot be used, in which case nothing has been made or moved yet, or an image turns out
            to be unreadable during the run.
    """
    with _checked(basicsr.train, is_train=True):
        basicsr.train.train_pipeline(root_path)


def test_pipeline(root_path: str) -> None:
    """Test as the command line's option file says, like `basicsr.test.test_pipeline`.

    The file may inherit from others, see `bsr_plugins.engine.inheritance`.

    Raises:
        BSRError: The options cannot be used, in which case nothing has been made or moved yet, or an image turns out
            to be unreadable during the run.
    """
    with _checked(basicsr.test, is_train=False):
        basicsr.test.test_pipeline(root_path)


@contextmanager
def _checked(module: ModuleType, is_train: bool) -> Iterator[None]:
    """Let the pipeline in `module` check its options as soon as it has read them, for as long as this lasts.

    It reads them, and keeps as the run's copy, what the file is on entry: flat, and at hand even if the file is itself
    the copy of an earlier run, which BasicSR moves out of the way before it copies the file. What it reads is written
    out plainly, as its own loader takes YAML's merge key `<<` for a key like any other.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-opt")
    file = parser.parse_known_args()[0].opt
    if file is None:  # for BasicSR's own parser to complain about
        yield
        return
    check_option_file(Path(file), is_train)
    name, content, kept = Path(file).name, as_yaml(resolve(Path(file))), flatten(Path(file))
    stock: Callable[..., tuple[dict[str, Any], argparse.Namespace]] = module.parse_options

    def parse_options(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], argparse.Namespace]:
        with _written(name, content) as flat, _arguments("-opt", str(flat)):
            opt, namespace = stock(*args, **kwargs)
        if not opt["dist"] and integer(opt["num_gpu"], "num_gpu", 0) > 1:
            print(f"One process runs on one GPU, so num_gpu: 1 in place of {opt['num_gpu']}; torchrun uses them all.")
            opt["num_gpu"] = 1
        check_options(opt)
        return opt, namespace

    functions: dict[str, Callable[..., Any]] = {"parse_options": parse_options}
    if is_train:
        copy: Callable[[str, str], None] = module.copy_opt_file

        def copy_opt_file(_file: str, experiments_root: str) -> None:
            with _written(name, kept) as flat:
                copy(str(flat), experiments_root)

        functions["copy_opt_file"] = copy_opt_file
    with _replaced(module, functions):
        yield


@contextmanager
def _replaced(module: ModuleType, functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Put functions in place of those of `module`, for as long as this lasts."""
    stock = {name: getattr(module, name) for name in functions}
    vars(module).update(functions)
    try:
        yield
    finally:
        vars(module).update(stock)


@contextmanager
def _written(name: str, content: bytes) -> Iterator[Path]:
    """Have a file of that name and content somewhere, for as long as this lasts."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        yield file


@contextmanager
def _arguments(*more: str) -> Iterator[None]:
    """Append to the command line, where the last of an option's values holds, for as long as this lasts."""
    stock = sys.argv
    sys.argv = [*stock, *more]
    try:
        yield
    finally:
        sys.argv = stock
