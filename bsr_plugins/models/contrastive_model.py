"""What DASR and AACL share: an encoder that learns by momentum contrast, at first alone, then with the restoration."""

from __future__ import annotations

from abc import ABC
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, distributed, nn

from bsr_plugins.archs import MoCo
from bsr_plugins.blocks import placed
from bsr_plugins.errors import OptionError
from bsr_plugins.metrics.representation import embedding_spread
from bsr_plugins.models.blind_sr_model import BlindSRModel
from bsr_plugins.models.step_losses import same
from bsr_plugins.options.declared import OptionBlock, Whole
from bsr_plugins.whole_batch import gather_batch, several_ranks


class EncoderPhase(OptionBlock):
    """The first iterations, in which only the encoder learns.

    DASR's are 100 epochs at 1e-3, a tenth of it after 60, an epoch being 1000 iterations.
    """

    iters: Whole = Field(default=0, ge=0, description="How many they are; 0 for none.")
    lr: float = Field(default=1e-3, ge=0, description="The learning rate at first.")
    milestones: list[Annotated[Whole, Field(ge=1)]] = Field(
        default=[], description="After how many iterations the learning rate is multiplied by `gamma`."
    )
    gamma: float = Field(default=0.1, ge=0, le=1, description="The factor at each of `milestones`.")


class ContrastiveModel(BlindSRModel, ABC):
    """A training model with `network_moco`; a method's model chooses queries and keys in `prepare_batch`.

    That sets `lq`, `gt` (the queries and their HR patches) and `key_lq` (B, C, h, w) or (B, M, C, h, w).
    Options in addition to those of `BlindSRModel`:

    * `network_moco`: the key side (`MoCo`);
    * `train.contrastive_opt`: the loss (`InfoNCELoss`); see it for `query`, `positive` and `negatives`, which it gets;
    * `train.encoder_phase`: see `EncoderPhase`. Losses of `sr` are left out of it. The schedule of `train.scheduler`
      and the warm-up count from the end of the phase; `total_iter` includes it.

    Logged with the losses: `contrast_accuracy` (how often a positive beats every key in the queue; chance is
    1 / (1 + number of keys)) and `embedding_spread` (0 collapsed, 1 even).
    """

    class TrainOptions(BlindSRModel.TrainOptions):
        encoder_phase: EncoderPhase | None = Field(
            default=None, description="The first iterations, in which only the encoder learns; null is none."
        )

    train_options: TrainOptions
    training_network_names = ("moco",)
    restores_every_view = False

    def init_training_settings(self) -> None:
        super().init_training_settings()
        self.encoder_phase = self.train_options.encoder_phase or EncoderPhase()
        total, phase = self.opt["train"]["total_iter"], self.encoder_phase.iters
        self.expect(phase <= total, f"train.encoder_phase.iters: {phase}, expected a whole number in [0, {total}]")
        self.expect(self.degradation is not None, f"degradation: the block is missing, {type(self).__name__} needs it")
        self.require_loss("contrastive_opt", "query", "InfoNCELoss")
        keys = self.opt["datasets"]["train"]["batch_size_per_gpu"] * self.opt["world_size"] * self.keys_per_query
        size = self.bare_moco.queue.shape[1]
        line = f"network_moco.queue_size: {size}, expected at least {keys}, the keys of one step"
        self.expect(keys <= size, line)

    @property
    def keys_per_query(self) -> int:
        """How many keys each query is contrasted with."""
        return 1

    @property
    def bare_moco(self) -> Any:
        """The `MoCo` network without a wrapper."""
        return self.get_bare_model(self.training_networks["moco"])

    def start_training_network(self, name: str, network: nn.Module) -> None:
        """Let the key side start where the encoder is."""
        super().start_training_network(name, network)
        if not isinstance(network, MoCo):
            raise OptionError(f"network_moco.type: {self.opt['network_moco']['type']!r}, expected 'MoCo'")
        if not isinstance(getattr(self.bare_net_g, "encoder", None), nn.Module):
            raise OptionError(f"network_g.type: {self.opt['network_g']['type']!r}, expected a network with an encoder")
        with placed("network_moco"):
            network.start_from(self.bare_net_g.encoder)

    def offers(self, key: str) -> dict[str, str]:
        return super().offers(key) | same("query", "positive", "negatives")

    @property
    def in_encoder_phase(self) -> bool:
        """Whether only the encoder learns at the current iteration."""
        return self.current_iter <= self.encoder_phase.iters

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Set the learning rate: the phase's, then the schedule from its beginning."""
        since = current_iter - self.encoder_phase.iters
        if since <= 0:
            phase = self.encoder_phase
            lr = phase.lr * phase.gamma ** sum(current_iter > milestone for milestone in phase.milestones)
            self._set_lr([[lr] * len(optimizer.param_groups) for optimizer in self.optimizers])
            return
        if since == 1:
            self._set_lr(self._get_init_lr())
        super().update_learning_rate(since, warmup_iter)

    def compute_losses(self) -> dict[str, Tensor]:
        if self.in_encoder_phase:
            found = {"representation": self.bare_net_g.encode(self.lq), "lq": self.lq, "gt": self.gt}
        else:
            found = self.run_generator(with_representation=True)
        return self.losses_of(found | self.contrast(found["representation"]))

    def contrast(self, representation: Tensor) -> dict[str, Tensor]:
        """Return queries, their positives and the queue, and log how well they are distinguished."""
        query, self.keys = self.training_networks["moco"](representation, self.key_lq)
        self.figures |= {
            "contrast_accuracy": self.bare_moco.queue_accuracy(query, self.keys),
            "embedding_spread": embedding_spread(gather_batch(query.detach())),
        }
        return {"query": query, "positive": self.keys, "negatives": self.bare_moco.queue}

    def after_backward(self) -> None:
        super().after_backward()
        # DDP, whose forward does not run in the phase, averages the gradients of the others.
        if self.in_encoder_phase and several_ranks():
            for parameter in self.bare_net_g.encoder.parameters():
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.opt["world_size"]

    def after_step(self) -> None:
        """Let the key encoder follow, and put the keys into the queue."""
        super().after_step()
        self.bare_moco.update_key_encoder(self.bare_net_g.encoder)
        self.bare_moco.enqueue(self.keys)
