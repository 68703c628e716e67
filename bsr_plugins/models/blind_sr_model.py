"""The training model that the methods of this package build on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from torch import Tensor, nn

from bsr_plugins.archs import RepresentationNet
from bsr_plugins.atomic_file import write_atomically
from bsr_plugins.blocks import build_from_block
from bsr_plugins.data.calibration_patches import calibration_patches
from bsr_plugins.degradations import Degradation, Params, build_degradation
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.losses import AlignmentLoss, RepresentationLoss
from bsr_plugins.models.alignment import check_alignment, first_half, join, tapped_generator
from bsr_plugins.models.loss_kinds import check_batch, check_image_loss, check_loss_kind
from bsr_plugins.models.whole_batch_model import WholeBatchModel
from bsr_plugins.models.window_padding import super_resolve
from bsr_plugins.registration import register
from bsr_plugins.whole_batch import gather_batch

CALIBRATION_FILE = "degradation_calibration.json"


@register(MODEL_REGISTRY)
class BlindSRModel(WholeBatchModel):
    """BasicSR's `SRModel` with the degradation on the training device and the step cut into overridable parts.

    A step is `prepare_batch`, `compute_losses`, `take_step`, `after_step`; a method's model overrides `compute_losses`
    and little else. Besides the options of `SRModel` it reads:

    * `degradation`: the block that `build_degradation` takes. The dataset then gives HR views only
      (`degrade_on: device`), which are degraded here; draws depend on `manual_seed`, the iteration and a sample's place
      in the batch of all ranks alone. With a dataset that gives `lq` itself, the block is left out. What an `ads`
      sampler has measured is saved with the run as `degradation_calibration.json`, and read back when the run resumes.
    * `train.representation_opt`: a loss on the representations that `network_g` gives besides its images, e.g.
      `EnergyDistanceLoss`; for any `RepresentationNet`. Mean and spread of the representations are logged with it.
    * `train.align_opt: {type: AlignmentLoss}`: every image is degraded a second time, `network_g` runs on both in one
      pass, and features of equal mean and covariance are asked for (Simple-Align). The other losses see the first
      degradation alone, though batch normalisation sees both. The terms are logged by name.
    * `train.dropout: {p: 0.7}`: channels of these features are dropped at random; see `ChannelDropout`. With
      `align_opt` too, what is aligned are the features before.
    * `train.tap_layer: conv_hr`: the layer before which both work, as a module's path in `network_g`; without it, it
      is the last `Conv2d` that runs. See `find_tap`.
    * `network_NAME` for every name in `training_network_names`: a network that only training needs, saved as
      `net_NAME_*.pth`, resumed, put on the device and wrapped for DDP like `network_g`.

    The EMA copy takes over buffers as well as parameters: stock EMA leaves batch normalisation's running statistics
    where they started.

    Several processes, each with its part of the batch, do what one does with the whole: what is drawn, what losses
    compare, batch normalisation's statistics and the figures that are logged are those of all ranks.

    Raises:
        OptionError: An option cannot be used on this machine or does not fit the others.
    """

    training_network_names: tuple[str, ...] = ()

    def __init__(self, opt: dict[str, Any]) -> None:
        self.check_options(opt)
        super().__init__(opt)

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> None:
        """Check, before anything is built, whether the options fit the machine and each other.

        Raises:
            OptionError: They do not.
        """
        check_device(opt)
        if opt["is_train"]:
            views = opt["datasets"]["train"].get("degrade_on") == "device"
            if views != (opt.get("degradation") is not None):
                raise OptionError(
                    f"degradation: the block is {'missing' if views else 'given'}, but datasets.train.degrade_on is "
                    f"{opt['datasets']['train'].get('degrade_on')!r}; expected the block with degrade_on: device only"
                )
            check_loss_kind(opt["train"], "representation_opt", RepresentationLoss)
            check_batch(opt)
            check_alignment(opt, cls.images_per_sample(opt["datasets"]["train"]))
            for key in cls.image_losses(opt["train"]):
                check_image_loss(opt["train"], key)

    @classmethod
    def images_per_sample(cls, dataset_opt: Mapping[str, Any]) -> int:
        """Return how many images of a sample of the training dataset are super-resolved; here all of its views."""
        views: int = dataset_opt.get("num_views") or 1
        return views

    @classmethod
    def image_losses(cls, train_opt: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG003  (a method's options may tell)
        """Return the keys under `train` of the losses that compare two images and nothing else."""
        return ("pixel_opt",)

    @classmethod
    def check_networks(cls, opt: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> None:
        """Check whether the networks, by the keys of their blocks, fit the options and each other.

        Raises:
            OptionError: They do not.
        """
        wanted = opt["is_train"] and opt["train"].get("representation_opt") is not None
        if wanted and not isinstance(networks["network_g"], RepresentationNet):
            raise OptionError(
                f"network_g.type: {opt['network_g']['type']!r} gives no representation, expected one that does, for "
                "train.representation_opt"
            )
        if opt["is_train"]:
            tapped_generator(opt, networks["network_g"], cls.trial_condition(networks["network_g"]))

    @classmethod
    def trial_condition(cls, network: nn.Module) -> dict[str, Tensor]:  # noqa: ARG003  (a method's network may tell)
        """Return what a bare `network_g` gets besides the `TRIAL_BATCH` images of a trial run; here nothing."""
        return {}

    def init_training_settings(self) -> None:
        """Build what only training needs: degradation, networks, losses, optimiser and schedulers."""
        self.degradation = self._build_degradation()
        self.training_networks = {name: self._build_training_network(name) for name in self.training_network_names}
        self.build_losses()
        super().init_training_settings()

    def build_losses(self) -> None:
        """Build the losses that `SRModel` does not know."""
        self.cri_representation: nn.Module | None = None
        if self.opt["train"].get("representation_opt") is not None:
            self.cri_representation = self.build_train_loss("representation_opt")
        self.cri_align: AlignmentLoss | None = None
        if self.opt["train"].get("align_opt") is not None:
            self.cri_align = cast(AlignmentLoss, self.build_train_loss("align_opt"))
        self.tapped = tapped_generator(self.opt, self.net_g, self.trial_condition(self.get_bare_model(self.net_g)))

    def build_train_loss(self, key: str) -> nn.Module:
        """Build the loss that the block `train.KEY` describes."""
        block = self.opt["train"].get(key)
        if block is None:
            raise OptionError(f"train.{key}: the block is missing, {type(self).__name__} needs it")
        loss: nn.Module = build_from_block(block, dict(iter(LOSS_REGISTRY)), f"train.{key}")
        return loss.to(self.device)

    def _build_degradation(self) -> Degradation | None:
        block = self.opt.get("degradation")
        return None if block is None else build_degradation(block, self.opt["scale"])

    def calibrate(self) -> None:
        """Read the run's calibration, or measure it on training images and save it with the run.

        The first step does it: by then the run has its folder, which an earlier run of its name has been moved out of,
        and a run whose options are only checked measures nothing.

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
        _write_json(file, self.degradation.calibration())
        get_root_logger().info(f"Measured the degraded distances for adaptive sampling; saved as {file}.")

    def _build_training_network(self, name: str) -> nn.Module:
        key = f"network_{name}"
        if key not in self.opt:
            raise OptionError(f"{key}: the block is missing, {type(self).__name__} needs it")
        network: nn.Module = build_from_block(self.opt[key], dict(iter(ARCH_REGISTRY)), key)
        load_path = self.opt["path"].get(f"pretrain_{key}")
        if load_path is None:
            self.start_training_network(name, network.to(self.device))
        else:
            self.load_network(network, load_path, self.opt["path"].get(f"strict_load_{name}", True))
        wrapped: nn.Module = self.model_to_device(network)
        self.print_network(wrapped)
        return wrapped

    def start_training_network(self, name: str, network: nn.Module) -> None:
        """Set up a network for training that no checkpoint was given for; here nothing has to be done."""

    def setup_optimizers(self) -> None:
        """Set up one optimiser, `train.optim_g`, over `network_g` and the networks for training."""
        networks = (self.net_g, *self.training_networks.values())
        parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
        settings = {key: value for key, value in self.opt["train"]["optim_g"].items() if key != "type"}
        self.optimizer_g = self.get_optimizer(self.opt["train"]["optim_g"]["type"], parameters, **settings)
        self.optimizers.append(self.optimizer_g)

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Take a batch: `lq` (and `gt`), or only HR views `gt`, shape (B, V, 3, H, W), to be degraded here."""
        if "lq" in data:
            super().feed_data(data)
        else:
            self.gt_views = data["gt"].to(self.device, non_blocking=True)

    def optimize_parameters(self, current_iter: int) -> None:
        """Do one training step and fill `log_dict` with every loss and every figure by name."""
        self.calibrate()
        self.current_iter = current_iter
        self.figures: dict[str, Tensor] = {}
        self.alignment_losses: dict[str, Tensor] = {}
        if self.degradation is not None:
            self.prepare_batch(*self.degrade(self.gt_views))
        losses = self.compute_losses()
        losses |= self.alignment_losses
        self.take_step(losses)
        self.after_step()
        self.log_dict = self.reduce_loss_dict({name: value.detach() for name, value in (losses | self.figures).items()})

    @torch.no_grad()
    def degrade(self, gt: Tensor) -> tuple[Tensor, Tensor, Params]:
        """Draw one degradation per sample and apply it to all of the sample's views.

        Returns:
            The views to be reproduced (B, V, 3, H, W), which are `gt` or made from it (`Degradation.target`), their LR
            views (B, V, 3, h, w) and the drawn parameters.
        """
        assert self.degradation is not None
        gt = self.degradation.target(gt)
        self.batch_size = len(gt)
        self.params = self.draw("degradation", len(gt), self.degradation.sample)
        return gt, self.degradation(gt, self.params), self.params

    @torch.no_grad()
    def degrade_again(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw a second degradation for every image of the batch.

        Returns:
            The LR images of `self.gt` under it, (N, 3, h, w), and the `condition` that goes with them.
        """
        assert self.degradation is not None
        self.pair_params = self.draw("degradation pair", len(self.gt), self.degradation.sample)
        return self.degradation(self.gt, self.pair_params), self.condition_of(self.pair_params)

    def prepare_batch(self, gt: Tensor, lq: Tensor, params: Params) -> None:  # noqa: ARG002  (methods may want them)
        """Set `self.lq` and `self.gt` from degraded views; here every view is a sample of its own."""
        self.lq, self.gt = lq.flatten(0, 1), gt.flatten(0, 1)

    def compute_losses(self) -> dict[str, Tensor]:
        """Run the networks on the batch and return every weighted loss by name; their sum is minimised."""
        if self.cri_representation is None:
            self.output = self.run_generator()
            return self.restoration_losses(self.output, self.gt)
        self.output, representation = self.run_generator(return_representation=True)
        return self.restoration_losses(self.output, self.gt) | self.representation_losses(representation)

    def run_generator(self, **arguments: Any) -> Any:
        """Run `network_g` on `lq` in training, as `train.align_opt` and `train.dropout` want it.

        Every pass of a step whose output is trained on goes through here. With `train.align_opt` it is one on `lq` and
        on the same images under a second degradation; the loss of its features is kept for the step.

        Args:
            arguments: What `network_g` is asked besides, e.g. `return_representation`.

        Returns:
            What `network_g` gives for `lq`; see `method_part`.
        """
        if self.tapped is None:
            return self.net_g(self.lq, **self.condition, **arguments)
        lq, condition = self.lq, self.condition
        if self.cri_align is not None:
            pair_lq, pair_condition = self.degrade_again()
            lq, condition = torch.cat([lq, pair_lq]), join(condition, pair_condition)
        images = len(self.lq)
        draw = partial(self.draw, "dropout", images, passes=len(lq) // images)
        result, features = self.tapped.run(self.net_g, lq, condition | arguments, draw)
        if self.cri_align is None:
            return result
        generator = self.shared_generator("align_opt")
        total, terms = self.cri_align.measure(features, generator, self.views_of(images))
        self.alignment_losses = {"l_align": total}
        self.figures |= {f"align_{name}": term for name, term in terms.items()}
        return self.method_part(result)

    def method_part(self, result: Any) -> Any:
        """Return the part of what `network_g` gave for `lq` and its pair that the other losses see: that for `lq`."""
        return first_half(result)

    def representation_losses(self, representation: Tensor) -> dict[str, Tensor]:
        """Return the loss of `train.representation_opt`, and log mean and spread of the representations."""
        if self.cri_representation is None:
            return {}
        everyones = gather_batch(representation.detach())
        self.figures |= {
            "representation_mean": everyones.mean(),
            "representation_std": everyones.std(dim=0, correction=0).mean(),
        }
        generator = self.shared_generator("representation_opt")
        return {"l_representation": self.cri_representation(representation, generator)}

    def restoration_losses(self, output: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """Return the losses of `train.pixel_opt` and `train.perceptual_opt` between SR and HR images."""
        losses = {}
        if self.cri_pix is not None:
            losses["l_pix"] = self.pixel_loss(output, gt)
        if self.cri_perceptual is not None:
            perceptual, style = self.cri_perceptual(output, gt)
            losses |= {"l_percep": perceptual} if perceptual is not None else {}
            losses |= {"l_style": style} if style is not None else {}
        return losses

    def pixel_loss(self, output: Tensor, gt: Tensor) -> Tensor:
        """Return the loss of `train.pixel_opt`."""
        loss: Tensor = self.cri_pix(output, gt)
        return loss

    def take_step(self, losses: Mapping[str, Tensor]) -> None:
        """Backpropagate the sum of the losses and update parameters and EMA."""
        self.optimizer_g.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self.after_backward()
        self.optimizer_g.step()
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def after_backward(self) -> None:
        """Change gradients before they are used; here nothing is changed."""

    def after_step(self) -> None:
        """Update what follows the networks without a gradient; here there is nothing."""

    @property
    def condition(self) -> dict[str, Tensor]:
        """What `network_g` gets besides the LR images, by the names of its arguments; here nothing."""
        return {}

    def condition_of(self, params: Params) -> dict[str, Tensor]:  # noqa: ARG002  (a method's network may want them)
        """What `condition` is for images that were degraded with certain parameters; here nothing."""
        return {}

    def test(self) -> None:
        """Super-resolve `lq` of any size to `output`, with the EMA copy of the network if there is one.

        Ranks validate different images, so the network runs without DDP's wrapper: that would wait for the other ranks
        wherever there are buffers, such as batch normalisation's.
        """
        net: nn.Module = self.net_g_ema if hasattr(self, "net_g_ema") else self.get_bare_model(self.net_g)
        training = net.training
        net.eval()
        with torch.no_grad():
            self.output = super_resolve(net, self.lq, **self.condition)
        net.train(training)

    def model_ema(self, decay: float = 0.999) -> None:
        """Move the EMA copy's parameters towards `network_g`, and copy its buffers."""
        super().model_ema(decay)
        buffers = dict(self.get_bare_model(self.net_g).named_buffers())
        for name, buffer in self.net_g_ema.named_buffers():
            buffer.copy_(buffers[name])

    def save(self, epoch: int, current_iter: int) -> None:
        """Save `network_g`, the networks for training and the training state."""
        for name, network in self.training_networks.items():
            self.save_network(network, f"net_{name}", current_iter)
        super().save(epoch, current_iter)


def check_device(opt: Mapping[str, Any]) -> None:
    """Check that the machine has what `num_gpu` asks for.

    Raises:
        OptionError: There is no CUDA device, or several are to be trained on from one process.
    """
    if opt["num_gpu"] != 0 and not torch.cuda.is_available():
        raise OptionError(f"num_gpu: {opt['num_gpu']}, but there is no CUDA device here, expected 0")
    if opt["is_train"] and not opt["dist"] and opt["num_gpu"] > 1:
        raise OptionError(f"num_gpu: {opt['num_gpu']} in one process, expected 1, or torchrun with --launcher pytorch")


@master_only  # type: ignore[untyped-decorator]
def _write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(content).encode())  # at once, as other ranks read it
