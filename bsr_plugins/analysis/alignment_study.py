"""What alignment and dropout do to a small SRResNet: short seeded training runs, measured on photographs held out.

The runs of a seed differ in their regulariser alone; they see the same patches, and the first degradation of each patch
is the same. Recipe and degradation are those of Simple-Align (second order, ×4, LR 32×32, L1, Adam with a cosine, HR
images sharpened), with a smaller network and batch, fewer steps and a higher learning rate. The convolutions outside
the residual blocks start from He's initialisation: BasicSR's, a tenth of it, leaves the features so small that the
network gives its bilinear skip connection, and nothing else, for thousands of steps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.utils import get_root_logger, tensor2img
from torch import Tensor, nn

from bsr_plugins.analysis.study import patch_batches, study_options
from bsr_plugins.data.decode import Pixels, to_tensor
from bsr_plugins.degradations import protocol_degradation, protocol_settings, with_noise_seed
from bsr_plugins.models import SimpleAlignModel
from bsr_plugins.models.feature_tap import find_tap
from bsr_plugins.seeding import derive_seed

PROTOCOL = "align8"
_SCALE = 4
_CROP = 4  # pixels left out at each edge in PSNR
_LAST_LR = 1e-7
_LRELU_SLOPE = 0.1
_LAST_LAYER = 0.1
_HELD_OUT_SIZE = 256  # of the middle of the photographs that is measured on, at most
_MEASURING_SEED = 0


class Variant(NamedTuple):
    """The regulariser of a run: `statistics` that alignment aligns, or a share of channels that dropout drops."""

    statistics: str | None = None
    dropout: float = 0.0


VARIANTS = {
    "align, pooled": Variant(statistics="pooled"),
    "align, spatial": Variant(statistics="spatial"),
    "dropout 0.7": Variant(dropout=0.7),
    "none": Variant(),
}
"""The slow ones first, so that runs side by side end together."""


@dataclass(frozen=True)
class Study:
    """The size of the runs.

    Attributes:
        iters: Training steps of each run.
        batch_size: HR images per step.
        gt_size: HR patch in pixels, a multiple of 4.
        num_feat: Channels of the SRResNet.
        num_block: Its residual blocks.
        lr: Learning rate of Adam; it falls by a cosine.
    """

    iters: int = 1200
    batch_size: int = 4
    gt_size: int = 128
    num_feat: int = 32
    num_block: int = 4
    lr: float = 5e-4
    align_weight: float = 1.0
    device: str = "cpu"


class Figures(NamedTuple):
    """What is measured of a network on photographs held out.

    Attributes:
        psnr: PSNR in dB on RGB, mean over the photographs, by the names of the degradations.
        mean_distance: ‖μ − μ'‖² between the features of clean and degraded images that enter the last convolution,
            mean over images and degradations.
        covariance_distance: ‖Σ − Σ'‖²_F of the same.
        relative_mean_distance: The former, divided by ‖μ‖² of the clean image.
        relative_covariance_distance: The same with ‖Σ‖²_F.
    """

    psnr: dict[str, float]
    mean_distance: float
    covariance_distance: float
    relative_mean_distance: float
    relative_covariance_distance: float


def run_variant(
    variant: Variant, study: Study, seed: int, images: Sequence[Pixels], held_out: Sequence[Pixels]
) -> tuple[Figures, Figures]:
    """Train a network from scratch and measure it on photographs held out, before and after.

    The seed decides weights, patches and degradations, alike for all variants. Photographs are RGB as the dataset reads
    them, (H, W, 3), with sides of at least `gt_size`.
    """
    model = build_model(variant, study, seed)
    tests = degraded_pairs(held_out, model.device)
    before = measure(model.net_g, tests)
    for iteration, gt in enumerate(patch_batches(images, study.iters, study.batch_size, study.gt_size, 1, seed), 1):
        model.update_learning_rate(iteration)
        model.feed_data({"gt": gt})
        model.optimize_parameters(iteration)
    return before, measure(model.net_g, tests)


def build_model(
    variant: Variant, study: Study, seed: int, network: Mapping[str, Any] | None = None
) -> SimpleAlignModel:
    """Build the training model of a run, with weights that the seed decides.

    A block of another network may take the place of the study's; it is then started as its arch does it.
    """
    get_root_logger(log_level=logging.WARNING)  # the first call decides; a model prints all its layers
    options = _options(variant, study, seed)
    torch.manual_seed(seed)
    if network is not None:
        return SimpleAlignModel(options | {"network_g": dict(network)})
    model = SimpleAlignModel(options)
    torch.manual_seed(seed)
    _start(model.net_g)
    return model


@torch.no_grad()
def _start(network: nn.Module) -> None:
    """Start as He et al. (ICCV 2015) do outside the blocks, but for a tenth in the last convolution."""
    for place, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and not place.startswith("body."):
            nn.init.kaiming_normal_(layer.weight, a=_LRELU_SLOPE)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    network.get_parameter("conv_last.weight").mul_(_LAST_LAYER)


def _options(variant: Variant, study: Study, seed: int) -> dict[str, Any]:
    options = study_options(study, _SCALE, seed, _LAST_LR)
    if variant.statistics is not None:
        alignment = {"statistics": variant.statistics, "loss_weight": study.align_weight}
        options["train"]["align_opt"] = {"type": "AlignmentLoss", **alignment}
    if variant.dropout > 0:
        options["train"]["dropout"] = {"p": variant.dropout}
    network = {"type": "MSRResNet", "num_feat": study.num_feat, "num_block": study.num_block, "upscale": _SCALE}
    dataset = {"degrade_on": "device", "gt_size": study.gt_size, "batch_size_per_gpu": study.batch_size}
    degradation = {"type": "SecondOrderDegradation"}
    return options | {"degradation": degradation, "datasets": {"train": dataset}, "network_g": network}


def degraded_pairs(held_out: Sequence[Pixels], device: torch.device) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Degrade the middle of photographs, RGB (H, W, 3), by every setting of the protocol.

    Returns:
        By the settings' names, of every photograph LR (1, 3, h, w), on the device, and HR (1, 3, H, W).
    """
    degradation = protocol_degradation(PROTOCOL, _SCALE)
    hr = [to_tensor(_middle(pixels))[None, None] for pixels in held_out]
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for setting in protocol_settings(PROTOCOL, _SCALE):
        pairs[setting.name] = []
        for number, gt in enumerate(hr):
            params = with_noise_seed(setting.params, derive_seed(_MEASURING_SEED, "held out", number, setting.name))
            pairs[setting.name].append((degradation(gt, params)[0].to(device), gt[0]))
    return pairs


