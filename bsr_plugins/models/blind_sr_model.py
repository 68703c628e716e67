"""The training model that the methods of this package build on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from bsr_plugins.degradations import Params
from bsr_plugins.models.assembled_model import AssembledModel
from bsr_plugins.models.step_guard import describe_params
from bsr_plugins.models.step_losses import GENERATOR
from bsr_plugins.models.window_padding import super_resolve
from bsr_plugins.registration import register
from bsr_plugins.seeding import generator_at
from bsr_plugins.whole_batch import gather_batch, rows_of_rank

Drawn = TypeVar("Drawn", Tensor, Params)
Draw = Callable[[int, torch.Generator], Drawn]
_FILES = ("gt_path", "lq_path")


@register(MODEL_REGISTRY)
class BlindSRModel(AssembledModel):
    """BasicSR's `SRModel` with the degradation on the training device and the step cut into overridable parts.

    A step is `prepare_batch`, `compute_losses`, `take_step`, `after_step`. Keys that a model takes are declared in
    `Options` (at the top of the option file) and `TrainOptions` (under `train`), which subclasses extend, and read from
    `options` and `train_options`. Blocks are:

    * `degradation`: the block that `build_degradation` takes, for a dataset that gives HR views alone
      (`degrade_on: device`). What an `ads` sampler has measured is saved with the run as
      `degradation_calibration.json`.
    * `train.KEY_opt`: every such block is a loss of the run, logged as `l_KEY`; `type` may be any registered class. The
      names of the parameters of its `forward` say what it gets (see `offers`): `pred` or `sr`, `target` or `gt`, `lq`:
      images (B, 3, H, W) in [0, 1]; `representation` (B, D), for which `network_g` is a `RepresentationNet`; `features`
      (B, C, h, w) that enter its last convolution, or the module that `train.tap_layer` names; `paired_features`
      (2·B, C, h, w), for which each image is degraded a second time and both go through `network_g` in one pass;
      `views`: how many images, one after another, are one sample's; `generator`: a CPU generator, a function of seed,
      key and iteration. It gives a number, or a number and a dict of figures to log.
    * `network_NAME` for every name in `training_network_names`: a network that only training needs, saved as
      `net_NAME_*.pth`, resumed, put on the device and wrapped for DDP like `network_g`.

    The EMA copy takes over buffers as well as parameters: stock EMA leaves batch normalisation's running statistics
    where they started. Several processes, each with its part of the batch, do what one does with the whole.

    Attributes:
        step_made: Whether the last step was made; one with numbers that are not finite is skipped, see `StepGuard`.
        batch_size: How many samples were degraded in the step, None before the first and where none are.
        params: The degradations that were drawn for this rank's samples in the step, if any.
        pair_params: The second ones, if any.
        condition: What `network_g` gets with `lq`, by the names of its arguments.
    """

    current_iter: int
    restores_pairs = False  # whether losses of images see both degradations, where there are two

    def __init__(self, opt: dict[str, Any]) -> None:
        self.batch_size: int | None = None
        self.condition: dict[str, Tensor] = {}
        self.params: Params = {}
        self.pair_params: Params = {}
        self.log_dict: dict[str, float] = {}
        self.step_made = False
        self._files: dict[str, Any] = {}
        super().__init__(opt)

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Take a batch: `lq` (and `gt`), or only HR views `gt` (B, V, 3, H, W), to be degraded here."""
        self._files = {key: data[key] for key in _FILES if key in data}
        if "lq" in data:
            super().feed_data(data)
        else:
            self.gt_views = data["gt"].to(self.device, non_blocking=True)

    def optimize_parameters(self, current_iter: int) -> None:
        """Do one training step and fill `log_dict` with every loss and every figure by name."""
        self.calibrate()
        self.current_iter, self.step_made = current_iter, False
        self.figures: dict[str, Tensor] = {}
        self.guard.begin((self.net_g, *self.training_networks.values()))
        if self.degradation is not None:
            self.prepare_batch(*self.degrade(self.gt_views))
        losses = self.compute_losses()
        self.step_made = self.take_step(losses)
        if self.step_made:
            self.after_step()
            logged = {name: value.detach() for name, value in (losses | self.figures).items()}
            self.log_dict = self.reduce_loss_dict(logged) | self.guard.figures()

    @torch.no_grad()
    def degrade(self, gt: Tensor) -> tuple[Tensor, Tensor, Params]:
        """Draw one degradation per sample and apply it to all of the sample's views (B, V, 3, H, W).

        Returns:
            The views to be reproduced (see `Degradation.target`), their LR views (B, V, 3, h, w) and the parameters.
        """
        assert self.degradation is not None
        gt = self.degradation.target(gt)
        self.batch_size = len(gt)
        self.params = self.draw("degradation", len(gt), self.degradation.sample)
        self.condition = self.condition_of(self.params)
        return gt, self.degradation(gt, self.params), self.params

    @torch.no_grad()
    def degrade_again(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw a second degradation for every image; return the LR images (N, 3, h, w) and their `condition`."""
        assert self.degradation is not None
        self.pair_params = self.draw("degradation pair", len(self.gt), self.degradation.sample)
        return self.degradation(self.gt, self.pair_params), self.condition_of(self.pair_params)

    def condition_of(self, params: Params) -> dict[str, Tensor]:  # noqa: ARG002  (a method's network may want them)
        """Return what `network_g` gets with images that were degraded with certain parameters, by its arguments."""
        return {}

    def prepare_batch(self, gt: Tensor, lq: Tensor, params: Params) -> None:  # noqa: ARG002  (methods may want them)
        """Set `self.lq` and `self.gt` from degraded views; here every view is a sample."""
        self.lq, self.gt = lq.flatten(0, 1), gt.flatten(0, 1)

    def compute_losses(self) -> dict[str, Tensor]:
        """Run the networks on the batch and return every weighted loss by name; their sum is minimised."""
        return self.losses_of(self.run_generator(bool(self.wanted("representation"))))

    def run_generator(self, with_representation: bool) -> dict[str, Any]:
        """Run `network_g`, on two degradations if a loss wants them; return what losses can ask for, by name."""
        lq, condition, images = self.lq, self.condition, len(self.lq)
        if self.wanted("paired_features"):
            pair_lq, pair_condition = self.degrade_again()
            lq = torch.cat([lq, pair_lq])
            condition = {name: torch.cat([value, pair_condition[name]]) for name, value in condition.items()}
        asked: dict[str, Any] = {"return_representation": True} if with_representation else {}
        found: dict[str, Any] = {"views": self.views_of(images)}
        if self.tap is None:
            result = self.net_g(lq, **condition, **asked)
        else:
            with self.tap(self.net_g, self._dropping(len(lq) // images)) as tapped:
                result = self.net_g(lq, **condition, **asked)
            found |= {"features": tapped.features[:images], "paired_features": tapped.features}
        found |= {"sr": result[0], "representation": result[1]} if with_representation else {"sr": result}
        found |= {"lq": lq, "gt": self.gt}
        if self.restores_pairs and len(lq) > images:
            found["gt"] = self.gt.repeat(2, 1, 1, 1)
        elif len(lq) > images:
            found |= {name: found[name][:images] for name in ("sr", "representation", "lq") if name in found}
        self.output = found["sr"]
        return found

    def losses_of(self, found: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Compute the losses for which all is `found` that they want, weighted, by their names in the log.

        With `more`, which the step has in addition by now, only losses that want something of it are computed.
        """
        if more is None and "representation" in found and self.wanted("representation"):
            everyones = gather_batch(found["representation"].detach())
            self.figures["representation_mean"] = everyones.mean()
            self.figures["representation_std"] = everyones.std(dim=0, correction=0).mean()
        given = {**found, **(more or {})}
        losses: dict[str, Tensor] = {}
        for loss in self.losses.values():
            if loss.quantities <= given.keys() and (more is None or loss.quantities & more.keys()):
                computed, figures = loss.compute({**given, GENERATOR: self.shared_generator(loss.key)})
                losses |= computed
                self.figures |= figures
        return losses

    def _dropping(self, passes: int) -> Callable[[Tensor], Tensor] | None:
        """Return what `train.dropout` does to features of the batch, which comes `passes` times."""
        dropout = self.train_options.dropout
        if dropout is None or self.tap is None:
            return None
        channels, p = self.tap.channels, dropout.p

        def sample(images: int, generator: torch.Generator) -> Tensor:
            kept = torch.rand(images, channels, 1, 1, generator=generator, dtype=torch.float32) >= p
            return kept / (1 - p)

        mask = self.draw("dropout", len(self.lq), sample, passes).to(self.device)
        return lambda features: features * mask.to(features.dtype)

    def draw(self, purpose: str, images: int, sample: Draw[Drawn], passes: int = 1) -> Drawn:
        """Draw for the images of all ranks, as one process does, and return what this rank's get, (passes · images, …).

        Args:
            purpose: What the draw is for; a function of it, `manual_seed` and the iteration.
            images: How many images of this rank are drawn for: its samples, or all views of each one after another.
            sample: Draws for so many images: a tensor, or several by name, whose first dimension is the images.
            passes: How many times the images come, one batch behind the other.
        """
        rank, ranks, views = self.opt["rank"], self.opt["world_size"], self.views_of(images)
        drawn = sample(passes * images * ranks, self.shared_generator(purpose))
        if isinstance(drawn, Tensor):
            return rows_of_rank(drawn, rank, ranks, views, passes)
        return {name: rows_of_rank(values, rank, ranks, views, passes) for name, values in drawn.items()}

    def views_of(self, images: int) -> int:
        """Return how many of `images`, one after another, are one sample's."""
        return images // self.batch_size if self.batch_size else 1

    def shared_generator(self, purpose: str) -> torch.Generator:
        """Make the generator of a purpose at this iteration, equal on every rank."""
        return generator_at(self.opt["manual_seed"], purpose, self.current_iter)

    def take_step(self, losses: Mapping[str, Tensor]) -> bool:
        """Backpropagate the losses and, if all numbers are finite, update parameters and EMA; return whether they are.

        Raises:
            NonFiniteError: Too many steps in a row were skipped; see `StepGuard`.
        """
        self.optimizer_g.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self.after_backward()
        trained = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]
        if not self.guard.passes(self.current_iter, losses, trained, self._describe_batch):
            self.optimizer_g.zero_grad()
            return False
        self.optimizer_g.step()
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)
        return True

    def after_backward(self) -> None:
        """Change gradients before they are used."""

    def after_step(self) -> None:
        """Update what follows the networks without a gradient."""

    def describe_degradation(self) -> str:
        """Write down what was drawn for this rank's samples in the last step, and again for pairs."""
        return " / again: ".join(describe_params(params) for params in (self.params, self.pair_params) if params)

    def _describe_batch(self) -> str:
        parts = [f"{key} {', '.join(map(str, value))}" for key, value in self._files.items()]
        drawn = self.describe_degradation()
        return "; ".join(parts + ([f"degraded by {drawn}"] if drawn else [])) or "files unknown"

    def test(self) -> None:
        """Super-resolve `lq` of any size to `output`, with the EMA copy of the network if there is one."""
        # Without DDP's wrapper: ranks validate different images, and it would wait for the others to send buffers.
        net: nn.Module = self.net_g_ema if hasattr(self, "net_g_ema") else self.bare_net_g
        training = net.training
        net.eval()
        with torch.no_grad():
            self.output = super_resolve(net, self.lq, **self.condition)
        net.train(training)
