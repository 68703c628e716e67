"""The networks of a run on the device `meta`, where they have shapes and take no memory: whether they can be built, get
weights that fit them, and make images of the right size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bsr_plugins.blocks import call_with
from bsr_plugins.errors import BSRError, OptionError, described
from bsr_plugins.models.blind_sr_model import BlindSRModel
from bsr_plugins.options.datasets import Built, memory_bytes
from bsr_plugins.options.faults import Faults
from bsr_plugins.options.named_blocks import networks_of, registered
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


class _TooLargeError(OptionError):
    """A network has too many numbers."""


def check_networks(
    opt: Mapping[str, Any], model: Any, datasets: Mapping[str, Built], resumed: bool, faults: Faults
) -> list[str]:
    """Check all networks, their weights, and the images of `network_g`.

    Args:
        opt: The run's options; `path` names the networks of the checkpoint that it goes on from, if it does.
        model: The class that `model_type` names, or None.
        datasets: What is known of the datasets.
        resumed: Whether the run goes on from a checkpoint.
        faults: Takes what is wrong.

    Returns:
        Warnings.
    """
    warnings: list[str] = []
    networks: dict[str, Trial] = {}
    if isinstance(model, type) and issubclass(model, SRModel) and opt.get("network_g") is None:
        faults.at(("network_g",), f"the block is missing, {model.__name__} needs it")
    for key in networks_of(opt):
        if faults.clear((key,), ("scale",)):
            with faults.gathered(key):
                networks[key] = Trial(key, opt)
    for key, trial in networks.items():
        letter = key.removeprefix(NETWORK)
        keys = (f"pretrain_{key}", f"param_key_{letter}", f"strict_load_{letter}", "resume_state")
        if faults.clear(*(("path", name) for name in keys)):
            with faults.gathered("path", f"pretrain_{key}"):
                warnings += _check_pretrained(key, trial.network, opt, resumed)
    of_model = model if isinstance(model, type) and issubclass(model, SRModel) else None
    if of_model is None or not faults.clear(("scale",)):
        return warnings
    if "network_d" in networks and opt["is_train"] and issubclass(of_model, SRGANModel):
        with faults.gathered("network_d"):
            _check_discriminator(networks["network_d"], opt)
    if (
        "network_g" in networks
        and isinstance(opt.get("scale"), int)
        and _gets_an_image(of_model, networks["network_g"])
    ):
        with faults.gathered("network_g"):
            try:
                for channels in sorted({built.channels for built in datasets.values()} or {3}):
                    networks["network_g"].check_output(channels, _side(opt, faults), opt["scale"])
            except BSRError as error:
                # What our networks refuse when they run, our models refuse with the option that it comes from.
                if isinstance(error, OptionError) or not issubclass(of_model, BlindSRModel):
                    raise
    return warnings


class Trial:
    """A network on `meta`.

    Args:
        key: Its key in the option file.
        opt: The run's options.

    Raises:
        OptionError: It cannot be built, is for another scale, or does not fit in memory.
    """

    def __init__(self, key: str, opt: Mapping[str, Any]) -> None:
        block, scale = opt[key], opt.get("scale")
        for name in ("upscale", "scale") if key == f"{NETWORK}g" else ("upscale",):
            if scale is not None and block.get(name) not in (None, scale):
                raise OptionError(f"{key}.{name}: {block[name]!r}, expected scale, which is {scale!r}")
        self._key, self._type = key, block["type"]
        self._factory = registered(ARCH_REGISTRY, block["type"])
        self._arguments = {name: value for name, value in block.items() if name != "type"}
        self._limit = memory_bytes() // (_COPIES_IN_TRAINING if opt["is_train"] else 1)
        try:
            self.network = self._built("meta")
        except OptionError:
            raise
        except Exception:  # some look at numbers while they are built, and those that fail will do so again
            self.network = self._built_or_refused().to("meta")

    def _built(self, device: str) -> nn.Module:
        with _limited(self._key, self._limit), torch.device(device):
            network: nn.Module = call_with(self._factory, self._arguments, self._key)
        return network.eval()

    def _built_or_refused(self) -> nn.Module:
        what = f"{self._key}: {self._type} cannot be built from this block{suspects(self._factory, self._arguments)}"
        return on_trial(lambda: self._built("cpu"), what)

    @torch.no_grad()
    def run(self, channels: int, side: int) -> Any:
        """Run it on a grey image (1, C, side, side): for shapes alone, where it lets numbers be.

        Raises:
            OptionError: It cannot be run.
        """
        shape, what = (1, channels, side, side), f"{self._key}: cannot be run on an image of {side}x{side} pixels"
        try:
            return self.network(torch.empty(shape, device="meta"))
        except Exception:  # of whatever kind: some look at numbers, and those that fail will do so again
            network = self._built_or_refused()
            return on_trial(lambda: network(torch.full(shape, _GREY)), what)

    def check_output(self, channels: int, side: int, scale: int) -> None:
        """Check that it makes one image of the right size of an LR image.

        Raises:
            OptionError: It does not.
        """
        output, expected = self.run(channels, side), (1, channels, side * scale, side * scale)
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if found != expected:
            raise OptionError(
                f"{self._key}: gives {found} for images of {(1, channels, side, side)}, expected {expected}, as scale "
                f"is {scale}"
            )


def on_trial(make: Callable[[], T], what: str) -> T:
    """Make something of somebody else's class, with one line for whatever it raises.

    Raises:
        OptionError: It raised something; the line begins with `what`.
    """
    try:
        return make()
    except BSRError:
        raise
    except Exception as error:
        raise OptionError(f"{what} ({described(error)})") from error


def suspects(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Name the arguments that are text where their default is a number."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(factory).parameters.items()}
    found = [
        f"{name}: {value!r}"
        for name, value in arguments.items()
        if isinstance(value, str) and isinstance(defaults.get(name), int | float)
    ]
    return f" with {', '.join(found)}, expected numbers" if found else ""


@contextmanager
def _limited(place: str, limit: int) -> Iterator[None]:
    """Refuse networks that are too large while they are built, as a slip in a width makes them."""
    total = number = 0

    def count(_module: nn.Module, _name: str, parameter: Any) -> None:
        nonlocal total, number
        number += 1
        total += parameter.numel() * parameter.element_size()
        if number > _MAX_PARAMETERS:
            raise _TooLargeError(f"{place}: has more than {_MAX_PARAMETERS} parameters, expected a smaller network")
        if total > limit:
            raise _TooLargeError(
                f"{place}: has more than {limit / _GIB:.1f} GiB of weights, which do not fit in memory"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _gets_an_image(model: type, trial: Trial) -> bool:
    """Whether a model gives its network one LR image and nothing else."""
    parameters = inspect.signature(trial.network.forward).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if getattr(trial.network, "needs_kernel", False) or len(needed) != 1:
        return False
    return issubclass(model, BlindSRModel) or all(getattr(model, n) is getattr(SRModel, n) for n in _FED_OTHERWISE)


def _check_discriminator(trial: Trial, opt: Mapping[str, Any]) -> None:
    """Check that a discriminator takes the patches that it will judge."""
    size = (opt["datasets"].get("train") or {}).get("gt_size")
    if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= _LARGEST_PATCH:
        trial.run(3, size)


def _side(opt: Mapping[str, Any], faults: Faults) -> int:
    """Return the side of the LR images that the network is trained on, or one that most networks take."""
    size = (opt["datasets"].get("train") or {}).get("gt_size")
    if not opt["is_train"] or not isinstance(size, int) or not faults.clear(("datasets", "train")):
        return _TRIAL_SIDE
    side = max(size // opt["scale"], 1)
    while side > _LARGEST_SIDE and side % 2 == 0:
        side //= 2
    return side if side <= _LARGEST_SIDE else _TRIAL_SIDE


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
    content = load_safely(Path(file), place)
    part = path_opt.get(f"param_key_{letter}", "params")
    if averaged and part is None and isinstance(content, Mapping) and not any(name in content for name in _PARTS):
        raise OptionError(
            f"{place}: is a plain state dict, expected one under {' or '.join(_PARTS)}, from which the copy of "
            "train.ema_decay is loaded; or train.ema_decay: 0"
        )
    weights, expected = _weights(place, content, part, letter), network.state_dict()
    fitting = [name for name in expected if name in weights and weights[name].shape == expected[name].shape]
    if path_opt.get(f"strict_load_{letter}", True) is not False:
        _refuse(place, "lacks", [name for name in expected if name not in weights])
        _refuse(place, "has the unknown", [name for name in weights if name not in expected])
        _refuse(place, "has other shapes of", [name for name in expected if name not in fitting])
    elif len(fitting) < len(expected):
        share = sum(expected[name].numel() for name in fitting) / sum(value.numel() for value in expected.values())
        fits = f"{place}: fits {len(fitting)} of the network's {len(expected)} tensors, {share:.1%} of its weights"
        if share < _LEAST_SHARE:
            raise OptionError(f"{fits}, expected at least {_LEAST_SHARE:.0%}; below, it is another network's")
        return [f"{fits}; the others begin at random"]
    return []


def _weights(place: str, content: object, part: str | None, letter: str) -> dict[str, Tensor]:
    """Return the named part of a checkpoint; BasicSR takes `params` where there is no EMA."""
    if isinstance(content, Mapping) and part is not None:
        if content and all(isinstance(value, Tensor) for value in content.values()):
            raise OptionError(
                f"{place}: holds no weights under {part!r}, as it is a plain state dict, expected "
                f"path.param_key_{letter}: null with it (and train.ema_decay: 0), or these weights under 'params'"
            )
        content = content.get(part, content.get("params") if part in _PARTS else None)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise OptionError(f"{place}: holds no weights under {part!r}, expected one of {', '.join(_PARTS)}")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _refuse(place: str, what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise OptionError(f"{place}: {what} {', '.join(names[:_NAMED])}{more}, expected the weights of this network")
