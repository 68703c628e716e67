"""Networks, losses and the rest, built and run for trial: nothing of it is kept, and nothing may take all memory."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bsr_plugins.archs import RepresentationNet
from bsr_plugins.blocks import call_with
from bsr_plugins.errors import BSRError, OptionError

T = TypeVar("T")

_MAKING = (
    torch.arange, torch.empty, torch.empty_strided, torch.eye, torch.full, torch.linspace, torch.logspace, torch.ones,
    torch.rand, torch.randint, torch.randn, torch.randperm, torch.range, torch.tensor, torch.tril_indices,
    torch.triu_indices, torch.zeros,
)  # fmt: skip
_MAX_TENSORS = 10_000  # the largest networks of the field have a few thousand
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_GREY = 0.5
_GIB = 1 << 30


def build_on_trial(block: Mapping[str, Any], factory: Callable[..., T], place: str) -> T:
    """Build what a block describes, with one line for whatever a stranger's class says of its arguments.

    Args:
        block: Options; all but `type` are arguments.
        factory: What takes them.
        place: The block's place in the option file.

    Raises:
        OptionError: An argument is unknown, missing, or not to the liking of the class.
    """
    arguments = {key: value for key, value in block.items() if key != "type"}
    what = f"{place}: {block['type']} cannot be built from this block{_suspects(factory, arguments)}"
    return _on_trial(lambda: call_with(factory, arguments, place), what)


def _suspects(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Name the arguments that are text where their default is a number."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of a class that is not written in Python
        return ""
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    found = [
        f"{name}: {value!r}"
        for name, value in arguments.items()
        if isinstance(value, str) and isinstance(defaults.get(name), int | float)
    ]
    return f" with {', '.join(found)}, expected numbers" if found else ""


def build_network(block: Mapping[str, Any], factory: Callable[..., nn.Module], place: str, limit: int) -> nn.Module:
    """Build a network for trial, on the CPU.

    Its tensors are counted first, so that a slip in a width does not take the machine's memory.

    Args:
        block: Its block.
        factory: Its class.
        place: The block's place in the option file.
        limit: How many bytes its tensors may have.

    Raises:
        OptionError: See `build_on_trial`; or it is too large.
    """
    try:
        with _Budget(place, limit, on_meta=True):
            build_on_trial(block, factory, place)
    except _TooLarge:
        raise
    except OptionError:
        # Some networks look at numbers while they are built, which cannot be done where there are only shapes.
        with _Budget(place, limit, on_meta=False):
            return build_on_trial(block, factory, place)
    return build_on_trial(block, factory, place)


def memory_bytes() -> int:
    """Return how much memory this machine, or what this process may have of it, has."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    return min(physical, int(limit)) if limit.isdecimal() else physical


def check_output(
    network: nn.Module, image: Tensor, scale: int, place: str, condition: Mapping[str, Tensor] | None = None
) -> None:
    """Run a network on an LR image, and check that it gives one image of the right size.

    Only shapes are looked at, and nothing is calculated, where the network lets them be.

    Args:
        network: A bare network; it is left as it was.
        image: LR image (1, C, h, w).
        scale: How many times larger the output has to be.
        place: The network's key in the option file.
        condition: What it gets besides.

    Raises:
        OptionError: It cannot be run, or what it gives is no image of that size.
    """
    output = run_on_trial(network, image, place, condition)
    batch, channels, height, width = image.shape
    expected = (batch, channels, height * scale, width * scale)
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != expected:
        raise OptionError(
            f"{place}: gives {found} for images of {tuple(image.shape)}, expected {expected}, as scale is {scale}"
        )


def run_on_trial(network: nn.Module, image: Tensor, place: str, condition: Mapping[str, Tensor] | None = None) -> Any:
    """Run a network on an image; only for shapes, where it lets numbers be. It is left as it was.

    Args:
        network: A bare network.
        image: Image (1, C, H, W).
        place: The network's key in the option file.
        condition: What it gets besides.

    Returns:
        What it gives.

    Raises:
        OptionError: It cannot be run.
    """
    what = f"{place}: cannot be run on an image of {image.shape[-1]}x{image.shape[-2]} pixels"
    given = dict(condition or {})
    try:
        shapes = copy.deepcopy(network).to("meta")
        return _run(shapes, image.to("meta"), {name: value.to("meta") for name, value in given.items()})
    except Exception:  # of whatever kind: some networks look at numbers, and those that fail will do so again
        return _on_trial(lambda: _run(network, image, given), what)


def _run(network: nn.Module, image: Tensor, condition: Mapping[str, Tensor]) -> Any:
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            output = network(image, **condition)
    finally:
        network.train(training)
    if isinstance(network, RepresentationNet) and isinstance(output, tuple):
        return output[0]
    return output


def grey_image(channels: int, side: int) -> Tensor:
    """Make an LR image (1, C, side, side) for a trial."""
    return torch.full((1, channels, side, side), _GREY)


def _on_trial(make: Callable[[], T], what: str) -> T:
    try:
        return make()
    except BSRError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise OptionError(f"{what} ({reason})") from error


class _TooLarge(OptionError):
    """What is built for trial has too many numbers."""


class _Budget(TorchFunctionMode):
    """Counts the tensors that are made while it lasts, before they are.

    Args:
        place: Whose they are, for messages.
        limit: How many bytes they may have.
        on_meta: Whether to make none, but only their shapes.
    """

    def __init__(self, place: str, limit: int, on_meta: bool) -> None:
        super().__init__()
        self._place, self._limit, self._on_meta = place, limit, on_meta
        self._bytes = self._tensors = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count what a call makes."""
        kwargs = kwargs or {}
        if function not in _MAKING:
            return function(*args, **kwargs)
        plain = {name: value for name, value in kwargs.items() if name not in ("pin_memory", "generator", "out")}
        shape = function(*args, **plain | {"device": "meta"})
        self._tensors += 1
        self._bytes += shape.numel() * shape.element_size()
        if self._tensors > _MAX_TENSORS:
            raise _TooLarge(f"{self._place}: has more than {_MAX_TENSORS} tensors, expected a smaller network")
        if self._bytes > self._limit:
            raise _TooLarge(
                f"{self._place}: has more than {self._limit / _GIB:.1f} GiB of weights, which do not fit in memory"
            )
        return shape if self._on_meta else function(*args, **kwargs)
