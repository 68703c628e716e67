"""The test pipeline: BasicSR's, with checked options and images shared out among the processes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from basicsr.utils import get_root_logger

from bsr_plugins.engine.loading import build_val_loaders
from bsr_plugins.engine.ranks import of_first
from bsr_plugins.engine.run_folders import make_folders, run_log
from bsr_plugins.engine.validation import validate
from bsr_plugins.options.preflight import prepare


def test_pipeline(root_path: str) -> None:
    """Test as the option file of the command line says, like `basicsr.test.test_pipeline`.

    The command line is that of `bsr_plugins.options.command_line`; `results/` is made in `root_path`.

    Raises:
        BSRError: The options cannot be used, in which case nothing has been made or moved yet, or an image turns out
            to be unusable during the run.
    """
    torch.backends.cudnn.benchmark = True
    prepared = prepare(root_path, is_train=False, resume=None)
    if prepared.only_check:
        return
    opt = prepared.opt
    of_first(lambda: make_folders(prepared, root_path, fresh=True))
    with run_log(prepared, root_path):
        logger = get_root_logger()
        loaders: list[Any] = build_val_loaders(opt, prepared.datasets)
        for loader in loaders:
            logger.info(f"Number of test images in {loader.dataset.opt['name']}: {len(loader.dataset)}")

        @cache
        def warn_of_unread_keys() -> bool:
            for warning in prepared.late_reads():
                logger.warning(warning)
            return False

        for loader in loaders:
            logger.info(f"Testing {loader.dataset.opt['name']}...")
            validate(prepared.model, loader, opt["name"], None, opt["val"]["save_img"], warn_of_unread_keys)
            warn_of_unread_keys()  # where the model validates in its way
