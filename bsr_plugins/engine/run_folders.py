"""Where a run writes: its folders, the copy of its options, its logs."""

from __future__ import annotations

import logging
import shlex
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from basicsr.train import init_wandb_logger
from basicsr.utils import get_env_info, get_root_logger, get_time_str
from basicsr.utils.options import dict2str

from bsr_plugins.engine.run_options import Run
from bsr_plugins.errors import BSRError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_TRAINING = ("models", "training_states", "log", "visualization")
_TESTING = ("log", "visualization")
_DEBUG = "debug"  # BasicSR leaves TensorBoard and wandb out of runs of such a name


def make_folders(run: Run, root_path: str, fresh: bool) -> None:
    """Make the folders of a run, on rank 0, and put the copy of its options there.

    Args:
        run: The run's options.
        root_path: Where `experiments/`, `results/` and `tb_logger/` are.
        fresh: Whether the run begins here; what an earlier one of its name has left is then moved out of the way.
    """
    opt = run.opt
    if opt["rank"] != 0:
        return
    training = opt["is_train"]
    root = Path(opt["path"]["experiments_root" if training else "results_root"])
    if fresh:
        _archive(root)
        if training and _logs_to_tensorboard(opt):
            _archive(tensorboard_folder(root_path, opt))
    for key in _TRAINING if training else _TESTING:
        Path(opt["path"][key]).mkdir(parents=True, exist_ok=True)
    if training:
        header = f"# GENERATE TIME: {time.asctime()}\n# CMD:\n# {shlex.join(sys.argv)}\n\n"
        (root / run.file.name).write_bytes(header.encode() + run.resolved)


def tensorboard_folder(root_path: str, opt: Mapping[str, Any]) -> Path:
    """Return the folder of a run's TensorBoard events."""
    return Path(root_path) / "tb_logger" / str(opt["name"])


class RunLog:
    """The log of a run: BasicSR's logger with a file of its own, and TensorBoard and wandb as the options say.

    As a context manager it closes them, and puts the traceback of an unexpected error into the file.

    Args:
        opt: The run's options.
        kind: `train` or `test`, for the file's name.
        root_path: Where `tb_logger/` is made.
        start: The iteration that a resumed run goes on from; what TensorBoard has of later ones is hidden.
    """

    def __init__(self, opt: Mapping[str, Any], kind: str, root_path: str, start: int = 0) -> None:
        file = _unused(Path(opt["path"]["log"]) / f"{kind}_{opt['name']}_{get_time_str()}.log")
        self.logger = get_root_logger(log_file=str(file))
        self.logger.info(get_env_info())
        self.logger.info(dict2str(opt))
        self.tensorboard: SummaryWriter | None = None
        if kind == "train" and opt["rank"] == 0 and _logs_to_tensorboard(opt):
            if (opt["logger"].get("wandb") or {}).get("project") is not None:
                init_wandb_logger(opt)  # before TensorBoard, which it follows
            self.tensorboard = _writer(tensorboard_folder(root_path, opt), start)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Exception) and not issubclass(kind, BSRError):
            self._record("".join(traceback.format_exception(kind, error, trace)))
        if self.tensorboard is not None:
            self.tensorboard.close()
        for handler in self.logger.handlers:
            handler.flush()

    def _record(self, text: str) -> None:
        """Put a text into the file alone; Python prints the traceback itself."""
        record = self.logger.makeRecord(self.logger.name, logging.ERROR, __file__, 0, text, (), None)
        for handler in self.logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)


def _logs_to_tensorboard(opt: Mapping[str, Any]) -> bool:
    return bool(opt["logger"].get("use_tb_logger")) and _DEBUG not in opt["name"]


def _writer(folder: Path, start: int) -> SummaryWriter:
    # Importing it takes seconds, and runs without it need none of it.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start + 1 if start else None)


def _archive(folder: Path) -> None:
    """Move a folder out of the way, as BasicSR does."""
    if folder.exists():
        moved = _unused(folder.with_name(f"{folder.name}_archived_{get_time_str()}"))
        print(f"Path already exists. Rename it to {moved}", flush=True)
        folder.rename(moved)


def _unused(path: Path) -> Path:
    """Return a path that does not exist: this one, or this with a number before its suffix."""
    candidate, number = path, 1
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}_{number}{path.suffix}"), number + 1
    return candidate
