"""ReDSR: representations that keep all of a degradation, learned by reproducing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import LOSS_REGISTRY, MODEL_REGISTRY
from torch import Tensor, nn

from bsr_plugins.archs import ReDSR, ReDSRDegrader, ReDSREncoder, RepresentationNet
from bsr_plugins.degradations import Params, build_degradation, protocol_degradation
from bsr_plugins.errors import OptionError
from bsr_plugins.losses import ModulatedL1Loss, modulation, redegradation_distance
from bsr_plugins.models.alignment import TRIAL_BATCH
from bsr_plugins.models.blind_sr_model import BlindSRModel
from bsr_plugins.registration import register

_GREY_LEVELS = 255


@register(MODEL_REGISTRY)
class ReDSRModel(BlindSRModel):
    """Trains `ReDSR` as the paper does (Liu et al., ECCV 2024), with any of its parts left out.

    Two patches of an image share one degradation. The first is encoded and super-resolved; its representation lets
    the degrader turn the HR patch of the second into its LR patch (Eq. 2–4). Options besides those of `BlindSRModel`:

    * `train.redegradation_opt`: the loss between reproduced and true LR patch, Eq. 4: `{type: L1Loss}`; and
      `network_degrader`, the degrader (`ReDSRDegrader`). Without both it is a network of Table 2 that has no
      re-degradation, and `num_views` is 1;
    * `train.pixel_opt: {type: ModulatedL1Loss}`: Eq. 7 and 8, or a plain loss. The released code has
      `{type: L1Loss, loss_weight: 2}`;
    * `train.representation_opt: {type: EnergyDistanceLoss}`: Eq. 5, or `KLDivergenceLoss`.

    With an `OracleEncoder` (model 9 of Table 2) the network gets the true blur kernel of every image, in validation
    and testing too, from a `PairedDegradationDataset`.

    Logged besides the losses: `redegradation_rmse` (mean d of Eq. 8, in grey levels) and `modulation` (mean W).

    Raises:
        OptionError: The blocks do not fit together.
    """

    def init_training_settings(self) -> None:
        """See `BlindSRModel.init_training_settings`."""
        self.training_network_names = ("degrader",) if _redegrades(self.opt["train"]) else ()
        super().init_training_settings()

    def build_losses(self) -> None:
        """Build the losses that `SRModel` does not know."""
        super().build_losses()
        if self.training_networks:
            self.cri_redegradation = self.build_train_loss("redegradation_opt")

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> None:
        """See `BlindSRModel.check_options`."""
        super().check_options(opt)
        if not opt["is_train"]:
            return
        train_opt, dataset_opt = opt["train"], opt["datasets"]["train"]
        redegrades = _redegrades(train_opt)
        if redegrades != (opt.get("network_degrader") is not None):
            missing, given = ["network_degrader", "train.redegradation_opt"][:: 1 if redegrades else -1]
            raise OptionError(f"{missing}: the block is missing, {given} needs it")
        if _modulated(train_opt) and not redegrades:
            raise OptionError("train.redegradation_opt: the block is missing, ModulatedL1Loss needs it")
        num_views, expected = dataset_opt.get("num_views") or 1, 2 if redegrades else 1
        if num_views != expected or dataset_opt.get("degrade_on") != "device":
            raise OptionError(
                f"datasets.train.num_views: {num_views} with degrade_on: {dataset_opt.get('degrade_on')}, expected "
                f"{expected} with degrade_on: device {'with' if redegrades else 'without'} train.redegradation_opt"
            )

    @classmethod
    def images_per_sample(cls, dataset_opt: Mapping[str, Any]) -> int:  # noqa: ARG003
        """See `BlindSRModel.images_per_sample`; the first view alone."""
        return 1

    @classmethod
    def image_losses(cls, train_opt: Mapping[str, Any]) -> tuple[str, ...]:
        """See `BlindSRModel.image_losses`."""
        stock = () if _modulated(train_opt) else super().image_losses(train_opt)
        return (*stock, "redegradation_opt")

    @classmethod
    def check_networks(cls, opt: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> None:
        """See `BlindSRModel.check_networks`."""
        super().check_networks(opt, networks)
        net_g, degrader = networks["network_g"], networks.get("network_degrader")
        if not isinstance(net_g, RepresentationNet):
            raise OptionError(f"network_g.type: {opt['network_g']['type']!r}, expected a network with a representation")
        if isinstance(net_g, ReDSR) and net_g.needs_kernel:
            _check_kernels(opt, net_g)
        if not opt["is_train"]:
            return
        dataset_opt = opt["datasets"]["train"]
        lr_size = dataset_opt["gt_size"] // opt["scale"]
        if isinstance(net_g, ReDSR) and isinstance(net_g.encoder, ReDSREncoder):
            smallest = net_g.encoder.smallest_side
            if lr_size < smallest:
                raise OptionError(
                    f"datasets.train.gt_size: {dataset_opt['gt_size']}, expected at least {smallest * opt['scale']}, "
                    f"as ReDSREncoder takes LR patches of at least {smallest} pixels"
                )
        if degrader is not None:
            _check_degrader(opt, net_g, degrader)

    def prepare_batch(self, gt: Tensor, lq: Tensor, params: Params) -> None:
        """Take the first view for encoder and generator, the second, if there is one, for the degrader."""
        assert self.degradation is not None
        self.lq, self.gt = lq[:, 0], gt[:, 0]
        if self.training_networks:
            self.other_lq, self.other_gt = lq[:, 1], gt[:, 1]
        if self.needs_kernel:
            self.kernel = self.condition_of(params)["kernel"]

    @property
    def needs_kernel(self) -> bool:
        """Whether `network_g` looks at the true blur kernel."""
        return bool(getattr(self.get_bare_model(self.net_g), "needs_kernel", False))

    @property
    def condition(self) -> dict[str, Tensor]:
        """See `BlindSRModel.condition`."""
        return {"kernel": self.kernel} if self.needs_kernel else {}

    def condition_of(self, params: Params) -> dict[str, Tensor]:
        """See `BlindSRModel.condition_of`."""
        assert self.degradation is not None
        return {"kernel": self.degradation.kernels(params).to(self.device)} if self.needs_kernel else {}

    @classmethod
    def trial_condition(cls, network: nn.Module) -> dict[str, Tensor]:
        """See `BlindSRModel.trial_condition`."""
        if not (isinstance(network, ReDSR) and network.needs_kernel):
            return {}
        size: Any = network.encoder.kernel_size
        return {"kernel": torch.full((TRIAL_BATCH, size, size), 1 / size**2)}

    def compute_losses(self) -> dict[str, Tensor]:
        """Return the losses of Eq. 9, or those of them that the options ask for."""
        self.output, representation = self.run_generator(return_representation=True)
        losses = self.representation_losses(representation)
        if self.training_networks:
            losses |= self.redegradation_losses(representation)
        return losses | self.restoration_losses(self.output, self.gt)

    def redegradation_losses(self, representation: Tensor) -> dict[str, Tensor]:
        """Reproduce the other LR patch; return the loss of that and measure its distance."""
        reproduced = self.training_networks["degrader"](self.other_gt, representation)
        self.distance = redegradation_distance(reproduced, self.other_lq)
        self.figures |= {
            "redegradation_rmse": self.distance.mean() * _GREY_LEVELS,
            "modulation": modulation(self.distance).mean(),
        }
        return {"l_redegradation": self.cri_redegradation(reproduced, self.other_lq)}

    def pixel_loss(self, output: Tensor, gt: Tensor) -> Tensor:
        """Return the loss of `train.pixel_opt`, modulated if it is of that kind."""
        if not isinstance(self.cri_pix, ModulatedL1Loss):
            return super().pixel_loss(output, gt)
        loss: Tensor = self.cri_pix(output, gt, self.distance)
        return loss

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """See `BlindSRModel.feed_data`; whole images come with their `kernel`."""
        super().feed_data(data)
        if self.needs_kernel and "kernel" in data:
            self.kernel = data["kernel"].to(self.device)


def _redegrades(train_opt: Mapping[str, Any]) -> bool:
    return train_opt.get("redegradation_opt") is not None


def _modulated(train_opt: Mapping[str, Any]) -> bool:
    name = (train_opt.get("pixel_opt") or {}).get("type")
    return name in LOSS_REGISTRY and LOSS_REGISTRY.get(name) is ModulatedL1Loss


def _check_degrader(opt: Mapping[str, Any], net_g: Any, degrader: nn.Module) -> None:
    if not isinstance(degrader, ReDSRDegrader):
        raise OptionError(f"network_degrader.type: {opt['network_degrader']['type']!r}, expected 'ReDSRDegrader'")
    if degrader.scale != opt["scale"]:
        raise OptionError(f"network_degrader.scale: {degrader.scale}, expected scale, which is {opt['scale']!r}")
    dim = net_g.encoder.representation_dim
    if degrader.representation_dim != dim:
        raise OptionError(
            f"network_degrader.representation_dim: {degrader.representation_dim}, expected {dim}, as network_g gives"
        )


def _check_kernels(opt: Mapping[str, Any], net_g: ReDSR) -> None:
    """Check that there is a true kernel of the right size wherever the oracle looks."""
    wanted = net_g.encoder.kernel_size
    scale = opt["scale"]
    blurs = {"degradation": build_degradation(opt["degradation"], scale)} if opt["is_train"] else {}
    for phase, dataset_opt in opt["datasets"].items():
        if dataset_opt["type"] != "PairedDegradationDataset":
            raise OptionError(
                f"datasets.{phase}.type: {dataset_opt['type']!r}, expected 'PairedDegradationDataset', which knows "
                "the blur kernels that the oracle encoder wants"
            )
        if dataset_opt.get("protocol") is not None:
            blurs[f"datasets.{phase}.protocol"] = protocol_degradation(dataset_opt["protocol"], scale)
        elif dataset_opt.get("degradation") is not None:
            place = f"datasets.{phase}.degradation"
            blurs[place] = build_degradation(dataset_opt["degradation"], scale, place)
    for place, degradation in blurs.items():
        taps = degradation.kernel_size
        if taps != wanted:
            raise OptionError(
                f"{place}: blurs with {'no single kernel' if taps is None else f'{taps} taps'}, expected kernels of "
                f"{wanted}, as network_g.encoder takes"
            )
