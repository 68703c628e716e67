"""LPIPS, a perceptual distance, as a metric of BasicSR's."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from basicsr.metrics.metric_util import reorder_image
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, nn

from bsr_plugins.blocks import integer
from bsr_plugins.errors import BSRError, OptionError, unknown_name
from bsr_plugins.registration import register
from bsr_plugins.safe_loading import load_safely
from bsr_plugins.torch_cache import cached_file, download

# Backbones: torchvision's name, and the least side in pixels of an image that it gives features of.
NETS = {"alex": ("alexnet", 31), "vgg": ("vgg16", 16), "squeeze": ("squeezenet1_1", 17)}
_NAME = "calculate_lpips"


@register(METRIC_REGISTRY)
def calculate_lpips(
    img: npt.NDArray[Any],
    img2: npt.NDArray[Any],
    crop_border: int,
    input_order: str = "HWC",
    net: str = "alex",
    backbone_weights: str | None = None,
    device: str = "auto",
    better: str = "lower",
) -> float:
    """Calculate LPIPS (Zhang et al., CVPR 2018), version 0.1 of the `lpips` package; 0 for equal images.

    The borders are cut off, then BGR levels in [0, 255] become RGB in [-1, 1], which the package expects. It has no
    luminance mode, so there is no `test_y_channel`.

    The package brings its linear layers, but the backbone's weights are torchvision's (ImageNet), from the file
    `backbone_weights` or from torch's cache (`checkpoints/` in `torch.hub.get_dir()`), into which they are downloaded.
    Without them there is an error, never a network with random weights. A network is built once and kept.

    Args:
        img: Image in [0, 255], any number type, shape (H, W, 3) or (3, H, W), BGR as BasicSR has it.
        img2: The other image, of the same shape. The distance is symmetric.
        crop_border: Pixels to leave out at each border. What is left must be at least 31 pixels a side for `alex`, 17
            for `squeeze`, 16 for `vgg`.
        input_order: `HWC` or `CHW`.
        net: Backbone: `alex` (AlexNet; the authors recommend it), `vgg` (VGG-16) or `squeeze` (SqueezeNet 1.1).
        backbone_weights: File with a state dict of torchvision's `alexnet`, `vgg16` or `squeezenet1_1`; only the keys
            `features.*` are read.
        device: `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is the current CUDA device if this process has initialised
            CUDA, as a run on a GPU has, else the CPU.
        better: `lower`. Option files have to say so, as BasicSR takes the greatest value for the best otherwise.

    Raises:
        OptionError: An option cannot be used.
        BSRError: The images do not fit, or the backbone's weights are missing or others than they should be.
    """
    integer(crop_border, "crop_border", 0)
    names = {"input_order": (input_order, ("HWC", "CHW")), "net": (net, NETS), "better": (better, ("lower",))}
    for key, (name, known) in names.items():
        if not isinstance(name, str) or name not in known:
            raise unknown_name(key, name, known)
    place = _device(device)
    if img.shape != img2.shape:
        raise BSRError(f"{_NAME}: images of shapes {img.shape} and {img2.shape}, expected equal ones")
    pair = [_prepared(image, crop_border, input_order, net).to(place) for image in (img, img2)]
    network = _network(net, None if backbone_weights is None else str(backbone_weights), place)
    with torch.inference_mode(), torch.autocast(place.type, enabled=False):
        return float(network(*pair))


def _device(name: object) -> torch.device:
    if name == "auto":
        in_use = torch.cuda.is_initialized()
        return torch.device("cuda", torch.cuda.current_device()) if in_use else torch.device("cpu")
    if not isinstance(name, str) or re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise OptionError(f"device: {name!r}, expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise OptionError(f"device: {name!r}, expected a device that is there ({count} of CUDA), or auto")
    return device


def _prepared(image: npt.NDArray[Any], crop_border: int, input_order: str, net: str) -> Tensor:
    """Make the network's input, shape (1, 3, H, W), of an image."""
    pixels = reorder_image(image, input_order=input_order)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise BSRError(f"{_NAME}: an image of shape {image.shape}, expected three channels in the order {input_order}")
    height, width = (side - 2 * crop_border for side in pixels.shape[:2])
    if min(height, width) < (least := NETS[net][1]):
        raise BSRError(f"{_NAME}: {width}x{height} pixels inside crop_border, expected at least {least} for {net}")
    inside = pixels[crop_border : crop_border + height, crop_border : crop_border + width, ::-1]
    rgb = torch.from_numpy(np.ascontiguousarray(inside.transpose(2, 0, 1), dtype=np.float32))
    return rgb[None] / 127.5 - 1


@cache
def _network(net: str, backbone_weights: str | None, device: torch.device) -> nn.Module:
    """Build the metric's network, its backbone with the weights of a file."""
    from torchvision.models import get_model_weights  # not before, as it imports all of torchvision's networks

    try:
        import lpips  # not before: whoever copied this folder into a project may do without it
    except ModuleNotFoundError as error:
        raise BSRError(f"{_NAME}: {error}, expected the package lpips (pip install lpips)") from error
    url: str = get_model_weights(NETS[net][0]).IMAGENET1K_V1.url
    weights = cached_file(url) if backbone_weights is None else Path(backbone_weights).expanduser()
    if backbone_weights is None and not weights.is_file():
        wanted = f"the weights of LPIPS's backbone {net}: put that file there, or name a copy with backbone_weights"
        download(url, f"{weights}: is", wanted)
    state = load_safely(weights, f"{weights} (LPIPS backbone {net})")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package asks torchvision for a backbone in a deprecated way
        network: nn.Module = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    complaint = f"{weights}: is no state dict of LPIPS's backbone {net}"
    if not isinstance(state, Mapping):
        raise BSRError(f"{complaint}, expected a state dict of torchvision's")
    backbone = network.get_submodule("net")
    chosen: dict[str, Tensor] = {}
    wrong = []
    for name, parameter in backbone.state_dict().items():
        key = f"features.{name.partition('.')[2]}"  # in the package it is `sliceK.`
        value = state.get(key)
        if not isinstance(value, Tensor):
            wrong.append(f"{key} is missing")
        elif value.shape != parameter.shape:
            wrong.append(f"{key} has the shape {tuple(value.shape)} and not {tuple(parameter.shape)}")
        else:
            chosen[name] = value
    if wrong:
        raise BSRError(f"{complaint}: {'; '.join(wrong)}")
    backbone.load_state_dict(chosen)
    return network.to(device).eval().requires_grad_(False)
