"""What DASR and AACL share: an encoder that learns by momentum contrast, at first alone, then with the restoration."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.dist import all_reduce_params
from torch import Tensor, nn

from bsr_plugins.archs import MoCo
from bsr_plugins.blocks import call_with, integer, number, placed
from bsr_plugins.errors import OptionError
from bsr_plugins.losses import InfoNCELoss
from bsr_plugins.metrics.representation import embedding_spread
from bsr_plugins.models.blind_sr_model import BlindSRModel
from bsr_plugins.models.loss_kinds import check_loss_kind
from bsr_plugins.whole_batch import gather_batch


class EncoderPhase(NamedTuple):
    """The first iterations, in which only the encoder learns.

    DASR's are 100 epochs at 1e-3, a tenth of it after 60, an epoch being 1000 iterations.

    Attributes:
        iters: How many they are; 0 for none.
        lr: The learning rate at first.
        milestones: After how many iterations it is multiplied by `gamma`.
        gamma: See there.
    """

    iters: int = 0
    lr: float = 1e-3
    milestones: Sequence[int] = ()
    gamma: float = 0.1

    def lr_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration, which counts from 1."""
        return self.lr * self.gamma ** sum(iteration > milestone for milestone in self.milestones)


class ContrastiveModel(BlindSRModel, ABC):
    """A training model with `network_moco`; a method's model chooses queries and keys in `prepare_batch`.

    That sets `lq`, `gt` (the queries and their HR patches) and `key_lq` (B, C, h, w) or (B, M, C, h, w).
    Options besides those of `BlindSRModel`:

    * `network_moco`: the key side (`MoCo`);
    * `train.contrastive_opt`: the loss (`InfoNCELoss`);
    * `train.encoder_phase: {iters: N, lr: 0.001, milestones: [], gamma: 0.1}`: see `EncoderPhase`. The schedule of
      `train.scheduler` and the warm-up count from the end of the phase; `total_iter` includes it.

    Logged besides the losses: `contrast_accuracy` (how often a positive beats every key in the queue; chance is
    1 / (1 + number of keys)) and `embedding_spread` (0 collapsed, 1 even).
    """

    training_network_names = ("moco",)

    def build_losses(self) -> None:
        """Build the contrastive loss and read the settings of the encoder phase."""
        super().build_losses()
        self.cri_contrast = self.build_train_loss("contrastive_opt")
        self.encoder_phase = _encoder_phase(self.opt["train"])

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> None:
        """See `BlindSRModel.check_options`."""
        super().check_options(opt)
        if not opt["is_train"]:
            return
        dataset_opt, train_opt = opt["datasets"]["train"], opt["train"]
        blocks = {"degradation": opt, "network_moco": opt, "train.contrastive_opt": train_opt}
        for place, holder in blocks.items():
            if holder.get(place.removeprefix("train.")) is None:
                raise OptionError(f"{place}: the block is missing, {cls.__name__} needs it")
        if dataset_opt.get("degrade_on") != "device":
            raise OptionError(
                f"datasets.train.degrade_on: {dataset_opt.get('degrade_on')!r}, expected 'device', "
                f"since {cls.__name__} contrasts views under one degradation"
            )
        check_loss_kind(train_opt, "contrastive_opt", InfoNCELoss)
        _encoder_phase(train_opt)

    @classmethod
    def images_per_sample(cls, dataset_opt: Mapping[str, Any]) -> int:  # noqa: ARG003
        """See `BlindSRModel.images_per_sample`; the query alone."""
        return 1

    @classmethod
    def keys_per_query(cls, train_opt: Mapping[str, Any]) -> int:  # noqa: ARG003  (a method's options may tell)
        """Return how many keys each query is contrasted with."""
        return 1

    @classmethod
    def check_networks(cls, opt: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> None:
        """See `BlindSRModel.check_networks`."""
        super().check_networks(opt, networks)
        if not opt["is_train"]:
            return
        net_g, moco = networks["network_g"], networks["network_moco"]
        if not isinstance(moco, MoCo):
            raise OptionError(f"network_moco.type: {opt['network_moco']['type']!r}, expected 'MoCo'")
        if not isinstance(getattr(net_g, "encoder", None), nn.Module):
            raise OptionError(f"network_g.type: {opt['network_g']['type']!r}, expected a network with an encoder")
        batch = opt["datasets"]["train"]["batch_size_per_gpu"] * opt["world_size"]
        with placed("network_moco"):
            moco.check_encoder(net_g.encoder)  # type: ignore[arg-type]
            moco.check_queue(batch * cls.keys_per_query(opt["train"]))

    @property
    def bare_moco(self) -> Any:
        """The `MoCo` network without a wrapper."""
        return self.get_bare_model(self.training_networks["moco"])

    @property
    def bare_net_g(self) -> Any:
        """`network_g` without a wrapper."""
        return self.get_bare_model(self.net_g)

    def start_training_network(self, name: str, network: nn.Module) -> None:
        """Let the key side start where the encoder is."""
        super().start_training_network(name, network)
        self.check_networks(self.opt, {"network_g": self.bare_net_g, "network_moco": network})
        network.start_from(self.bare_net_g.encoder)  # type: ignore[operator]

    @property
    def in_encoder_phase(self) -> bool:
        """Whether only the encoder learns at the current iteration."""
        return self.current_iter <= self.encoder_phase.iters

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Set the learning rate: the phase's own, then the schedule from its beginning."""
        since = current_iter - self.encoder_phase.iters
        if since <= 0:
            lr = self.encoder_phase.lr_at(current_iter)
            self._set_lr([[lr] * len(optimizer.param_groups) for optimizer in self.optimizers])
            return
        if since == 1:
            self._set_lr(self._get_init_lr())
        super().update_learning_rate(since, warmup_iter)

    def compute_losses(self) -> dict[str, Tensor]:
        """Return the losses on the representation and, after the encoder phase, the restoration losses."""
        restoration = {}
        if self.in_encoder_phase:
            representation = self.bare_net_g.encode(self.lq)
        else:
            self.output, representation = self.run_generator(return_representation=True)
            restoration = self.restoration_losses(self.output, self.gt)
        return restoration | self.contrastive_losses(representation) | self.representation_losses(representation)

    def contrastive_losses(self, representation: Tensor) -> dict[str, Tensor]:
        """Contrast the queries with their positives against the queue, and log the representation's health."""
        query, self.keys = self.training_networks["moco"](representation, self.key_lq)
        self.figures |= {
            "contrast_accuracy": self.bare_moco.queue_accuracy(query, self.keys),
            "embedding_spread": embedding_spread(gather_batch(query.detach())),
        }
        return {"l_contrast": self.contrast(query)}

    def contrast(self, query: Tensor) -> Tensor:
        """Return the contrastive loss of queries (B, D) and `keys`."""
        loss: Tensor = self.cri_contrast(query, self.keys, self.bare_moco.queue)
        return loss

    def after_backward(self) -> None:
        """Average the encoder's gradients over the ranks in its phase, when `network_g` runs without DDP's forward."""
        super().after_backward()
        if self.in_encoder_phase:
            all_reduce_params([p.grad for p in self.bare_net_g.encoder.parameters()], op="mean")

    def after_step(self) -> None:
        """Let the key encoder follow, and put the keys into the queue."""
        super().after_step()
        self.bare_moco.update_key_encoder(self.bare_net_g.encoder)
        self.bare_moco.enqueue(self.keys)


def _encoder_phase(train_opt: Mapping[str, Any]) -> EncoderPhase:
    phase = call_with(EncoderPhase, train_opt.get("encoder_phase") or {}, "train.encoder_phase")
    integer(phase.iters, "train.encoder_phase.iters", 0, train_opt["total_iter"])
    number(phase.lr, "train.encoder_phase.lr", 0.0)
    number(phase.gamma, "train.encoder_phase.gamma", 0.0, 1.0)
    if not isinstance(phase.milestones, list | tuple):
        raise OptionError(f"train.encoder_phase.milestones: {phase.milestones!r}, expected a list of iterations")
    for milestone in phase.milestones:
        integer(milestone, "train.encoder_phase.milestones", 1)
    return phase
