"""The training pipeline: BasicSR's, with runs that can be stopped anywhere and go on as if they had not been."""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import AvgTimer, MessageLogger

from bsr_plugins.engine.checkpoint_identity import Identity, check_identity
from bsr_plugins.engine.checkpoint_sets import Found, RunFolders, find_set, load_set, use_networks
from bsr_plugins.engine.checkpoints import CheckpointStore
from bsr_plugins.engine.guards import NonFiniteError, StepGuard, read_guard_options
from bsr_plugins.engine.loading import build_train_loader, build_val_loaders
from bsr_plugins.engine.ranks import Ranks
from bsr_plugins.engine.run_folders import RunLog, make_folders
from bsr_plugins.engine.signals import Interruption, Stopped
from bsr_plugins.engine.validation import validate
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.options.preflight import Prepared, prepare
from bsr_plugins.random_states import seed_random_states
from bsr_plugins.seeding import derive_seed

_MESSAGE_ONLY = ("epoch", "iter", "lrs", "time", "data_time")


def train_pipeline(root_path: str) -> None:
    """Train as the command line's option file says, like `basicsr.train.train_pipeline`.

    The command line is BasicSR's, with `--check` (only check the options) and `--set KEY:KEY=VALUE …` besides. A run is
    a function of its options: killed at any moment and resumed (`--auto_resume`, or `path.resume_state`), it ends with
    what it would have ended with, on a CPU bit for bit. SIGINT and SIGTERM end it after the iteration, saved.

    Args:
        root_path: Folder in which `experiments/` and `tb_logger/` are made.

    Raises:
        BSRError: The options cannot be used, in which case nothing has been made or moved yet; or an image, a file or
            the numbers of a step could not be, during the run.
        Stopped: A signal ended the run; it is a `SystemExit` with the status 130 or 143.
    """
    torch.backends.cudnn.benchmark = True
    found: Found | None = None
    passed_over: list[str] = []

    def resume(opt: dict[str, Any]) -> None:
        nonlocal found, passed_over
        found, passed_over = find_checkpoint(opt, Ranks(opt["dist"]))
        if found is not None:
            use_networks(opt, found)
            if opt["manual_seed"] is None and found.identity is not None:
                opt["manual_seed"] = found.identity.manual_seed

    prepared = prepare(root_path, is_train=True, resume=resume)
    if prepared.only_check:
        return
    ranks = Ranks(prepared.opt["dist"])
    make_folders(prepared, root_path, fresh=found is None)
    ranks.barrier()
    with RunLog(prepared.opt, "train", root_path, 0 if found is None else found.iteration) as log:
        prepared.replay(log.logger)
        for line in (*prepared.warnings, *(f"Passed over {reason}" for reason in passed_over)):
            log.logger.warning(line)
        TrainingRun(prepared, found, ranks, log).execute()


def find_checkpoint(opt: Mapping[str, Any], ranks: Ranks) -> tuple[Found | None, list[str]]:
    """Find the checkpoint that a run is to go on from.

    Args:
        opt: The run's options; see `find_set`.
        ranks: The processes of the run, which all take what rank 0 finds.

    Returns:
        The checkpoint, or None if the run begins, and a line for every newer one that is broken.

    Raises:
        BSRError: All checkpoints, or that of `path.resume_state`, are broken, or it is past the end of the run.
    """
    here = None

    def search() -> tuple[Path | None, list[str]]:
        nonlocal here
        here, passed_over = find_set(opt)
        return None if here is None else here.file, passed_over

    file, passed_over = ranks.of_first(search)
    if file is None and passed_over:
        raise BSRError(
            f"{opt['path']['experiments_root']}: no checkpoint is complete ({'; '.join(passed_over)}), expected one to "
            "resume from; without --auto_resume the run begins anew"
        )
    if file is None:
        return None, []
    found = here or load_set(file)
    total = int(opt["train"]["total_iter"])
    if found.iteration > total:
        raise OptionError(f"train.total_iter: {total}, expected at least {found.iteration}, the iteration of {file}")
    return found, passed_over


