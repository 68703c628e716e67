"""Whether a loss can be called as a training model calls it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from bsr_plugins.errors import OptionError, unknown_name


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
    """Check that the loss `train.KEY`, if there is one, can be called with two images.

    Args:
        train_opt: The block `train`; the loss is known to be registered.
        key: The loss's key in it.

    Raises:
        OptionError: It cannot.
    """
    name = (train_opt.get(key) or {}).get("type")
    forward = None if name is None else getattr(LOSS_REGISTRY.get(name), "forward", None)
    if forward is None:
        return
    try:
        inspect.signature(forward).bind(None, None, None)  # itself and two images
    except TypeError as error:
        raise OptionError(f"train.{key}.type: {name!r}, expected a loss of two images, such as 'L1Loss'") from error
