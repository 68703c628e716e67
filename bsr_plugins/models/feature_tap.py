"""What enters one layer of a network in a forward pass: found, looked at and replaced from outside.

Nothing stays on a network: for the length of a `with` block something else stands in for the `forward` of a layer.
`torch.compile` notices that in networks that were compiled before, too; later hooks it does not.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from basicsr.archs.ridnet_arch import MeanShift
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from bsr_plugins.errors import BSRError, OptionError, described
from bsr_plugins.models.step_guard import keep_buffers

Replace = Callable[[Tensor], Tensor]


def bare_network(network: nn.Module) -> nn.Module:
    """Return a network without what DDP, `DataParallel` and `torch.compile` put around it."""
    wraps = isinstance(network, DataParallel | DistributedDataParallel)
    inner = getattr(network, "module" if wraps else "_orig_mod", None)
    return bare_network(inner) if isinstance(inner, nn.Module) else network


class TappedPass:
    """What entered a layer in the last of its calls, `features` (B, C, H, W), as it was before it was replaced."""

    calls = 0
    features: Tensor
    with_gradient = True


@dataclass(frozen=True)
class FeatureTap:
    """A layer of a network that can be tapped; `find_tap` makes it.

    One tap goes with every network of the same kind: wrapped, compiled, or its EMA copy.

        with tap(network) as tapped:
            output = network(lq)
        tapped.features

    Features come with their graph, so that a loss on them trains the network, under DDP too. A layer in a part with
    activation checkpointing, which runs again in the backward pass, cannot be tapped.

    Attributes:
        layer: The layer's path in the bare network, as in `named_modules`.
        calls: How often it runs in one pass; its last call is the one that counts.
        channels: C of the features that enter.
    """

    layer: str
    calls: int
    channels: int

    @contextmanager
    def __call__(self, network: nn.Module, replace: Replace | None = None) -> Iterator[TappedPass]:
        """Tap the layer during one forward pass; `replace` maps features to what enters in their place, of equal shape.

        Raises:
            BSRError: The layer did not run, ran without gradient, or, with `replace`, ran another number of times than
                it did when the tap was made.
        """
        tapped = TappedPass()

        def take(features: Tensor) -> Tensor:
            tapped.calls += 1
            tapped.features, tapped.with_gradient = features, torch.is_grad_enabled()
            return features if replace is None or tapped.calls != self.calls else replace(features)

        with _first_argument_through(take, bare_network(network).get_submodule(self.layer)):
            yield tapped
        fault = ""
        if tapped.calls == 0 or (replace is not None and tapped.calls != self.calls):
            fault = f"ran {tapped.calls} times in a forward pass, expected {self.calls} times"
        elif torch.is_grad_enabled() and not tapped.with_gradient:
            fault = "runs without gradient, expected one outside frozen or checkpointed parts, for train.tap_layer"
        if fault:
            raise BSRError(f"layer {self.layer!r}: {fault}")


def find_tap(
    network: nn.Module, image: Tensor, layer: str | None = None, condition: Mapping[str, Tensor] | None = None
) -> FeatureTap:
    """Find the last `Conv2d` that is called in a forward pass, or a named layer, by running one for trial.

    The trial is in training mode, as some networks run other layers in evaluation. It leaves modes, buffers and torch's
    random states as they were. Ours: the shift by the mean colour, which in many networks is a fixed 1×1 convolution of
    the image, does not count.

    Args:
        network: Any network, wrapped or bare.
        image: LR images (B, 3, h, w) that it takes, on its device.
        layer: Path of a module, as in `named_modules`, of any type.
        condition: What the network gets with it, by the names of its arguments.

    Raises:
        OptionError: The network does not take the image; no `Conv2d` is called; the named layer does not exist, does
            not run or does not get features (B, C, H, W); or these are overwritten in place afterwards.
    """
    bare = bare_network(network)
    kind = type(bare).__name__
    calls: Counter[str] = Counter()
    last: tuple[Any, ...] = ()

    def record(name: str, features: Any) -> Any:
        nonlocal last
        calls[name] += 1
        last = name, features, getattr(features, "_version", None)
        return features

    with ExitStack() as stack:
        stack.enter_context(_without_a_trace(bare, image.device))
        for name, module in _candidates(bare, layer).items():
            stack.enter_context(_first_argument_through(partial(record, name), module))
        try:
            bare(image, **(condition or {}))
        except Exception as error:
            reason = described(error)
            raise OptionError(
                f"network_g: {kind} does not run on {tuple(image.shape)}, expected a network for LR patches ({reason})"
            ) from error
    if not last:
        none = f"network_g: no Conv2d runs in {kind}'s forward pass, expected one, or train.tap_layer"
        other = f"train.tap_layer: {layer!r} does not run in {kind}'s forward pass, expected one that does"
        raise OptionError(none if layer is None else other)
    found, features, version = last
    if not isinstance(features, Tensor) or features.dim() != 4 or len(features) != len(image):
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise OptionError(f"train.tap_layer: {found!r} gets {got} for {len(image)} images, expected (B, C, H, W)")
    if features._version != version:
        line = f"train.tap_layer: what enters {found!r} is overwritten afterwards, in place"
        raise OptionError(f"{line}, expected a layer whose input stays")
    return FeatureTap(found, calls[found], features.shape[1])


def _candidates(bare: nn.Module, layer: str | None) -> dict[str, nn.Module]:
    """Return the modules that may be the one: the named one, or all convolutions but fixed shifts of the colour."""
    if layer is None:
        return {
            name: module
            for name, module in bare.named_modules()
            if isinstance(module, nn.Conv2d)
            and not isinstance(module, MeanShift)
            and (module.kernel_size != (1, 1) or module.weight.requires_grad)
        }
    named = {name: module for name, module in bare.named_modules(remove_duplicate=False) if name}
    if layer not in named:
        nearest = difflib.get_close_matches(layer, named, n=3, cutoff=0)
        raise OptionError(
            f"train.tap_layer: there is no layer {layer!r} in {type(bare).__name__}, expected a module's path; "
            f"the nearest are {', '.join(map(repr, nearest)) or 'none, as it has no modules'}"
        )
    return {layer: named[layer]}


@contextmanager
def _first_argument_through(take: Replace, module: nn.Module) -> Iterator[None]:
    """Let the first argument of a module's `forward`, by place or by name, go through `take`."""
    original, is_set = module.forward, "forward" in vars(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if args:
            return original(take(args[0]), *args[1:], **kwargs)
        name = next(iter(kwargs))
        return original(**{**kwargs, name: take(kwargs[name])})

    module.forward = forward
    try:
        yield
    finally:
        if is_set:
            module.forward = original
        else:
            del module.forward


@contextmanager
def _without_a_trace(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a network in training mode, without gradient, and leave it and torch's random states as they were."""
    modes = {module: module.training for module in network.modules()}
    put_back = keep_buffers([network])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        try:
            network.train()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            put_back()
