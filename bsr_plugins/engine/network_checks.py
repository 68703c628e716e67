"""Whether a run's networks can be built, get weights that fit them, and make images of the right size."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bsr_plugins.engine.faults import Faults
from bsr_plugins.engine.image_sizes import Found as FoundImages
from bsr_plugins.engine.named_blocks import model_class, registered
from bsr_plugins.engine.pretrained import check_weights
from bsr_plugins.engine.trial import build_network, check_output, grey_image, memory_bytes, run_on_trial
from bsr_plugins.errors import OptionError
from bsr_plugins.models.blind_sr_model import BlindSRModel

_TRIAL_SIDE = 48  # of LR images where the options do not tell it
_LARGEST_SIDE = 128
_LARGEST_PATCH = 512
_COPIES_IN_TRAINING = 4  # weights, gradients, and two moments of Adam
_FED_OTHERWISE = ("feed_data", "dist_validation", "nondist_validation")


def check_networks(opt: Mapping[str, Any], needed: Iterable[str], faults: Faults) -> dict[str, nn.Module]:
    """Build all networks for trial and check them and their weights.

    Args:
        opt: The run's options.
        needed: Keys of networks that it cannot do without.
        faults: Takes what is wrong.

    Returns:
        The networks by their keys, without those that have faults.
    """
    for key in sorted(needed):
        if opt.get(key) is None:
            faults.at((key,), f"the block is missing, {opt['model_type']} needs it")
    networks: dict[str, nn.Module] = {}
    for key in opt:
        if key.startswith("network_") and opt[key] is not None and faults.free((key,), ("scale",)):
            with faults.noted(key):
                networks[key] = _build(key, opt)
    for key, network in networks.items():
        letter = key.removeprefix("network_")
        keys = (f"pretrain_{key}", f"param_key_{letter}", f"strict_load_{letter}")
        if faults.free(*(("path", name) for name in keys)):
            with faults.noted("path", f"pretrain_{key}"):
                _check_weights(key, network, opt)
    if "network_d" in networks and opt["is_train"] and issubclass(model_class(opt) or object, SRGANModel):
        with faults.noted("network_d"):
            _check_discriminator(networks["network_d"], opt)
    return {key: network for key, network in networks.items() if faults.free((key,))}


def _check_discriminator(network: nn.Module, opt: Mapping[str, Any]) -> None:
    """Check that a discriminator takes the patches that it will judge."""
    size = (opt["datasets"].get("train") or {}).get("gt_size")
    if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= _LARGEST_PATCH:
        run_on_trial(network, grey_image(3, size), "network_d")


def _build(key: str, opt: Mapping[str, Any]) -> nn.Module:
    block, scale = opt[key], opt.get("scale")
    for name in ("upscale", "scale") if key == "network_g" else ("upscale",):
        if scale is not None and block.get(name) not in (None, scale):
            raise OptionError(f"{key}.{name}: {block[name]!r}, expected scale, which is {scale!r}")
    limit = memory_bytes() // (_COPIES_IN_TRAINING if opt["is_train"] else 1)
    return build_network(block, registered(ARCH_REGISTRY, block["type"]), key, limit)


def _check_weights(key: str, network: nn.Module, opt: Mapping[str, Any]) -> None:
    place = f"path.pretrain_{key}"
    if not opt["is_train"] and key == "network_g" and opt["path"].get(f"pretrain_{key}") is None:
        if network.state_dict():
            raise OptionError(f"{place}: {opt['path'].get(f'pretrain_{key}')}, expected the weights to be tested")
        return
    train_opt = opt.get("train")
    decay = train_opt.get("ema_decay", 0) if opt["is_train"] and isinstance(train_opt, Mapping) else 0
    averaged = key == "network_g" and isinstance(decay, int | float) and decay > 0
    warning = check_weights(key, network, opt["path"], averaged)
    if warning is not None and opt["rank"] == 0:
        print(f"warning: {warning}", file=sys.stderr)


def check_images(
    opt: Mapping[str, Any], model: type, network: nn.Module, found: Mapping[str, FoundImages], faults: Faults
) -> None:
    """Check that `network_g` makes images of the right size of those that it will get.

    Args:
        opt: The run's options.
        model: The class that `model_type` names; one that gives its network something else is passed over.
        network: The network.
        found: What is known of the datasets, by their keys.
        faults: Takes what is wrong.
    """
    if issubclass(model, SRModel) and isinstance(opt.get("scale"), int) and faults.free(("scale",)):
        with faults.noted("network_g"):
            _check_output(opt, model, network, found, faults)


def _check_output(
    opt: Mapping[str, Any], model: type, network: nn.Module, found: Mapping[str, FoundImages], faults: Faults
) -> None:
    condition: dict[str, Tensor] = {}
    if issubclass(model, BlindSRModel):
        condition = {name: value[:1] for name, value in model.trial_condition(network).items()}
    elif _is_fed_otherwise(model) or _wants_more(network):
        return
    channels = {dataset.channels for dataset in found.values()} or {3}
    side = _side(opt, faults)
    for number in sorted(channels):
        check_output(network, grey_image(number, side), opt["scale"], "network_g", condition)


def _side(opt: Mapping[str, Any], faults: Faults) -> int:
    """Return the side of the LR images that the network is trained on, or one that most networks take."""
    train = opt["datasets"].get("train") or {}
    size = train.get("gt_size")
    if not opt["is_train"] or not isinstance(size, int) or not faults.free(("datasets", "train")):
        return _TRIAL_SIDE
    side = max(size // opt["scale"], 1)
    while side > _LARGEST_SIDE and side % 2 == 0:
        side //= 2
    return side if side <= _LARGEST_SIDE else _TRIAL_SIDE


def _is_fed_otherwise(model: type) -> bool:
    """Whether a model gives its network something else than one LR image."""
    return any(getattr(model, name) is not getattr(SRModel, name) for name in _FED_OTHERWISE)


def _wants_more(network: nn.Module) -> bool:
    parameters = list(inspect.signature(network.forward).parameters.values())
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(needed) != 1
