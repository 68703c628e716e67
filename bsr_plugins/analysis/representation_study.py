"""What ReDSR's losses do to the representation: small seeded training runs, measured on images held out.

The runs differ in their losses alone. They are the first four of Table 2 of the ReDSR paper, and one more, whose
degrader is fed a constant in the place of the representation. The paper trains for 216,000 steps of 16 pairs of patches
of 256 pixels at ×4. So that a CPU sees something within minutes, here

* the scale is 2 with the kernel widths of ×4, and photographs are reduced by 2 first: small patches then hold more
  detail, and blur shows in it;
* the degrader starts as the average of 2×2 pixels, and learns faster than the others. A representation only pays once
  the degrader errs by less than two grey levels; from PyTorch's initialisation it takes thousands of steps to pass an
  image on so well, whatever representation it gets;
* the encoder starts from He's initialisation. With PyTorch's, which the released code has, biases drown the images, and
  it takes thousands of steps before it sees blur at all, even if it is taught the widths directly;
* λ1 is a tenth of the paper's: at first, the gradient of the energy distance on the encoder is ten times that of the
  re-degradation, and what it spreads is content.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import torch
from basicsr.utils import get_root_logger
from sklearn.metrics import calinski_harabasz_score, silhouette_score
from torch import Tensor, nn

from bsr_plugins.analysis.study import patch_batches, study_options
from bsr_plugins.data.decode import Pixels
from bsr_plugins.data.patches import patches
from bsr_plugins.degradations import ClassicalDegradation, classical_params
from bsr_plugins.losses import EnergyDistanceLoss
from bsr_plugins.models import ReDSRModel
from bsr_plugins.seeding import generator_at

WIDTHS = (0.5, 1.4, 2.3, 3.2, 4.1, 5.0)
"""Kernel widths whose representations are to separate (Fig. 4 of the ReDSR paper)."""

SIGMA = (0.2, 4.0)
"""Kernel widths of the training, those of ×4."""

REDUCTION = 2
"""Of the sides of the photographs."""

_SCALE = 2
_PRELU_SLOPE = 0.25
_LAST_LR = 0.01  # of the first
_LAST = 100  # steps over which the loss of the training is averaged


class Variant(NamedTuple):
    """The losses of a run: re-degradation (Eq. 4), energy distance to a Gaussian (Eq. 5).

    With `constant` the degrader gets zeros instead of the representation.
    """

    redegradation: bool
    energy_distance: bool
    constant: bool = False


VARIANTS = {
    "both, degrader fed a constant": Variant(True, True, constant=True),
    "both (model 4)": Variant(True, True),
    "re-degradation (model 2)": Variant(True, False),
    "energy distance (model 3)": Variant(False, True),
    "neither (model 1)": Variant(False, False),
}
"""The slow ones first, so that runs side by side end together."""


@dataclass(frozen=True)
class Study:
    """The size of the runs.

    Attributes:
        iters: Training steps of each run.
        batch_size: Images per step.
        gt_size: HR patch, in pixels of the reduced photographs; even, at least 48.
        num_feat: Channels of the encoder; degrader and generator, of one group of two blocks, have half as many.
        lr: Learning rate of Adam for encoder and generator; it falls to a hundredth by a cosine.
        degrader_lr: That of the degrader, likewise.
        energy_weight: Weight of the energy distance, λ1 of Eq. 9.
        seed: Decides weights, patches and degradations, alike for all runs.
    """

    iters: int = 3000
    batch_size: int = 16
    gt_size: int = 64
    num_feat: int = 32
    lr: float = 3e-4
    degrader_lr: float = 1e-3
    energy_weight: float = 0.001
    seed: int = 0
    device: str = "cpu"


class Figures(NamedTuple):
    """What is measured of a network; all but the first on held-out images.

    Attributes:
        training_redegradation: Re-degradation loss, mean of the last 100 steps; nan without.
        redegradation: Re-degradation loss, widths drawn as in training; nan without.
        silhouette: Silhouette coefficient of the representations of `WIDTHS`, in [-1, 1].
        calinski_harabasz: Calinski-Harabasz index of the same, above 0.
        mean: Mean of the representations, widths drawn as in training.
        std: Their standard deviation per dimension, averaged.
        energy_distance: Their energy distance to a standard Gaussian (Eq. 5, unweighted).
    """

    training_redegradation: float
    redegradation: float
    silhouette: float
    calinski_harabasz: float
    mean: float
    std: float
    energy_distance: float


class StudyModel(ReDSRModel):
    """A `ReDSRModel` whose degrader learns at another rate, `train.degrader_lr`."""

    def setup_optimizers(self) -> None:
        super().setup_optimizers()
        degraders = {id(p): p for network in self.training_networks.values() for p in network.parameters()}
        if degraders:
            (group,) = self.optimizer_g.param_groups
            group["params"] = [p for p in group["params"] if id(p) not in degraders]
            slow = {"params": [*degraders.values()], "lr": self.opt["train"]["degrader_lr"]}
            self.optimizer_g.add_param_group(slow)


class ConstantReDSRModel(StudyModel):
    """A `StudyModel` whose degrader gets a constant in the place of the representation."""

    def redegrade(self, representation: Tensor) -> dict[str, Tensor]:
        return super().redegrade(torch.zeros_like(representation))


def run_variant(
    variant: Variant, study: Study, images: Sequence[Pixels], held_out: Sequence[Pixels]
) -> tuple[Figures, Figures]:
    """Train a network from scratch and measure it on photographs held out, before and after.

    Photographs are RGB as the dataset reads them, (H, W, 3), with sides of at least 2 `gt_size`.
    """
    get_root_logger(log_level=logging.WARNING)  # the first call decides; a model prints all its layers
    torch.manual_seed(study.seed)
    model = (ConstantReDSRModel if variant.constant else StudyModel)(_options(variant, study))
    torch.manual_seed(study.seed)  # what a model draws depends on the networks that it has
    start_encoder(model.net_g.encoder)
    if variant.redegradation:
        start_degrader(model.training_networks["degrader"])
    reduced, reduced_held_out = ([_reduced(pixels) for pixels in those] for those in (images, held_out))
    side = min(min(pixels.shape[:2]) for pixels in reduced_held_out)
    generator = generator_at(study.seed, "held out")
    cut = [patches(pixels, side - side % _SCALE, 2, False, False, generator) for pixels in reduced_held_out]
    pairs = torch.stack(cut).to(model.device)
    before = _measure(model, variant, pairs, study.seed)
    losses = []
    batches = patch_batches(reduced, study.iters, study.batch_size, study.gt_size, 2, study.seed)
    for iteration, gt in enumerate(batches, start=1):
        model.update_learning_rate(iteration)
        model.feed_data({"gt": gt if variant.redegradation else gt[:, :1]})
        model.optimize_parameters(iteration)
        losses.append(float(model.log_dict.get("l_redegradation", float("nan"))))
    last = losses[-_LAST:]
    after = _measure(model, variant, pairs, study.seed)
    return before, after._replace(training_redegradation=sum(last) / len(last))


def _reduced(pixels: Pixels) -> Pixels:
    height, width = (side // REDUCTION for side in pixels.shape[:2])
    reduced: Pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return reduced


@torch.no_grad()
def start_encoder(encoder: nn.Module) -> None:
    """Start convolutions as He et al. (ICCV 2015) do, for PReLU, and without biases."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=_PRELU_SLOPE)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


