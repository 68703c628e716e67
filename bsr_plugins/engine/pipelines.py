"""The pipelines: BasicSR's, with training runs that can be stopped anywhere and go on as if they had not been."""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from typing import Any

import torch
from basicsr.utils import AvgTimer, MessageLogger, get_root_logger

from bsr_plugins.engine.checkpoint_sets import CheckpointSet, Identity, RunFolders, Search, find_set, use_networks
from bsr_plugins.engine.checkpoints import CheckpointStore
from bsr_plugins.engine.guard import StepWatch, guard_of
from bsr_plugins.engine.loading import build_train_loader, build_val_loaders
from bsr_plugins.engine.ranks import any_rank, of_first, total
from bsr_plugins.engine.run_folders import make_folders, run_log
from bsr_plugins.engine.signals import Interruption, Stopped
from bsr_plugins.engine.validation import validate
from bsr_plugins.errors import BSRError, OptionError, described
from bsr_plugins.models.step_guard import NonFiniteError
from bsr_plugins.options.preflight import Prepared, prepare
from bsr_plugins.random_states import seed_random_states
from bsr_plugins.seeding import derive_seed

_MESSAGE_ONLY = ("epoch", "iter", "lrs", "time", "data_time")


def train_pipeline(root_path: str) -> None:
    """Train as the option file of the command line says, like `basicsr.train.train_pipeline`.

    The command line is that of `bsr_plugins.options.command_line`. A run is a function of its options: killed at any
    moment and resumed (`--auto_resume`, or `path.resume_state`), it ends with what it would have ended with, on a CPU
    bit for bit. SIGINT and SIGTERM end it after the iteration, saved. `experiments/` and `tb_logger/` are made in
    `root_path`.

    Raises:
        BSRError: The options cannot be used, in which case nothing has been made or moved yet; or an image, a file or
            the numbers of a step could not be, during the run.
        Stopped: A signal ended the run; it is a `SystemExit` with the status 130 or 143.
    """
    torch.backends.cudnn.benchmark = True
    searches: list[Search] = []
    prepared = prepare(root_path, is_train=True, resume=lambda opt: searches.append(_find_checkpoint(opt)))
    if prepared.only_check:
        return
    ((found, passed_over),) = searches
    of_first(lambda: make_folders(prepared, root_path, fresh=found is None))
    with run_log(prepared, root_path, 0 if found is None else found.iteration) as tensorboard:
        for reason in passed_over:
            get_root_logger().warning(f"Passed over {reason}")
        TrainingRun(prepared, found, tensorboard).execute()


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


def _find_checkpoint(opt: dict[str, Any]) -> Search:
    """Find the checkpoint set that all ranks go on from, and point the options at its networks and its seed."""
    search = of_first(lambda: find_set(opt))
    found, passed_over = search
    if found is None and passed_over:
        raise BSRError(
            f"{opt['path']['experiments_root']}: no checkpoint is complete ({'; '.join(passed_over)}), expected one to "
            "resume from; without --auto_resume the run begins anew"
        )
    if found is not None:
        if found.iteration > (end := int(opt["train"]["total_iter"])):
            raise OptionError(
                f"train.total_iter: {end}, expected at least {found.iteration}, the iteration of {found.file}"
            )
        use_networks(opt, found)
        if opt.get("manual_seed") is None and found.identity is not None:
            opt["manual_seed"] = found.identity.manual_seed
    return search


