"""Whether a loss can be called as a training model calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from bsr_plugins.blocks import build_from_block
from bsr_plugins.errors import OptionError, unknown_name
from bsr_plugins.losses import KLDivergenceLoss

_SIDE = 8  # of the images that a loss is tried on


def check_loss_kind(train_opt: Mapping[str, Any], key: str, kind: type[nn.Module]) -> None:
    """Check that the loss `train.KEY`, if there is one, is of a kind.

    Args:
        train_opt: The block `train`.
        key: The loss's key in it.
        kind: A class that the loss has to be, or to be made from.

    Raises:
        OptionError: It is not.
    """
    name = (train_opt.get(key) or {}).get("type")
    known = {loss: made for loss, made in LOSS_REGISTRY if isinstance(made, type) and issubclass(made, kind)}
    if name is not None and name not in known:
        raise unknown_name(f"train.{key}.type", name, known)


def check_image_loss(train_opt: Mapping[str, Any], key: str) -> None:
    """Check that the loss `train.KEY`, if there is one, makes one number of two images; it is tried on small ones.

    Args:
        train_opt: The block `train`; the loss is known to be registered and to take what its block says.
        key: The loss's key in it.

    Raises:
        OptionError: It does not.
    """
    block = train_opt.get(key)
    if not isinstance(block, Mapping) or block.get("type") not in LOSS_REGISTRY:
        return
    made, images = LOSS_REGISTRY.get(block["type"]), torch.zeros(2, 2, 3, _SIDE, _SIDE)
    expected = "expected a loss of two images, such as 'L1Loss'"
    if isinstance(made, type) and issubclass(made, PerceptualLoss):  # building it may fetch a large network
        raise OptionError(f"train.{key}.type: {block['type']!r}, {expected}")
    loss = build_from_block(block, dict(iter(LOSS_REGISTRY)), f"train.{key}")
    try:
        result = loss(*images)
    except Exception as error:
        raise OptionError(f"train.{key}.type: {block['type']!r}, {expected}") from error
    if not isinstance(result, torch.Tensor) or result.dim() != 0:
        raise OptionError(f"train.{key}: {dict(block)!r}, expected a loss that is one number, as with reduction: mean")


def check_batch(opt: Mapping[str, Any]) -> None:
    """Check that a batch over all ranks is large enough for `train.representation_opt`.

    Raises:
        OptionError: It is one image, of which there is no variance.
    """
    name = (opt["train"].get("representation_opt") or {}).get("type")
    batch = opt["datasets"]["train"].get("batch_size_per_gpu", 0) * opt["world_size"]
    if name == KLDivergenceLoss.__name__ and batch == 1:
        raise OptionError(f"datasets.train.batch_size_per_gpu: {batch}, expected at least 2 in all for {name}")
