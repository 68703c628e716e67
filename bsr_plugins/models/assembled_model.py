"""What a training model is made of: options, degradation, networks, losses, EMA copy; built, and checked to fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from basicsr.archs import build_network
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY
from pydantic import Field
from torch import Tensor, nn

from bsr_plugins.archs import RepresentationNet
from bsr_plugins.atomic_file import write_atomically
from bsr_plugins.blocks import build_from_block
from bsr_plugins.data.patches import calibration_patches
from bsr_plugins.degradations import build_degradation
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.models.feature_tap import FeatureTap, find_tap
from bsr_plugins.models.step_guard import StepGuard, StepGuardOptions
from bsr_plugins.models.step_losses import GENERATOR, SUFFIX, StepLoss, build_loss, grey_images, same
from bsr_plugins.models.synchronised_batch_norm import synchronised
from bsr_plugins.options.declared import OptionBlock, read_block

CALIBRATION_FILE = "degradation_calibration.json"
_TRIAL_SIDE = 48  # of LR images where the options do not say it

Block = TypeVar("Block", bound=OptionBlock)


class ChannelDropout(OptionBlock):
    """Dropout of whole channels of the features before the last convolution.

    Source: Kong et al., CVPR 2022, "Reflash Dropout in Image Super-Resolution".
    """

    p: float = Field(
        ge=0,
        lt=1,
        description="Probability that a channel of an image is zero; the others are divided by 1 - p. Simple-Align's "
        "is 0.7 for SRResNet and 0.5 for RRDB, MSRN and SwinIR.",
    )


class AssembledModel(SRModel):  # type: ignore[misc]  # BasicSR carries no annotations
    """The parts of a `BlindSRModel`, checked while they are built; faults are raised together where they can be."""

    class Options(OptionBlock):
        """Keys at the top of the option file."""

        degradation: Mapping[str, Any] | None = Field(
            default=None, description="What degrades HR views on the training device, with `degrade_on: device`."
        )

    class TrainOptions(StepGuardOptions):
        """Keys of the block `train` that are neither losses nor BasicSR's."""

        dropout: ChannelDropout | None = Field(
            default=None, description="Drops channels of the features before the last convolution at random."
        )
        tap_layer: str | None = Field(
            default=None,
            description="The layer before which dropout and losses of features work, as a module's path in "
            "`network_g`; null is the last Conv2d that runs.",
        )

    options: Options
    train_options: TrainOptions
    condition: dict[str, Tensor]  # what `network_g` gets with the LR images, by the names of its arguments
    training_network_names: tuple[str, ...] = ()
    restores_every_view = True  # and not one view of each sample alone

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt["num_gpu"] != 0 and not torch.cuda.is_available():
            raise OptionError(f"num_gpu: {opt['num_gpu']}, but there is no CUDA device here, expected 0")
        if opt["is_train"] and not opt["dist"] and opt["num_gpu"] > 1:
            line = f"num_gpu: {opt['num_gpu']} in one process, expected 1, or torchrun with --launcher pytorch"
            raise OptionError(line)
        self._faults: list[str] = []
        self.options = _read_own(type(self).Options, opt, "")
        try:
            super().__init__(opt)
        except OptionError as error:
            raise OptionError(*self._faults, *error.lines) from error
        self._raise_faults()

    def init_training_settings(self) -> None:
        """Build what only training needs; a method's model checks after it, by `expect`, what it wants of that."""
        self.net_g.train()
        self.train_options = _read_own(type(self).TrainOptions, self.opt["train"], "train")
        self.guard = StepGuard(self.train_options)
        where, block = self.opt["datasets"]["train"].get("degrade_on"), self.options.degradation
        if (where == "device") != (block is not None):
            raise OptionError(
                f"degradation: the block is {'missing' if block is None else 'given'}, but datasets.train.degrade_on "
                f"is {where!r}; expected the block with degrade_on: device only"
            )
        self.degradation = None if block is None else build_degradation(block, self.opt["scale"])
        self.training_networks = {name: self._build_training_network(name) for name in self.training_network_names}
        self._build_losses()
        self._check_losses()
        self.try_losses(sr=self.lq_side * self.opt["scale"], gt=self.lq_side * self.opt["scale"], lq=self.lq_side)
        self.tap = self._find_tap()
        self._make_average()
        self.setup_optimizers()
        self.setup_schedulers()

    def expect(self, fits: bool, line: str) -> None:
        """Say, while the model is built, whether its blocks fit; if not, the first `line` about a key is raised."""
        if not fits and line.partition(":")[0] not in {fault.partition(":")[0] for fault in self._faults}:
            self._faults.append(line)

    def _raise_faults(self) -> None:
        if self._faults:
            raise OptionError(*self._faults)

    def offers(self, key: str) -> dict[str, str]:  # noqa: ARG002  (a method's step may offer a block other things)
        """Return what a step offers to the loss `train.KEY`: parameters of `forward`, and the quantity for each."""
        images = {"pred": "sr", "sr": "sr", "x": "sr", "target": "gt", "gt": "gt", "lq": "lq"}
        return images | same("representation", "features", "paired_features", "views", GENERATOR)

    def wanted(self, *quantities: str) -> list[str]:
        """Return the keys of the losses that want one of some quantities."""
        return [key for key, loss in self.losses.items() if not loss.quantities.isdisjoint(quantities)]

    def require_loss(self, key: str, quantity: str, example: str) -> None:
        """Expect a loss that wants a quantity, as a rule that of `train.KEY`."""
        if self.wanted(quantity):
            return
        name = type(self).__name__
        if self.opt["train"].get(key) is None:
            self.expect(False, f"train.{key}: the block is missing, {name} needs it, or another loss of {quantity}")
        elif key in self.losses:  # otherwise it is at fault itself
            kind = self.opt["train"][key]["type"]
            self.expect(False, f"train.{key}.type: {kind!r}, expected a loss of {quantity}, such as {example!r}")

    def try_losses(self, **sides: int) -> None:
        """Compute for trial the losses that want nothing but square images of some sides, by quantity."""
        for loss in self.losses.values():
            try:
                loss.try_on(grey_images(sides, self.device))
            except OptionError as error:
                self._faults += error.lines

    @property
    def num_views(self) -> int:
        """How many views of an image the training dataset gives."""
        views: int = self.opt["datasets"]["train"].get("num_views") or 1
        return views

    @property
    def lq_side(self) -> int:
        """The side of the LR patches that are trained on."""
        size: int | None = self.opt["datasets"]["train"].get("gt_size")
        return _TRIAL_SIDE if size is None else size // int(self.opt["scale"])

    @property
    def bare_net_g(self) -> Any:
        """`network_g` without a wrapper."""
        return self.get_bare_model(self.net_g)

    def _build_losses(self) -> None:
        """Build the loss of every block `train.KEY_opt` that is not null, and that the model does not declare."""
        self.losses: dict[str, StepLoss] = {}
        taken: dict[str, str] = {}
        for key, block in self.opt["train"].items():
            if not key.endswith(SUFFIX) or key in type(self).TrainOptions.model_fields or block is None:
                continue
            try:
                loss = build_loss(key, block, self.offers(key), type(self).__name__, self.device)
            except OptionError as error:
                self._faults += error.lines
                continue
            clash = next((taken[name] for name in loss.names if name in taken), None)
            line = f"train.{key}: is logged as {loss.names[0]}, like train.{clash}, expected another key"
            self.expect(clash is None, line)
            taken |= dict.fromkeys(loss.names, key)
            self.losses[key] = loss

    def _check_losses(self) -> None:
        """Check that losses, dropout and tap fit the networks and the dataset."""
        dataset_opt, kind = self.opt["datasets"]["train"], self.opt["network_g"]["type"]
        if not self._faults:  # a loss that is at fault may be the one
            self.require_loss("pixel_opt", "sr", "L1Loss")
        images = dataset_opt.get("batch_size_per_gpu", 2) * self.opt["world_size"]
        images *= self.num_views if self.restores_every_view else 1
        for loss in self.losses.values():
            least = getattr(loss.module, "least_batch", 1)
            line = f"{images}, expected at least {least} in all for {loss.block['type']}"
            self.expect(images >= least, f"datasets.train.batch_size_per_gpu: {line}")
        for key in self.wanted("representation")[:1]:
            line = f"{kind!r} gives no representation, expected one that does, for train.{key}"
            self.expect(isinstance(self.bare_net_g, RepresentationNet), f"network_g.type: {line}")
        for key in self.wanted("paired_features")[:1]:
            line = f"{dataset_opt.get('degrade_on')!r}; expected 'device', as every image is degraded a second time"
            self.expect(self.degradation is not None, f"train.{key}: given, but datasets.train.degrade_on is {line}")

    def _find_tap(self) -> FeatureTap | None:
        """Find the layer before which features of `network_g` are looked at or changed, if they are."""
        layer = self.train_options.tap_layer
        if self.train_options.dropout is None and not self.wanted("features", "paired_features"):
            self.expect(layer is None, f"train.tap_layer: {layer!r}, expected train.align_opt or train.dropout with it")
            return None
        if self._faults:
            return None
        return find_tap(self.net_g, grey_images({"lq": self.lq_side}, self.device)["lq"], layer, self.condition)

    def _build_training_network(self, name: str) -> nn.Module:
        key = f"network_{name}"
        if self.opt.get(key) is None:
            raise OptionError(f"{key}: the block is missing, {type(self).__name__} needs it")
        network: nn.Module = build_from_block(self.opt[key], dict(iter(ARCH_REGISTRY)), key).to(self.device)
        self.start_training_network(name, network)
        load_path = self.opt["path"].get(f"pretrain_{key}")
        if load_path is not None:
            self.load_network(network, load_path, self.opt["path"].get(f"strict_load_{name}", True))
        wrapped: nn.Module = self.model_to_device(network)
        self.print_network(wrapped)
        return wrapped

    def start_training_network(self, name: str, network: nn.Module) -> None:
        """Check that a bare network for training fits `network_g`, and let it start; its checkpoint is loaded after."""

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Put a network on the device and wrap it; its batch normalisation is that of all ranks in training."""
        if self.is_train and self.opt["dist"]:
            net = synchronised(net, self.device)
        wrapped: nn.Module = super().model_to_device(net)
        return wrapped

    def setup_optimizers(self) -> None:
        """Set up one optimiser, `train.optim_g`, over all networks."""
        networks = (self.net_g, *self.training_networks.values())
        parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
        settings = {key: value for key, value in self.opt["train"]["optim_g"].items() if key != "type"}
        self.optimizer_g = self.get_optimizer(self.opt["train"]["optim_g"]["type"], parameters, **settings)
        self.optimizers.append(self.optimizer_g)

    def _make_average(self) -> None:
        self.ema_decay = self.opt["train"].get("ema_decay", 0)
        if self.ema_decay <= 0:
            return
        get_root_logger().info(f"Use Exponential Moving Average with decay: {self.ema_decay}")
        self.net_g_ema = build_network(self.opt["network_g"]).to(self.device)
        load_path = self.opt["path"].get("pretrain_network_g")
        if load_path is None:
            self.model_ema(0)
        else:
            self.load_network(self.net_g_ema, load_path, self.opt["path"].get("strict_load_g", True), "params_ema")
        self.net_g_ema.eval()

    def model_ema(self, decay: float = 0.999) -> None:
        super().model_ema(decay)
        buffers = dict(self.bare_net_g.named_buffers())
        for name, buffer in self.net_g_ema.named_buffers():
            buffer.copy_(buffers[name])

    def save(self, epoch: int, current_iter: int) -> None:
        for name, network in self.training_networks.items():
            self.save_network(network, f"net_{name}", current_iter)
        super().save(epoch, current_iter)

    def calibrate(self) -> None:
        """Read what the run has measured for adaptive sampling, or measure it and save it, at the first step.

        Raises:
            BSRError: What the run's folder has cannot be used, or a training image cannot be read.
        """
        if self.degradation is None or not self.degradation.needs_calibration:
            return
        file = Path(self.opt["path"]["experiments_root"]) / CALIBRATION_FILE
        if file.is_file():
            try:
                self.degradation.load_calibration(json.loads(file.read_text()))
            except (OSError, ValueError) as error:
                raise BSRError(f"{file}: cannot be used ({error}), expected what this run has measured") from error
            return
        self.degradation.calibrate(calibration_patches(self.opt["datasets"]["train"]).to(self.device))
        if self.opt["rank"] == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(self.degradation.calibration()).encode())
        get_root_logger().info(f"Measured the degraded distances for adaptive sampling; saved as {file}.")


def _read_own(kind: type[Block], block: Mapping[str, Any], where: str) -> Block:
    """Read those keys of a block that a class declares."""
    return read_block(kind, {key: block[key] for key in kind.model_fields if key in block}, where)
