"""The networks of a run on the device `meta`, where they have shapes and take no memory: whether they can be built, get
weights that fit them, and make images of the right size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bsr_plugins.blocks import build_from_block, build_on_trial, one_line
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.models.blind_sr_model import BlindSRModel
from bsr_plugins.options.datasets import Built, memory_bytes
from bsr_plugins.options.faults import Faults
from bsr_plugins.options.schema import NETWORK
from bsr_plugins.safe_loading import load_safely

T = TypeVar("T")

_TRIAL_SIDE = 48  # of LR images where the options do not tell it
_LARGEST_SIDE, _LARGEST_PATCH = 128, 512
_COPIES_IN_TRAINING = 4  # weights, gradients, and two moments of Adam
_MAX_PARAMETERS = 10_000  # the largest networks of the field have a few thousand
_GREY, _GIB = 0.5, 1 << 30
_FED_OTHERWISE = ("feed_data", "dist_validation", "nondist_validation")
_PARTS = ("params_ema", "params")
_LEAST_SHARE = 0.1  # networks of many kinds begin and end with the same small layers
_NAMED = 3  # so many differing names make a message; the rest is counted


def check_networks(
    opt: Mapping[str, Any], model: Any, datasets: Mapping[str, Built], resumed: bool, faults: Faults
) -> list[str]:
    """Check all networks, their weights, and the images of `network_g`; return warnings."""
    warnings: list[str] = []
    networks: dict[str, _Trial] = {}
    of_sr = isinstance(model, type) and issubclass(model, SRModel)
    if of_sr and opt.get("network_g") is None:
        faults.at(("network_g",), f"the block is missing, {model.__name__} needs it")
    for key, block in opt.items():
        with faults.gathered(key):
            if key.startswith(NETWORK) and block is not None and faults.clear((key,)):
                networks[key] = _Trial(key, opt, faults.clear(("scale",)))
    for key, trial in networks.items():
        letter = key.removeprefix(NETWORK)
        keys = (f"pretrain_{key}", f"param_key_{letter}", f"strict_load_{letter}", "resume_state")
        with faults.gathered("path", f"pretrain_{key}"):
            if faults.clear(*(("path", name) for name in keys)):
                warnings += _check_pretrained(key, trial.network, opt, resumed)
    if not of_sr or not faults.clear(("scale",)):
        return warnings
    size = (opt["datasets"].get("train") or {}).get("gt_size") if faults.clear(("datasets", "train")) else None
    size = size if isinstance(size, int) and opt["is_train"] else 0
    with faults.gathered("network_d"):
        if "network_d" in networks and issubclass(model, SRGANModel) and 0 < size <= _LARGEST_PATCH:
            networks["network_d"].run(3, size)  # the patches that it will judge
    with faults.gathered("network_g"):
        if "network_g" in networks and isinstance(opt.get("scale"), int):
            networks["network_g"].check_output(model, sorted({built.channels for built in datasets.values()}), size)
    return warnings


class _Trial:
    """A network on `meta`, or an `OptionError` if it cannot be built, is for another scale or too large."""

    def __init__(self, key: str, opt: Mapping[str, Any], to_scale: bool) -> None:
        self._key, self._block = key, opt[key]
        self._scale: Any = opt.get("scale")
        names = ("upscale", "scale") if key == f"{NETWORK}g" else ("upscale",)
        for name in names if to_scale and self._scale is not None and isinstance(self._block, Mapping) else ():
            if self._block.get(name) not in (None, self._scale):
                found = self._block[name]
                raise OptionError(f"{key}.{name}: {found!r}, expected scale, which is {self._scale!r}")
        self._limit = memory_bytes() // (_COPIES_IN_TRAINING if opt["is_train"] else 1)
        self.network = _on_shapes(self._built).to("meta")

    def _built(self, device: str) -> nn.Module:
        build = build_from_block if device == "meta" else build_on_trial
        with _limited(self._key, self._limit), torch.device(device):
            network: nn.Module = build(self._block, dict(iter(ARCH_REGISTRY)), self._key)
        return network.eval()

    @torch.no_grad()
    def run(self, channels: int, side: int) -> Any:
        """Run it on a grey image (1, C, side, side), for shapes alone if it lets numbers be."""

        def run(device: str) -> Any:
            image = torch.full((1, channels, side, side), _GREY, device=device)
            if device == "meta":
                return self.network(image)
            network = self._built(device)
            with one_line(f"{self._key}: cannot be run on an image of {side}x{side} pixels"):
                return network(image)

        return _on_shapes(run)

    def check_output(self, model: Any, channels: list[int], size: int) -> None:
        """Check that it makes one image of the right size of an LR image, if a model gives it that and nothing else."""
        if not self._gets_an_image(model):
            return
        side = max(size // self._scale, 1) if size else _TRIAL_SIDE
        while side > _LARGEST_SIDE and side % 2 == 0:
            side //= 2
        side = side if side <= _LARGEST_SIDE else _TRIAL_SIDE
        for depth in channels or [3]:
            try:
                output = self.run(depth, side)
            except BSRError as error:
                # What our networks refuse when they run, our models refuse with the option that it comes from.
                if isinstance(error, OptionError) or not issubclass(model, BlindSRModel):
                    raise
                return
            expected = (1, depth, side * self._scale, side * self._scale)
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            if found != expected:
                raise OptionError(
                    f"{self._key}: gives {found} for images of {(1, depth, side, side)}, expected {expected}, as scale "
                    f"is {self._scale}"
                )

    def _gets_an_image(self, model: Any) -> bool:
        parameters = inspect.signature(self.network.forward).parameters.values()
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = [p for p in parameters if p.default is p.empty and p.kind in by_place]
        stock = all(getattr(model, name) is getattr(SRModel, name) for name in _FED_OTHERWISE)
        alone = len(needed) == 1 and not getattr(self.network, "needs_kernel", False)
        return alone and (stock or issubclass(model, BlindSRModel))


def _on_shapes(make: Callable[[str], T]) -> T:
    """Do it on `meta`; what looks at numbers fails there, and will do so again if it fails on the CPU for a reason."""
    try:
        return make("meta")
    except BSRError:
        raise
    except Exception:
        return make("cpu")


@contextmanager
def _limited(place: str, limit: int) -> Iterator[None]:
    """Refuse networks that are too large while they are built, as a slip in a width makes them."""
    total = number = 0

    def count(_module: nn.Module, _name: str, parameter: Any) -> None:
        nonlocal total, number
        number += 1
        total += parameter.numel() * parameter.element_size()
        if number > _MAX_PARAMETERS:
            raise BSRError(f"{place}: has more than {_MAX_PARAMETERS} parameters, expected a smaller network")
        if total > limit:
            raise BSRError(f"{place}: has more than {limit / _GIB:.1f} GiB of weights, which do not fit in memory")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _check_pretrained(key: str, network: nn.Module, opt: Mapping[str, Any], resumed: bool) -> list[str]:
    path, letter = opt["path"], key.removeprefix(NETWORK)
    if not opt["is_train"] and letter == "g" and path.get(f"pretrain_{key}") is None:
        if network.state_dict():
            raise OptionError(f"path.pretrain_{key}: None, expected the weights to be tested")
        return []
    decay = (opt.get("train") or {}).get("ema_decay", 0) if opt["is_train"] else 0
    averaged = letter == "g" and isinstance(decay, int | float) and decay > 0
    of_set = resumed and key not in (path.get("ignore_resume_networks") or ())
    try:
        return check_weights(key, network, path | {f"strict_load_{letter}": True} if of_set else path, averaged)
    except OptionError as error:
        if not of_set:
            raise
        raise OptionError(
            f"path.resume_state: {path['resume_state']}: its networks are not those of the options ({error}), expected "
            "the options that it was saved with"
        ) from error


def check_weights(key: str, network: nn.Module, path_opt: Mapping[str, Any], averaged: bool = False) -> list[str]:
    """Check the weights of `path.pretrain_KEY` against the network.

    Args:
        key: The network's key in the option file, e.g. `network_g`.
        network: The network; its shapes are looked at.
        path_opt: The block `path`.
        averaged: Whether a copy of it is to be averaged, which BasicSR loads from `params_ema` or else `params`.

    Returns:
        A warning, if loading need not be strict (`strict_load_X: false`) and only a part of the network gets weights.

    Raises:
        BSRError: The file holds no weights, or those of another network.
    """
    file, letter = path_opt.get(f"pretrain_{key}"), key.removeprefix(NETWORK)
    if file is None:
        return []
    place = f"path.pretrain_{key}: {file}"
    content, part = load_safely(Path(file), place), path_opt.get(f"param_key_{letter}", "params")
    if (averaged or part is not None) and _are_weights(content) and content:
        raise OptionError(
            f"{place}: holds no weights under {part!r}, as it is a plain state dict, expected these under 'params', or "
            f"path.param_key_{letter}: null and train.ema_decay: 0"
        )
    if isinstance(content, Mapping) and part is not None:
        content = content.get(part, content.get("params") if part in _PARTS else None)  # as BasicSR takes them
    if not _are_weights(content):
        raise OptionError(f"{place}: holds no weights under {part!r}, expected one of {', '.join(_PARTS)}")
    weights = {name.removeprefix("module."): value for name, value in content.items()}
    expected = network.state_dict()
    fitting = [name for name in expected if name in weights and weights[name].shape == expected[name].shape]
    if path_opt.get(f"strict_load_{letter}", True) is not False:
        for what, names in (
            ("lacks", [name for name in expected if name not in weights]),
            ("has the unknown", [name for name in weights if name not in expected]),
            ("has other shapes of", [name for name in expected if name not in fitting]),
        ):
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                some = ", ".join(names[:_NAMED])
                raise OptionError(f"{place}: {what} {some}{more}, expected the weights of this network")
    elif len(fitting) < len(expected):
        share = sum(expected[name].numel() for name in fitting) / sum(value.numel() for value in expected.values())
        fits = f"{place}: fits {len(fitting)} of the network's {len(expected)} tensors, {share:.1%} of its weights"
        if share < _LEAST_SHARE:
            raise OptionError(f"{fits}, expected at least {_LEAST_SHARE:.0%}; below, it is another network's")
        return [f"{fits}; the others begin at random"]
    return []


def _are_weights(content: object) -> bool:
    return isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())
