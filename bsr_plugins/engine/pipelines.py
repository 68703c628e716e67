"""BasicSR's own pipelines, with a check between reading the options and acting on them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import basicsr.test
import basicsr.train

from bsr_plugins.engine.option_file import check_option_file
from bsr_plugins.engine.preflight import check_options
from bsr_plugins.options import integer


def train_pipeline(root_path: str) -> None:
    """Train as the command line's option file says, like `basicsr.train.train_pipeline`.

    Raises:
        BSRError: The options cannot be used, in which case nothing has been made or moved yet, or an image turns out
            to be unreadable during the run.
    """
    with _checked(basicsr.train, is_train=True):
        basicsr.train.train_pipeline(root_path)


def test_pipeline(root_path: str) -> None:
    """Test as the command line's option file says, like `basicsr.test.test_pipeline`.

    Raises:
        BSRError: The options cannot be used, in which case nothing has been made or moved yet, or an image turns out
            to be unreadable during the run.
    """
    with _checked(basicsr.test, is_train=False):
        basicsr.test.test_pipeline(root_path)


@contextmanager
def _checked(module: ModuleType, is_train: bool) -> Iterator[None]:
    """Let the pipeline in `module` check its options as soon as it has read them, for as long as this lasts."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-opt")
    file = parser.parse_known_args()[0].opt
    if file is not None:
        check_option_file(Path(file), is_train)
    stock: Callable[..., tuple[dict[str, Any], argparse.Namespace]] = module.parse_options

    def parse_options(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], argparse.Namespace]:
        opt, namespace = stock(*args, **kwargs)
        if not opt["dist"] and integer(opt["num_gpu"], "num_gpu", 0) > 1:
            print(f"One process runs on one GPU, so num_gpu: 1 in place of {opt['num_gpu']}; torchrun uses them all.")
            opt["num_gpu"] = 1
        check_options(opt)
        return opt, namespace

    module.parse_options = parse_options  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.parse_options = stock  # type: ignore[attr-defined]