def _middle(pixels: Pixels) -> Pixels:
    sides = [min(side - side % _SCALE, _HELD_OUT_SIZE) for side in pixels.shape[:2]]
    top, left = ((side - kept) // 2 for side, kept in zip(pixels.shape[:2], sides, strict=True))
    return pixels[top : top + sides[0], left : left + sides[1]]


@torch.no_grad()
def measure(network: nn.Module, tests: Mapping[str, Sequence[tuple[Tensor, Tensor]]]) -> Figures:
    """Measure a network on what `degraded_pairs` gives, the clean ones first."""
    tap = find_tap(network, next(iter(tests.values()))[0][0])
    network.eval()
    psnr, statistics = {}, {}
    for name, pairs in tests.items():
        levels, of_images = [], []
        for lq, gt in pairs:
            with tap(network) as heard:
                output = network(lq)
            levels.append(float(calculate_psnr(tensor2img(output), tensor2img(gt), crop_border=_CROP)))
            vectors = heard.features[0].flatten(1).double()
            of_images.append((vectors.mean(dim=1), torch.cov(vectors, correction=0)))
        psnr[name], statistics[name] = sum(levels) / len(levels), of_images
    network.train()
    clean, *degraded = statistics.values()
    rows = torch.stack([_distances(a, b) for others in degraded for a, b in zip(clean, others, strict=True)])
    return Figures(psnr, *rows.mean(dim=0).tolist())


def _distances(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Return the last four of `Figures`, for the statistics of two images."""
    absolute = torch.stack([(a - b).square().sum() for a, b in zip(one, other, strict=True)])
    return torch.cat([absolute, absolute / torch.stack([a.square().sum() for a in one])])
