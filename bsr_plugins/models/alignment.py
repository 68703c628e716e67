"""What `train.align_opt`, `train.dropout` and `train.tap_layer` do to the forward pass of `network_g`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bsr_plugins.blocks import call_with
from bsr_plugins.errors import OptionError
from bsr_plugins.losses import AlignmentLoss
from bsr_plugins.models.drawn_params import Draw
from bsr_plugins.models.feature_tap import FeatureTap, find_tap
from bsr_plugins.models.loss_kinds import check_loss_kind

TAPPING = ("align_opt", "dropout", "tap_layer")
TRIAL_BATCH = 2
_TRIAL_SIDE = 48  # of LR images where the options do not tell it
_GREY = 0.5


class ChannelDropout(NamedTuple):
    """Dropout of whole channels of the features before the last convolution.

    Source: Kong et al., CVPR 2022, "Reflash Dropout in Image Super-Resolution"; Simple-Align's competitor.

    Attributes:
        p: Probability in [0, 1) that a channel of an image is zero; the others are divided by 1 − p. Simple-Align's is
            0.7 for SRResNet and 0.5 for RRDB, MSRN and SwinIR.
    """

    p: float

    def mask(self, batch: int, channels: int, generator: torch.Generator) -> Tensor:
        """Draw the factors of all channels, (B, C, 1, 1), on the CPU."""
        kept = torch.rand(batch, channels, 1, 1, generator=generator, dtype=torch.float32) >= self.p
        return kept / (1 - self.p)


def is_tapped(train_opt: Mapping[str, Any]) -> bool:
    """Whether features of `network_g` are looked at or changed in training."""
    return any(train_opt.get(key) is not None for key in ("align_opt", "dropout"))


def read_dropout(train_opt: Mapping[str, Any]) -> ChannelDropout | None:
    """Read `train.dropout`.

    Raises:
        OptionError: It is no block, has unknown keys, or p is out of range.
    """
    block = train_opt.get("dropout")
    if block is None:
        return None
    dropout = call_with(ChannelDropout, block, "train.dropout")
    p = dropout.p
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
        raise OptionError(f"train.dropout.p: {p!r}, expected a number in [0, 1)")
    return dropout


def check_alignment(opt: Mapping[str, Any], images_per_sample: int) -> None:
    """Check the three options of a training run against each other and against the dataset.

    Args:
        opt: The run's options.
        images_per_sample: How many images of each sample are super-resolved.

    Raises:
        OptionError: They cannot be used.
    """
    train_opt, dataset_opt = opt["train"], opt["datasets"]["train"]
    read_dropout(train_opt)
    layer = train_opt.get("tap_layer")
    if layer is not None and not is_tapped(train_opt):
        raise OptionError(f"train.tap_layer: {layer!r}, expected train.align_opt or train.dropout with it")
    block = train_opt.get("align_opt")
    if block is None:
        return
    check_loss_kind(train_opt, "align_opt", AlignmentLoss)
    if dataset_opt.get("degrade_on") != "device":
        raise OptionError(
            f"train.align_opt: given, but datasets.train.degrade_on is {dataset_opt.get('degrade_on')!r}; expected "
            "'device', as every image is degraded a second time"
        )
    batch = dataset_opt.get("batch_size_per_gpu")
    if block.get("statistics") == "pooled" and batch is not None and batch * opt["world_size"] * images_per_sample < 2:
        raise OptionError(
            f"datasets.train.batch_size_per_gpu: {batch}, expected at least 2 images in all with "
            "train.align_opt.statistics: pooled"
        )


@dataclass(frozen=True)
class TappedGenerator:
    """How `network_g` runs in training where its features are looked at or changed.

    Attributes:
        tap: Where.
        dropout: What is done to the features, if anything.
    """

    tap: FeatureTap
    dropout: ChannelDropout | None

    def run(
        self, network: nn.Module, lq: Tensor, arguments: Mapping[str, Any], draw: Callable[[Draw[Tensor]], Tensor]
    ) -> tuple[Any, Tensor]:
        """Run the network.

        Args:
            network: `network_g` in its wrapper.
            lq: LR images (B, C, h, w).
            arguments: What it gets besides.
            draw: Gives the rows for `lq` of what a function draws for so many images from a CPU generator.

        Returns:
            What the network gives, and its features (B, C', H, W) as they were before the dropout.
        """
        replace = None
        if self.dropout is not None:
            mask = draw(partial(_mask, self.dropout, self.tap.channels)).to(lq.device)
            replace = partial(_times, mask)
        with self.tap(network, replace) as heard:
            result = network(lq, **arguments)
        return result, heard.features


def tapped_generator(
    opt: Mapping[str, Any], network: nn.Module, condition: Mapping[str, Tensor]
) -> TappedGenerator | None:
    """Find the features of `network_g` that the options want, on images of the size that it is trained on.

    Args:
        opt: The run's options.
        network: `network_g`, wrapped or bare.
        condition: What it gets besides `TRIAL_BATCH` LR images.

    Returns:
        How to run it, or None if the options want nothing.

    Raises:
        OptionError: See `find_tap`.
    """
    if not is_tapped(opt["train"]):
        return None
    gt_size = opt["datasets"]["train"].get("gt_size")
    side = _TRIAL_SIDE if gt_size is None else gt_size // opt["scale"]
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    image = torch.full((TRIAL_BATCH, 3, side, side), _GREY, device=device)
    on_device = {name: value.to(device) for name, value in condition.items()}
    return TappedGenerator(
        find_tap(network, image, opt["train"].get("tap_layer"), on_device), read_dropout(opt["train"])
    )


def join(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put two batches, given by name, one behind the other."""
    return {name: torch.cat([value, second[name]]) for name, value in first.items()}


def first_half(result: Any) -> Any:
    """Return what a network gave for the first half of its batch: of a tensor, or of each in a tuple or list."""
    if isinstance(result, Tensor):
        return result[: len(result) // 2]
    return type(result)(first_half(part) for part in result)


def _mask(dropout: ChannelDropout, channels: int, batch: int, generator: torch.Generator) -> Tensor:
    return dropout.mask(batch, channels, generator)


def _times(mask: Tensor, features: Tensor) -> Tensor:
    return features * mask.to(features.dtype)