class TrainingRun:
    """A run: what it is made of, and its loop.

    Args:
        prepared: The options, the datasets and the model.
        found: The checkpoint to go on from, if any.
        ranks: The processes of the run.
        log: Where it logs to.
    """

    def __init__(self, prepared: Prepared, found: Found | None, ranks: Ranks, log: RunLog) -> None:
        self.opt, self.ranks, self.log = prepared.opt, ranks, log
        opt, self.late_reads = prepared.opt, prepared.late_reads
        self.total = int(opt["train"]["total_iter"])
        self.loader = build_train_loader(opt, prepared.datasets["train"])
        self.val_loaders = build_val_loaders(opt, prepared.datasets)
        self._log_statistics()
        run_id = None if found is None or found.identity is None else found.identity.run_id
        identity = Identity.of(opt, self.loader.num_images, run_id)
        self.model = prepared.model
        self.guard = StepGuard(self.model, read_guard_options(opt["train"]), ranks)
        self.store = CheckpointStore(RunFolders.of(opt["path"]), identity, opt["logger"].get("save_last_n"))
        self.bad_images_before = 0
        self.start = 0
        if found is not None:
            self._resume(found, identity)
        self.saved = self.start
        # TensorBoard is told by `_print`: BasicSR's logger keeps from it what runs of some names have to say.
        # The time that is left is that of one iteration less than it takes.
        told = {"logger": opt["logger"] | {"use_tb_logger": False}, "train": {"total_iter": self.total + 1}}
        self.messages = MessageLogger(opt | told, self.start)
        self.data_timer, self.iter_timer = AvgTimer(), AvgTimer()

    def execute(self) -> None:
        """Train to the end, save and validate.

        Raises:
            Stopped: A signal ended the run.
            BSRError: An image cannot be read, a file cannot be written, or too many steps in a row gave numbers that
                are not finite.
        """
        logger, began, interruption = self.log.logger, time.time(), Interruption()
        logger.info(f"Start training from epoch: {self._place(self.start + 1)[0]}, iter: {self.start}")
        with interruption.noted():
            with closing(self.loader):
                if self.start and self._is_validated(self.start):
                    self._validate(self.start, interruption)
                self._stop_if_asked(self.start, interruption)
                self._train(interruption)
            logger.info(f"End of training. Time consumed: {datetime.timedelta(seconds=int(time.time() - began))}")
            if self.guard.skipped_total:
                logger.warning(f"{self.guard.skipped_total} of {self.total} steps were skipped.")
            logger.info("Save the latest model.")
            self.store.save_latest(self.model, self.total)
            if self.opt.get("val") is not None and not self._is_validated(self.total):
                self._validate(self.total, interruption)
            self._stop_if_asked(self.total, interruption)

    def _train(self, interruption: Interruption) -> None:
        save_freq, print_freq = (int(self.opt["logger"][key]) for key in ("save_checkpoint_freq", "print_freq"))
        for iteration in range(self.start + 1, self.total + 1):
            batch = self._next_batch(iteration)
            self.data_timer.record()
            made = self._step(iteration, batch)
            self.iter_timer.record()
            if iteration == 1:
                self.messages.reset_start_time()
            if iteration == self.start + 1:
                for line in self.late_reads():
                    self.log.logger.warning(line)
            if iteration % print_freq == 0:
                self._print(iteration, made)
            if iteration % save_freq == 0 or iteration == self.total:
                self._save(iteration)
            if self._is_validated(iteration):
                self._validate(iteration, interruption)
            self._stop_if_asked(iteration, interruption)
            self.data_timer.start()
            self.iter_timer.start()

    def _next_batch(self, iteration: int) -> Mapping[str, Any]:
        epoch, number = self._place(iteration)
        if number == 0 or iteration == self.start + 1:
            self.loader.start(epoch, number)
        batch: Mapping[str, Any] | None = self.loader.next()
        assert batch is not None, "an epoch has as many batches as its loader says"
        return batch

    def _step(self, iteration: int, batch: Mapping[str, Any]) -> bool:
        """Make a step; whatever draws from a global random state draws at the step's own address."""
        seed_random_states(derive_seed(self.opt["manual_seed"], "iteration", iteration, self.opt["rank"]))
        self.model.update_learning_rate(iteration, warmup_iter=self.opt["train"].get("warmup_iter", -1))
        self.model.feed_data(batch)
        try:
            return self.guard.step(iteration, batch)
        except NonFiniteError as error:
            kept = f"net_*_{self.saved}.pth" if self.saved else "none"
            raise NonFiniteError(f"{error}; the last checkpoint is {kept} of this run") from error

    def _print(self, iteration: int, made: bool) -> None:
        figures: dict[str, Any] = {"epoch": self._place(iteration)[0], "iter": iteration}
        figures["lrs"] = self.model.get_current_learning_rate()
        figures |= {"time": self.iter_timer.get_avg_time(), "data_time": self.data_timer.get_avg_time()}
        # After a step that was not made, a model's losses are those of an earlier one.
        figures |= self.model.get_current_log() if made else {}
        figures |= self.guard.figures()
        bad_images = self.bad_images
        figures |= {"bad_images": bad_images} if bad_images else {}
        self._tell_tensorboard(iteration, figures)
        self.messages(figures)

    def _tell_tensorboard(self, iteration: int, figures: Mapping[str, Any]) -> None:
        """Write figures under BasicSR's names."""
        if self.log.tensorboard is None:
            return
        for name, value in figures.items():
            if name not in _MESSAGE_ONLY:
                self.log.tensorboard.add_scalar(f"losses/{name}" if name.startswith("l_") else name, value, iteration)

    @property
    def bad_images(self) -> int:
        """How many bad images all ranks have met since the run began; to be asked on all of them."""
        return self.bad_images_before + self.ranks.total(self.loader.skipped)

    def _save(self, iteration: int) -> None:
        self.log.logger.info("Saving models and training states.")
        extras = {
            "best_metric_results": getattr(self.model, "best_metric_results", {}),
            "guard": self.guard.state(),
            "bad_images": self.bad_images,
        }
        self.store.save(self.model, self._place(iteration)[0], iteration, extras)
        self.saved = iteration

    def _resume(self, found: Found, identity: Identity) -> None:
        for remark in check_identity(found, identity):
            self.log.logger.warning(remark)
        try:
            self.model.resume_training(found.state)
        except (AssertionError, KeyError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise BSRError(
                f"{found.file}: its optimisers and schedules are not those of the options ({reason}), expected the "
                "options that it was saved with"
            ) from error
        if found.extras.get("best_metric_results"):
            self.model.best_metric_results = found.extras["best_metric_results"]
        self.guard.load_state(found.extras.get("guard", {}))
        self.bad_images_before = found.extras.get("bad_images", 0)
        self.start = found.iteration
        for file in self.store.set_aside_newer(found.iteration):
            self.log.logger.warning(f"The run goes on before it, so {file.name} is what the state of it is called now.")
        self.log.logger.info(f"Resuming training from epoch: {found.state['epoch']}, iter: {found.iteration}.")

    def _is_validated(self, iteration: int) -> bool:
        """Tell whether an iteration is followed by a validation."""
        return self.opt.get("val") is not None and iteration % int(self.opt["val"]["val_freq"]) == 0

    def _validate(self, iteration: int, interruption: Interruption) -> None:
        """Validate; a signal breaks it off, as the run that goes on makes it again: at once, or between images."""

        def action() -> None:
            for loader in self.val_loaders:
                tensorboard, save_img = self.log.tensorboard, self.opt["val"]["save_img"]
                if not validate(self.model, loader, iteration, tensorboard, save_img, asked):
                    return

        def asked() -> bool:
            return interruption.received is not None

        if self.opt["dist"]:
            action()
        else:
            interruption.until_received(action)

    def _stop_if_asked(self, iteration: int, interruption: Interruption) -> None:
        if not self.ranks.any(interruption.received is not None):
            return
        if self.saved != iteration:
            self._save(iteration)
        received = interruption.received or signal.SIGTERM  # the signal may have reached another rank alone
        self.log.logger.info(f"Stopped by {signal.Signals(received).name} after iteration {iteration}; it is saved.")
        raise Stopped(received)

    def _place(self, iteration: int) -> tuple[int, int]:
        """Return the epoch of an iteration, and the number of its batch there."""
        return divmod(iteration - 1, self.loader.batches_per_epoch)

    def _log_statistics(self) -> None:
        dataset_opt, per_epoch = self.opt["datasets"]["train"], self.loader.batches_per_epoch
        self.log.logger.info(
            "Training statistics:"
            f"\n\tNumber of train images: {self.loader.num_images}"
            f"\n\tDataset enlarge ratio: {dataset_opt.get('dataset_enlarge_ratio', 1)}"
            f"\n\tBatch size per gpu: {dataset_opt['batch_size_per_gpu']}"
            f"\n\tWorld size (gpu number): {self.opt['world_size']}"
            f"\n\tIterations per epoch: {per_epoch}"
            f"\n\tTotal epochs: {-(-self.total // per_epoch)}; iters: {self.total}."
        )
        for loader in self.val_loaders:
            dataset: Any = loader.dataset
            self.log.logger.info(f"Number of val images/folders in {dataset.opt['name']}: {len(dataset)}")
