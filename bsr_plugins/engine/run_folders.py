"""Where a run writes: its folders, the copy of its options, its logs."""

from __future__ import annotations

import logging
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr.train import init_wandb_logger
from basicsr.utils import get_env_info, get_root_logger, get_time_str
from basicsr.utils.options import dict2str

from bsr_plugins.atomic_file import reported, unused, write_atomically
from bsr_plugins.errors import BSRError, line_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from bsr_plugins.options.preflight import Prepared

_FOLDERS = ("models", "training_states", "log", "visualization")
_FORMAT = "%(asctime)s %(levelname)s: %(message)s"  # BasicSR's


def make_folders(prepared: Prepared, root_path: str, fresh: bool) -> None:
    """Make the folders of a run, and put the copy of its options there; to be called on rank 0.

    If it begins here (`fresh`), what an earlier run of its name has left is moved out of the way.

    Raises:
        BSRError: They cannot be made.
    """
    opt, training = prepared.opt, prepared.opt["is_train"]
    root = Path(opt["path"]["experiments_root" if training else "results_root"])
    try:
        earlier = [root, *([_tensorboard_folder(root_path, opt)] if _has_tensorboard(opt) else [])]
        for folder in earlier if fresh else ():
            if folder.exists():
                moved = unused(folder.with_name(f"{folder.name}_archived_{get_time_str()}"))
                print(f"Path already exists. Rename it to {moved}", flush=True)
                folder.rename(moved)
        for key in _FOLDERS:
            if key in opt["path"]:
                Path(opt["path"][key]).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BSRError(f"{error.filename}: cannot be made ({error.strerror}), expected a folder to write to") from error
    if training:
        header = f"# GENERATE TIME: {time.asctime()}\n# CMD:\n# {shlex.join(sys.argv)}\n\n"
        write_atomically(root / prepared.file.name, header.encode() + prepared.resolved)


@contextmanager
def run_log(prepared: Prepared, root_path: str, start: int = 0) -> Iterator[SummaryWriter | None]:
    """Open the log of a run: BasicSR's logger with a file, and TensorBoard, whose writer is given, and wandb if asked.

    What could not be logged while the run was prepared is logged first. What TensorBoard has of iterations after
    `start`, from which a resumed run goes on, is hidden. What has ended the run is put into the file: an error's line,
    or the traceback of an unexpected one.
    """
    opt, logger = prepared.opt, get_root_logger()
    # Whoever asked for the logger first, as an arch may do while it is built, has it made without a file.
    logger.setLevel(logging.INFO if opt["rank"] == 0 else logging.ERROR)
    file: logging.Handler = logging.NullHandler()
    tensorboard: SummaryWriter | None = None
    if opt["rank"] == 0:
        name = f"{'train' if opt['is_train'] else 'test'}_{opt['name']}_{get_time_str()}.log"
        file = logging.FileHandler(unused(Path(opt["path"]["log"]) / name), "w")
        file.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(file)
    logger.info(get_env_info())
    logger.info(dict2str(opt))
    prepared.replay(logger)
    for warning in prepared.warnings:
        logger.warning(warning)
    if opt["rank"] == 0 and _has_tensorboard(opt):
        if (opt["logger"].get("wandb") or {}).get("project") is not None:
            init_wandb_logger(opt)  # before TensorBoard, which it follows
        tensorboard = _writer(_tensorboard_folder(root_path, opt), start)
    try:
        yield tensorboard
    except Exception as error:
        text = line_of(error) if isinstance(error, BSRError) else traceback.format_exc()
        # Into the file alone: on the screen, whoever called says what has ended the run.
        file.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None))
        raise
    finally:
        with suppress(OSError):  # on a full disk, which another error reports
            if tensorboard is not None:
                tensorboard.close()
        logger.removeHandler(file)
        with suppress(OSError):
            file.close()


def _has_tensorboard(opt: Mapping[str, Any]) -> bool:
    return bool(opt["is_train"] and opt["logger"].get("use_tb_logger"))


def _tensorboard_folder(root_path: str, opt: Mapping[str, Any]) -> Path:
    return Path(root_path) / "tb_logger" / str(opt["name"])


def _writer(folder: Path, start: int) -> SummaryWriter:
    # Importing it takes seconds, and runs without it need none of it.
    from torch.utils.tensorboard import SummaryWriter

    class Writer(SummaryWriter):
        def add_scalar(self, *args: Any, **settings: Any) -> None:
            with reported(folder, "written"):  # which its thread has met before
                super().add_scalar(*args, **settings)

    return Writer(str(folder), purge_step=start + 1 if start else None)
