"""The losses of a run: each block `train.KEY_opt` is one, wired by the names of the parameters of its `forward`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from bsr_plugins.blocks import build_from_block
from bsr_plugins.errors import BSRError, OptionError, described, did_you_mean
from bsr_plugins.precision import at_least_float32
from bsr_plugins.random_states import random_states_kept

GENERATOR = "generator"
"""The quantity that is made for each loss: a CPU generator, in the same state on every rank."""

SUFFIX = "_opt"
_GREY = 0.5
_STEMS = {"pixel": "pix", "perceptual": "percep", "contrastive": "contrast"}  # BasicSR's names in the log, and DASR's
_NOT_TAKEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def same(*names: str) -> dict[str, str]:
    """Offer quantities under their names."""
    return {name: name for name in names}


@dataclass(frozen=True)
class StepLoss:
    """A loss; `wants` are the parameters of its `forward` that a step can serve, with the quantity for each."""

    key: str  # of its block under `train`, e.g. `align_opt`
    block: Mapping[str, Any]
    module: Callable[..., Any]
    wants: Mapping[str, str]

    @property
    def quantities(self) -> set[str]:
        """What a step has to have for it, apart from the generator."""
        return {*self.wants.values()} - {GENERATOR}

    @property
    def names(self) -> tuple[str, str]:
        """What the loss is called in the log, and the second of a pair, as a perceptual loss gives."""
        key = self.key.removesuffix(SUFFIX)
        stem = _STEMS.get(key, key)
        return f"l_{stem}", "l_style" if key == "perceptual" else f"l_{stem}_style"

    def compute(self, quantities: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weighted loss, 0-dim, or both of a pair, by their names in the log; and figures to log."""
        result = self.module(**{name: quantities[quantity] for name, quantity in self.wants.items()})
        figures: Mapping[str, Tensor | float] = {}
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
            result, figures = result
        parts = result if isinstance(result, tuple) and len(result) == 2 else (result,)
        losses = {name: part for name, part in zip(self.names, parts, strict=False) if part is not None}
        if not losses or any(not isinstance(part, Tensor) or part.dim() for part in losses.values()):
            raise OptionError(
                f"train.{self.key}: {dict(self.block)!r}, expected a loss that is one number, as with reduction: mean"
            )
        stem, device = self.key.removesuffix(SUFFIX), next(iter(losses.values())).device
        return losses, {
            f"{stem}_{name}": at_least_float32(torch.as_tensor(value, device=device)) for name, value in figures.items()
        }

    def try_on(self, images: Mapping[str, Tensor]) -> None:
        """Compute the loss of images for trial, if it wants nothing else; it and random states stay as they were."""
        if not self.wants or not images.keys() >= {*self.wants.values()}:
            return
        image = images[next(iter(self.wants.values()))]
        try:
            with random_states_kept([image.get_device()] if image.is_cuda else []), torch.no_grad():
                copy.deepcopy(self).compute(images)
        except BSRError:
            raise
        except Exception as error:
            side = image.shape[-1]
            raise OptionError(
                f"train.{self.key}.type: {self.block['type']!r}, expected a loss of images of {side}x{side} pixels "
                f"({described(error)})"
            ) from error


def build_loss(
    key: str, block: Mapping[str, Any], offered: Mapping[str, str], model: str, device: torch.device
) -> StepLoss:
    """Build the loss of the block `train.KEY`, to which the step of a model, named in messages, offers quantities."""
    place = f"train.{key}"
    try:
        made: Any = build_from_block(block, dict(iter(LOSS_REGISTRY)), place)
    except BSRError:
        raise
    except Exception as error:  # of a class that is not ours
        raise OptionError(f"{place}: {block['type']} cannot be built from this block ({described(error)})") from error
    if isinstance(made, nn.Module):
        made = made.to(device)
    wants = {}
    for name, parameter in inspect.signature(getattr(made, "forward", made)).parameters.items():
        if name in offered:
            wants[name] = offered[name]
        elif parameter.kind not in _NOT_TAKEN and parameter.default is parameter.empty:
            raise OptionError(
                f"{place}.type: {block['type']!r} wants {name!r}, expected among what {model}'s step offers: "
                f"{', '.join(sorted(offered))}{did_you_mean(name, offered)}"
            )
    return StepLoss(key, block, made, wants)


def grey_images(sides: Mapping[str, int], device: torch.device) -> dict[str, Tensor]:
    """Make two grey images of each quantity, (2, 3, side, side), for trials."""
    return {name: torch.full((2, 3, side, side), _GREY, device=device) for name, side in sides.items()}