@torch.no_grad()
def start_degrader(degrader: nn.Module) -> None:
    """Start with three channels that pass the image on, as averages of 2×2 pixels, and blocks that do nothing yet."""
    for place, layer in degrader.named_modules():
        in_block = place.startswith("blocks.")
        if not isinstance(layer, nn.Conv2d) or (in_block and not place.endswith(".conv2")):
            continue
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        if in_block:
            nn.init.zeros_(layer.weight)
            continue
        averaged = slice(0, _SCALE) if layer.stride[0] == _SCALE else slice(1, 2)
        for channel in range(3):
            layer.weight[channel] = 0
            layer.weight[channel, channel, averaged, averaged] = 1 / (averaged.stop - averaged.start) ** 2


def _options(variant: Variant, study: Study) -> dict[str, Any]:
    width = study.num_feat // 2
    encoder = {"type": "ReDSREncoder", "num_feat": study.num_feat}
    generator = {"type": "ReDSR", "num_feat": width, "num_group": 1, "num_block": 2, "upscale": _SCALE}
    dataset = {"degrade_on": "device", "num_views": 2 if variant.redegradation else 1, "gt_size": study.gt_size}
    options = study_options(study, _SCALE, study.seed, study.lr * _LAST_LR)
    options["train"]["degrader_lr"] = study.degrader_lr
    options["degradation"] = {"type": "ClassicalDegradation", "blur_iso": {"sigma": list(SIGMA)}}
    options["datasets"] = {"train": dataset}
    options["network_g"] = {**generator, "encoder": encoder}
    if variant.redegradation:
        options["network_degrader"] = {"type": "ReDSRDegrader", "num_feat": width, "scale": _SCALE}
        options["train"]["redegradation_opt"] = {"type": "L1Loss"}
    if variant.energy_distance:
        options["train"]["representation_opt"] = {"type": "EnergyDistanceLoss", "loss_weight": study.energy_weight}
    return options


@torch.no_grad()
def _measure(model: ReDSRModel, variant: Variant, gt: Tensor, seed: int) -> Figures:
    """Measure on pairs of patches (N, 2, 3, P, P)."""
    degradation = model.degradation
    assert isinstance(degradation, ClassicalDegradation)
    model.net_g.eval()
    of_widths = [
        model.net_g.encode(degradation(gt[:, :1], classical_params([width] * len(gt)))[:, 0]) for width in WIDTHS
    ]
    points = torch.cat(of_widths).double().cpu().numpy()
    labels = torch.arange(len(WIDTHS)).repeat_interleave(len(gt)).numpy()

    lq = degradation(gt, degradation.sample(len(gt), generator_at(seed, "held out widths")))
    drawn = model.net_g.encode(lq[:, 0])
    redegradation = float("nan")
    if variant.redegradation:
        fed = torch.zeros_like(drawn) if variant.constant else drawn
        redegradation = float((model.training_networks["degrader"](gt[:, 1], fed) - lq[:, 1]).abs().mean())
    model.net_g.train()
    energy = EnergyDistanceLoss(loss_weight=1.0)(drawn, generator_at(seed, "held out energy"))
    separation = float(silhouette_score(points, labels)), float(calinski_harabasz_score(points, labels))
    spread = float(drawn.mean()), float(drawn.std(dim=0, correction=0).mean())
    return Figures(float("nan"), redegradation, *separation, *spread, float(energy))
