"""The VGG of BasicSR's perceptual loss: what may be asked of it, and its weights, which torchvision fetches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr.archs.vgg_arch import NAMES, VGG_PRETRAIN_PATH, insert_bn
from torchvision.models import get_model_weights

from bsr_plugins.blocks import boolean, number
from bsr_plugins.errors import OptionError, unknown_name
from bsr_plugins.torch_cache import cached_file, download

_CRITERIA = ("l1", "fro")  # BasicSR's l2 names a class that torch has not
_SWITCHES = ("use_input_norm", "range_norm")
_WEIGHTS = ("perceptual_weight", "style_weight")


def check_perceptual(block: Mapping[str, Any], place: str) -> None:
    """Check the block of a `PerceptualLoss`, without its weights.

    Args:
        block: The block, `type` included.
        place: Its place in the option file.

    Raises:
        OptionError: A value cannot be used.
    """
    vgg = block.get("vgg_type", "vgg19")
    kinds = [f"{name}{norm}" for name in NAMES for norm in ("", "_bn")]
    if vgg not in kinds:
        raise unknown_name(f"{place}.vgg_type", vgg, kinds)
    layers = block["layer_weights"]
    if not isinstance(layers, Mapping) or not layers:
        raise OptionError(f"{place}.layer_weights: {layers!r}, expected layers with their weights, as {{conv5_4: 1}}")
    names = NAMES[vgg.removesuffix("_bn")]
    for layer, weight in layers.items():
        if layer not in (insert_bn(names) if vgg.endswith("_bn") else names):
            raise unknown_name(f"{place}.layer_weights", layer, map(str, names))
        number(weight, f"{place}.layer_weights.{layer}")
    for key in _SWITCHES:
        boolean(block.get(key, True), f"{place}.{key}")
    for key in _WEIGHTS:
        number(block.get(key, 0), f"{place}.{key}", 0)
    if block.get("criterion", "l1") not in _CRITERIA:
        raise unknown_name(f"{place}.criterion", block["criterion"], _CRITERIA)


def fetch_vgg(block: Mapping[str, Any], place: str) -> None:
    """Have the weights of a `PerceptualLoss` in torch's cache, as building it would.

    Args:
        block: The block, known to be sound.
        place: Its place in the option file.

    Raises:
        BSRError: They are not there and cannot be fetched.
    """
    if Path(VGG_PRETRAIN_PATH).exists():
        return
    vgg = block.get("vgg_type", "vgg19")
    url = get_model_weights(vgg).IMAGENET1K_V1.url
    file = cached_file(url)
    if not file.is_file():
        expected = f"them in {file} (for any vgg_type, BasicSR takes {VGG_PRETRAIN_PATH} where that is)"
        download(url, f"{place}: the weights of {vgg} are", expected)