class TrainingRun:
    """A run: its loaders, its model and its checkpoints, from a checkpoint set on if there is one, and its loop."""

    def __init__(self, prepared: Prepared, found: CheckpointSet | None, tensorboard: Any) -> None:
        opt = prepared.opt
        self.opt, self.model, self.late_reads = opt, prepared.model, prepared.late_reads
        self.logger, self.tensorboard = get_root_logger(), tensorboard
        self.end = int(opt["train"]["total_iter"])
        self.loader = build_train_loader(opt, prepared.datasets["train"])
        self.val_loaders: list[Any] = build_val_loaders(opt, prepared.datasets)
        self._log_statistics()
        self.guard = guard_of(self.model)
        earlier, keep = None if found is None else found.identity, opt["logger"].get("save_last_n")
        identity = Identity.of(opt, self.loader.num_images, None if earlier is None else earlier.run_id)
        self.store = CheckpointStore(RunFolders.of(opt["path"]), identity, None if keep is None else int(keep))
        self.bad_images_before = self.start = 0
        if found is not None:
            self._resume(found, identity)
        self.saved, self.interruption = self.start, Interruption()
        # TensorBoard gets its figures from `_print`: BasicSR's logger leaves it out for runs of some names.
        # The time that is left is that of one iteration less than it takes.
        changed = {"logger": opt["logger"] | {"use_tb_logger": False}, "train": {"total_iter": self.end + 1}}
        self.messages = MessageLogger(opt | changed, self.start)
        self.data_timer, self.iter_timer = AvgTimer(), AvgTimer()

    def execute(self) -> None:
        """Train to the end, save and validate; see `train_pipeline` for what is raised."""
        began = time.time()
        self.logger.info(f"Start training from epoch: {self._place(self.start + 1)[0]}, iter: {self.start}")
        with self.interruption.awaited():
            with closing(self.loader):
                if self.start and self._is_validated(self.start):
                    self._validate(self.start)
                self._stop_if_asked(self.start)
                self._train()
            self.logger.info(f"End of training. Time consumed: {datetime.timedelta(seconds=int(time.time() - began))}")
            if self.guard.skipped_total:
                self.logger.warning(f"{self.guard.skipped_total} of {self.end} steps were skipped.")
            self.logger.info("Save the latest model.")
            self.store.save_latest(self.model, self.end)
            if self.opt.get("val") is not None and not self._is_validated(self.end):
                self._validate(self.end)
            self._stop_if_asked(self.end)

    def _train(self) -> None:
        save_freq, print_freq = (int(self.opt["logger"][key]) for key in ("save_checkpoint_freq", "print_freq"))
        for iteration in range(self.start + 1, self.end + 1):
            epoch, number = self._place(iteration)
            if number == 0 or iteration == self.start + 1:
                self.loader.start(epoch, number)
            batch = self.loader.next()
            assert batch is not None, "an epoch has as many batches as its loader says"
            self.data_timer.record()
            made = self._step(iteration, batch)
            self.iter_timer.record()
            if iteration == 1:
                self.messages.reset_start_time()
            for warning in self.late_reads() if iteration == self.start + 1 else ():
                self.logger.warning(warning)
            if iteration % print_freq == 0:
                self._print(iteration, made)
            if iteration % save_freq == 0 or iteration == self.end:
                self._save(iteration)
            if self._is_validated(iteration):
                self._validate(iteration)
            self._stop_if_asked(iteration)
            self.data_timer.start()
            self.iter_timer.start()

    def _step(self, iteration: int, batch: Mapping[str, Any]) -> bool:
        """Make a step, and tell whether it was made; global random states are those of the step's address."""
        seed_random_states(derive_seed(self.opt["manual_seed"], "iteration", iteration, self.opt["rank"]))
        self.model.update_learning_rate(iteration, warmup_iter=self.opt["train"].get("warmup_iter", -1))
        self.model.feed_data(batch)
        try:
            if isinstance(self.guard, StepWatch):
                self.guard.step(iteration, batch)
                return True
            self.model.optimize_parameters(iteration)
        except NonFiniteError as error:
            kept = f"net_*_{self.saved}.pth" if self.saved else "none"
            raise NonFiniteError(f"{error}; the last checkpoint is {kept} of this run") from error
        return bool(self.model.step_made)

    def _print(self, iteration: int, made: bool) -> None:
        figures: dict[str, Any] = {
            "epoch": self._place(iteration)[0],
            "iter": iteration,
            "lrs": self.model.get_current_learning_rate(),
            "time": self.iter_timer.get_avg_time(),
            "data_time": self.data_timer.get_avg_time(),
        }
        # After a step that was not made, a model's losses are those of an earlier one.
        figures |= (self.model.get_current_log() if made else {}) | self.guard.figures()
        if bad_images := self._bad_images():
            figures["bad_images"] = bad_images
        for name, value in figures.items():
            if self.tensorboard is not None and name not in _MESSAGE_ONLY:
                place = f"losses/{name}" if name.startswith("l_") else name  # as BasicSR has them
                self.tensorboard.add_scalar(place, value, iteration)
        self.messages(figures)

    def _bad_images(self) -> int:
        return self.bad_images_before + total(self.loader.skipped)  # of all ranks, since the run began

    def _save(self, iteration: int) -> None:
        self.logger.info("Saving models and training states.")
        extras = {
            "best_metric_results": getattr(self.model, "best_metric_results", {}),
            "guard": self.guard.state(),
            "bad_images": self._bad_images(),
        }
        self.store.save(self.model, self._place(iteration)[0], iteration, extras)
        self.saved = iteration

    def _resume(self, found: CheckpointSet, identity: Identity) -> None:
        for remark in identity.remarks_on(found.file.name, found.identity):
            self.logger.warning(remark)
        try:
            self.model.resume_training(found.state)
        except (AssertionError, KeyError, ValueError) as error:
            raise BSRError(
                f"{found.file}: its optimisers and schedules are not those of the options ({described(error)}), "
                "expected the options that it was saved with"
            ) from error
        if best := found.extras.get("best_metric_results"):
            self.model.best_metric_results = best
        self.guard.load_state(found.extras.get("guard", {}))
        self.bad_images_before = found.extras.get("bad_images", 0)
        self.start = found.iteration
        self.store.remove_old(found.iteration)  # where the run was killed before that
        for file in self.store.set_aside_newer(found.iteration):
            self.logger.warning(f"The run goes on before it, so {file.name} is what the state of it is called now.")
        self.logger.info(f"Resuming training from epoch: {found.state['epoch']}, iter: {found.iteration}.")

    def _is_validated(self, iteration: int) -> bool:
        return self.opt.get("val") is not None and iteration % int(self.opt["val"]["val_freq"]) == 0

    def _validate(self, iteration: int) -> None:
        """Validate; a signal breaks it off, as the run that goes on makes it again: at once, or between images."""
        arguments = iteration, self.tensorboard, self.opt["val"]["save_img"], self._is_to_stop

        def action() -> None:
            all(validate(self.model, loader, *arguments) for loader in self.val_loaders)

        if self.opt["dist"]:
            action()
        else:
            self.interruption.until_received(action)

    def _is_to_stop(self) -> bool:
        return self.interruption.received is not None

    def _stop_if_asked(self, iteration: int) -> None:
        if not any_rank(self._is_to_stop()):
            return
        if self.saved != iteration:
            self._save(iteration)
        received = self.interruption.received or signal.SIGTERM  # the signal may have reached another rank alone
        self.logger.info(f"Stopped by {signal.Signals(received).name} after iteration {iteration}; it is saved.")
        raise Stopped(received)

    def _place(self, iteration: int) -> tuple[int, int]:
        return divmod(iteration - 1, self.loader.batches_per_epoch)  # the epoch, and the number of the batch in it

    def _log_statistics(self) -> None:
        dataset_opt, per_epoch = self.opt["datasets"]["train"], self.loader.batches_per_epoch
        self.logger.info(
            "Training statistics:"
            f"\n\tNumber of train images: {self.loader.num_images}"
            f"\n\tDataset enlarge ratio: {dataset_opt.get('dataset_enlarge_ratio', 1)}"
            f"\n\tBatch size per gpu: {dataset_opt['batch_size_per_gpu']}"
            f"\n\tWorld size (gpu number): {self.opt['world_size']}"
            f"\n\tIterations per epoch: {per_epoch}"
            f"\n\tTotal epochs: {-(-self.end // per_epoch)}; iters: {self.end}."
        )
        for loader in self.val_loaders:
            self.logger.info(f"Number of val images/folders in {loader.dataset.opt['name']}: {len(loader.dataset)}")
