"""ReDSR: representations that keep all of a degradation, learned by reproducing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from bsr_plugins.archs import ReDSRDegrader, RepresentationNet
from bsr_plugins.degradations import Params, build_degradation, protocol_degradation
from bsr_plugins.errors import OptionError
from bsr_plugins.losses import modulation, redegradation_distance
from bsr_plugins.models.blind_sr_model import BlindSRModel
from bsr_plugins.models.step_losses import GENERATOR, same
from bsr_plugins.registration import register

_GREY_LEVELS = 255
_TRIAL_BATCH = 2


@register(MODEL_REGISTRY)
class ReDSRModel(BlindSRModel):
    """Trains `ReDSR` as the paper does (Liu et al., ECCV 2024), with any of its parts left out.

    Two patches of an image share one degradation. The first is encoded and super-resolved; its representation lets
    the degrader turn the HR patch of the second into its LR patch (Eq. 2–4). Options in addition to those of
    `BlindSRModel`:

    * `train.redegradation_opt: {type: L1Loss}`: the loss between reproduced and true LR patch, Eq. 4; and
      `network_degrader` (`ReDSRDegrader`). Without both it is a network of Table 2 that has no re-degradation, and
      `num_views` is 1. With them the other losses may want `distance` (B,), d of Eq. 8;
    * `train.pixel_opt: {type: ModulatedL1Loss}`: Eq. 7 and 8, or a plain loss. The released code has
      `{type: L1Loss, loss_weight: 2}`;
    * `train.representation_opt: {type: EnergyDistanceLoss}`: Eq. 5, or `KLDivergenceLoss`.

    With an `OracleEncoder` (model 9 of Table 2) the network gets the true blur kernel of every image, in validation
    and testing too, from a `PairedDegradationDataset`.

    Logged with the losses: `redegradation_rmse` (mean d of Eq. 8, in grey levels) and `modulation` (mean W).
    """

    restores_every_view = False

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        if not self.is_train:
            self._check_network({})
            self._raise_faults()

    def init_training_settings(self) -> None:
        self._redegrades = redegrades = self.opt["train"].get("redegradation_opt") is not None
        if redegrades != (self.opt.get("network_degrader") is not None):
            missing, given = ["network_degrader", "train.redegradation_opt"][:: 1 if redegrades else -1]
            raise OptionError(f"{missing}: the block is missing, {given} needs it")
        self.training_network_names = ("degrader",) if redegrades else ()
        if self.needs_kernel:  # a flat one, until there is a batch
            size = self.bare_net_g.encoder.kernel_size
            self.condition = {"kernel": torch.full((_TRIAL_BATCH, size, size), 1 / size**2, device=self.device)}
        super().init_training_settings()
        dataset_opt, views, expected = self.opt["datasets"]["train"], self.num_views, 2 if redegrades else 1
        where, kind = dataset_opt.get("degrade_on"), "with" if redegrades else "without"
        wanted = f"expected {expected} with degrade_on: device {kind} train.redegradation_opt"
        line = f"datasets.train.num_views: {views} with degrade_on: {where}, {wanted}"
        self.expect(views == expected and where == "device", line)
        self._check_network({} if self.degradation is None else {"degradation": self.degradation})
        smallest = getattr(getattr(self.bare_net_g, "encoder", None), "smallest_side", 1)
        line = f"datasets.train.gt_size: {dataset_opt.get('gt_size')}, expected at least {smallest * self.opt['scale']}"
        self.expect(self.lq_side >= smallest, f"{line}, as ReDSREncoder takes LR patches of at least {smallest} pixels")
        if redegrades:
            self.require_loss("redegradation_opt", "reproduced", "L1Loss")
            self.try_losses(reproduced=self.lq_side, other_lq=self.lq_side)

    def start_training_network(self, name: str, network: nn.Module) -> None:
        super().start_training_network(name, network)
        if not isinstance(network, ReDSRDegrader):
            kind = self.opt["network_degrader"]["type"]
            raise OptionError(f"network_degrader.type: {kind!r}, expected 'ReDSRDegrader'")
        scale, found = self.opt["scale"], network.representation_dim
        line = f"network_degrader.scale: {network.scale}, expected scale, which is {scale!r}"
        self.expect(network.scale == scale, line)
        dim = getattr(getattr(self.bare_net_g, "encoder", None), "representation_dim", found)
        line = f"network_degrader.representation_dim: {found}, expected {dim}, as network_g gives"
        self.expect(found == dim, line)

    def offers(self, key: str) -> dict[str, str]:
        if key == "redegradation_opt":
            pair = {"pred": "reproduced", "sr": "reproduced", "x": "reproduced", "target": "other_lq", "gt": "other_lq"}
            return pair | same("representation", GENERATOR)
        return super().offers(key) | (same("distance") if self._redegrades else {})

    def prepare_batch(self, gt: Tensor, lq: Tensor, params: Params) -> None:  # noqa: ARG002
        """Take the first view for encoder and generator, the second, if there is one, for the degrader."""
        self.lq, self.gt = lq[:, 0], gt[:, 0]
        if self.training_networks:
            self.other_lq, self.other_gt = lq[:, 1], gt[:, 1]

    @property
    def needs_kernel(self) -> bool:
        """Whether `network_g` looks at the true blur kernel."""
        return bool(getattr(self.bare_net_g, "needs_kernel", False))

    def condition_of(self, params: Params) -> dict[str, Tensor]:
        assert self.degradation is not None
        return {"kernel": self.degradation.kernels(params).to(self.device)} if self.needs_kernel else {}

    def compute_losses(self) -> dict[str, Tensor]:
        found = self.run_generator(with_representation=True)
        losses = self.losses_of(found)
        return losses | self.losses_of(found, self.redegrade(found["representation"]))

    def redegrade(self, representation: Tensor) -> dict[str, Tensor]:
        """Reproduce the other LR patch, if there is one; return what losses can ask for of it."""
        if not self.training_networks:
            return {}
        reproduced = self.training_networks["degrader"](self.other_gt, representation)
        distance = redegradation_distance(reproduced, self.other_lq)
        self.figures["redegradation_rmse"] = distance.mean() * _GREY_LEVELS
        self.figures["modulation"] = modulation(distance).mean()
        return {"reproduced": reproduced, "other_lq": self.other_lq, "distance": distance}

    def feed_data(self, data: Mapping[str, Any]) -> None:
        super().feed_data(data)
        if self.needs_kernel and "kernel" in data:
            self.condition = {"kernel": data["kernel"].to(self.device)}

    def _check_network(self, blurs: dict[str, Any]) -> None:
        """Check that `network_g` has a representation, and that `blurs` and datasets have kernels for its oracle."""
        line = f"network_g.type: {self.opt['network_g']['type']!r}, expected a network with a representation"
        self.expect(isinstance(self.bare_net_g, RepresentationNet), line)
        if not self.needs_kernel:
            return
        scale, wanted = self.opt["scale"], self.bare_net_g.encoder.kernel_size
        for phase, dataset_opt in self.opt["datasets"].items():
            kind, place = dataset_opt["type"], f"datasets.{phase}"
            reason = "which knows the blur kernels that the oracle encoder wants"
            line = f"{place}.type: {kind!r}, expected 'PairedDegradationDataset', {reason}"
            self.expect(kind == "PairedDegradationDataset", line)
            protocol, block = dataset_opt.get("protocol"), dataset_opt.get("degradation")
            if protocol is not None:
                blurs[f"{place}.protocol"] = protocol_degradation(protocol, scale)
            elif block is not None:
                blurs[f"{place}.degradation"] = build_degradation(block, scale, f"{place}.degradation")
        for place, degradation in blurs.items():
            taps = degradation.kernel_size
            found = "no single kernel" if taps is None else f"{taps} taps"
            line = f"{place}: blurs with {found}, expected kernels of {wanted}, as network_g.encoder takes"
            self.expect(taps == wanted, line)
