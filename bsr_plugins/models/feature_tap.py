"""What enters one layer of a network in a forward pass: found, looked at and replaced from outside.

No arch is edited, and nothing stays on a network: for the length of one `with` block a tap stands in for the `forward`
of one layer. That is what `torch.compile` notices, in networks that were compiled before, too; hooks that come later it
does not by default. Where a network hands a layer's weight to `conv2d` instead of calling the layer, that
call is watched.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from basicsr.archs.ridnet_arch import MeanShift
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.overrides import TorchFunctionMode

from bsr_plugins.errors import BSRError, OptionError, described

Replace = Callable[[Tensor], Tensor]
_OVERWRITTEN = "is overwritten afterwards, in place, expected a layer whose input stays"
_OFFERED = 3  # names in the message about a layer that is not there


def bare_network(network: nn.Module) -> nn.Module:
    """Return a network without what DDP, `DataParallel` and `torch.compile` put around it."""
    while True:
        if isinstance(network, DataParallel | DistributedDataParallel):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network._orig_mod  # type: ignore[assignment]
        else:
            return network


class TappedPass:
    """What entered a tapped layer in a forward pass.

    Attributes:
        calls: How often the layer has run.
    """

    def __init__(self, last: int, replace: Replace | None) -> None:
        self.calls = 0
        self._last = last
        self._replace = replace
        self._features: Tensor | None = None
        self._with_gradient = True
        self._version: int | None = None

    @property
    def features(self) -> Tensor:
        """What entered the layer, (B, C, H, W), in the last of its calls; as it was before it was replaced."""
        assert self._features is not None, "the forward pass runs inside the with block"
        return self._features

    def take(self, features: Tensor) -> Tensor:
        """Keep what enters the layer, and return what shall."""
        self.calls += 1
        self._features = features
        self._with_gradient = torch.is_grad_enabled()
        self._version = _version(features)
        if self._replace is None or self.calls != self._last:
            return features
        return self._replace(features)

    def check(self, layer: str) -> None:
        """Check, after the pass, that what entered can be used.

        Raises:
            BSRError: It cannot.
        """
        if self.calls == 0 or (self._replace is not None and self.calls != self._last):
            raise BSRError(f"layer {layer!r}: ran {self.calls} times in a forward pass, expected {self._last} times")
        if self._version not in (None, _version(self.features)):
            raise BSRError(f"layer {layer!r}: what enters it {_OVERWRITTEN}, for train.tap_layer")
        if torch.is_grad_enabled() and not self._with_gradient:
            raise BSRError(
                f"layer {layer!r}: runs without gradient, expected one outside frozen or checkpointed parts, "
                "for train.tap_layer"
            )


def _version(features: Tensor) -> int | None:
    """Count what was written into a tensor, where that is counted: a compiled network writes into none that is seen."""
    if torch.compiler.is_compiling() or features.is_inference():
        return None
    return features._version


@dataclass(frozen=True)
class FeatureTap:
    """A layer of a network that can be tapped; `find_tap` makes it.

    It holds names and numbers only, so one tap goes with every network of the same kind: wrapped, compiled, or its EMA
    copy. Use it around a forward pass:

        with tap(network) as tapped:
            output = network(lq)
        tapped.features

    Features come with their graph, so that a loss on them trains the network. Under DDP they are those of the module
    inside, in the pass that DDP synchronises. Under autocast they have the type that reaches the layer. A layer inside
    an activation-checkpointed part cannot be tapped, as it runs again in the backward pass.

    Attributes:
        layer: The layer's path in the bare network, as in `named_modules`.
        calls: How often it runs in one pass; its last call is the one that counts.
        functional: Whether the network gives the layer's weight to `conv2d` and does not call the layer.
        channels: C of the features that enter.
    """

    layer: str
    calls: int
    functional: bool
    channels: int

    @contextmanager
    def __call__(self, network: nn.Module, replace: Replace | None = None) -> Iterator[TappedPass]:
        """Tap the layer during one forward pass.

        Args:
            network: The network, wrapped or bare.
            replace: Maps the features to what enters the layer in their place; same shape.

        Raises:
            BSRError: The layer did not run, ran without gradient, or, with `replace`, ran another number of times than
                it did when the tap was made.
        """
        module = bare_network(network).get_submodule(self.layer)
        tapped = TappedPass(self.calls, replace)

        def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            args, kwargs = _through(tapped.take, args, kwargs)
            return original(*args, **kwargs)

        weight: Any = getattr(module, "weight", None)
        with _WeightWatch((weight, tapped.take)) if self.functional else _other_forward(module, forward):
            yield tapped
        tapped.check(self.layer)


def find_tap(
    network: nn.Module, image: Tensor, layer: str | None = None, condition: Mapping[str, Tensor] | None = None
) -> FeatureTap:
    """Find the last `Conv2d` that runs in a forward pass, or a named layer, by running one for trial.

    The trial is in training mode, as some networks run other layers in evaluation, and without gradient. It leaves
    modes, buffers, attributes and torch's random states as they were. A layer that runs several times is placed by its
    last run. Ours: the shift by the mean colour, which in many networks is a fixed 1×1 convolution of the image, does
    not count.

    Args:
        network: Any network, wrapped or bare.
        image: LR images (B, 3, h, w) that it takes, on its device.
        layer: Path of a module, as in `named_modules`, of any type.
        condition: What the network gets with it, by the names of its arguments.

    Raises:
        OptionError: The network does not take the image; no `Conv2d` runs; the named layer does not exist, does not run
            or does not get features (B, C, H, W); or these are overwritten in place afterwards.
    """
    bare = bare_network(network)
    kind = type(bare).__name__
    trial = _Trial(_candidates(bare, layer))
    with ExitStack() as stack:
        stack.enter_context(_without_a_trace(bare, image.device))
        trial.listen(stack)
        try:
            bare(image, **(condition or {}))
        except Exception as error:
            reason = described(error)
            raise OptionError(
                f"network_g: {kind} does not run on {tuple(image.shape)}, expected a network for LR patches ({reason})"
            ) from error
    if trial.last is None:
        if layer is not None:
            raise OptionError(
                f"train.tap_layer: {layer!r} does not run in {kind}'s forward pass, expected one that does"
            )
        raise OptionError(f"network_g: no Conv2d runs in {kind}'s forward pass, expected one, or train.tap_layer")
    found, functional, features = trial.last
    if not isinstance(features, Tensor) or features.dim() != 4 or len(features) != len(image):
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise OptionError(f"train.tap_layer: {found!r} gets {got} for {len(image)} images, expected (B, C, H, W)")
    if _version(features) != trial.version:
        raise OptionError(f"train.tap_layer: what enters {found!r} {_OVERWRITTEN}")
    calls = (trial.weight_calls if functional else trial.calls)[found]
    return FeatureTap(found, calls, functional, features.shape[1])


def _candidates(bare: nn.Module, layer: str | None) -> dict[str, nn.Module]:
    """Return the modules that may be the one: the named one, or all convolutions."""
    if layer is None:
        convolutions = {name: module for name, module in bare.named_modules() if isinstance(module, nn.Conv2d)}
        return {name: module for name, module in convolutions.items() if not _only_shifts(module)}
    named = {name: module for name, module in bare.named_modules(remove_duplicate=False) if name}
    if not isinstance(layer, str) or layer not in named:
        nearest = difflib.get_close_matches(str(layer), named, n=_OFFERED, cutoff=0)
        raise OptionError(
            f"train.tap_layer: there is no layer {layer!r} in {type(bare).__name__}, expected a module's path; "
            f"the nearest are {', '.join(map(repr, nearest)) or 'none, as it has no modules'}"
        )
    return {layer: named[layer]}


def _only_shifts(convolution: nn.Conv2d) -> bool:
    """Say whether a convolution is only the colour shift with which many networks end."""
    fixed = convolution.kernel_size == (1, 1) and not convolution.weight.requires_grad
    return fixed or isinstance(convolution, MeanShift)


class _Trial:
    """Records which of some modules runs last, how often they run, and what enters.

    Attributes:
        last: Name of the module that ran last, whether that was a call of `conv2d` with its weight from outside the
            module, and what entered. None if none ran.
        calls: How often each module was called.
        version: What `_version` said of that, then.
        weight_calls: How often `conv2d` was called with each module's weight, from inside the module too.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.last: tuple[str, bool, Any] | None = None
        self.version: int | None = None
        self.calls, self.weight_calls = dict.fromkeys(modules, 0), dict.fromkeys(modules, 0)
        self._inside = 0

    def listen(self, stack: ExitStack) -> None:
        """Listen to all modules for as long as `stack` is open."""
        for name, module in self.modules.items():
            stack.enter_context(_other_forward(module, partial(self._called, name)))
        convolutions = {name: module for name, module in self.modules.items() if isinstance(module, nn.Conv2d)}
        takes = tuple((module.weight, partial(self._weighed, name)) for name, module in convolutions.items())
        stack.enter_context(_WeightWatch(*takes))

    def _called(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls[name] += 1
        features = args[0] if args else next(iter(kwargs.values()), None)
        version = _version(features) if isinstance(features, Tensor) else None
        self._inside += 1
        try:
            result = original(*args, **kwargs)
        finally:
            self._inside -= 1
        self.last, self.version = (name, False, features), version
        return result

    def _weighed(self, name: str, features: Tensor) -> Tensor:
        self.weight_calls[name] += 1
        if not self._inside:
            self.last, self.version = (name, True, features), _version(features)
        return features


class _WeightWatch(TorchFunctionMode):
    """Lets the input of every `conv2d` with one of some weights through what belongs to the weight."""

    def __init__(self, *takes: tuple[Tensor, Replace]) -> None:
        super().__init__()
        self.takes = takes

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        if func is F.conv2d:
            given = args[1] if len(args) > 1 else keywords.get("weight")
            for weight, take in self.takes:
                if given is weight:
                    args, keywords = _through(take, args, keywords, "input")
                    break
        return func(*args, **keywords)


@contextmanager
def _other_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let `forward(original, *args, **kwargs)` stand in for a module's."""
    original, is_set = module.forward, "forward" in vars(module)
    module.forward = lambda *args, **kwargs: forward(original, *args, **kwargs)
    try:
        yield
    finally:
        if is_set:
            module.forward = original
        else:
            del module.forward


def _through(
    take: Replace, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let the first argument, which may be given by `name`, or else the first that is, go through `take`."""
    if args:
        return (take(args[0]), *args[1:]), kwargs
    name = next(iter(kwargs)) if name is None else name
    return args, {**kwargs, name: take(kwargs[name])}


@contextmanager
def _without_a_trace(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a network in training mode, without gradient, and leave it and torch's random states as they were."""
    held = ("_parameters", "_buffers", "_modules")
    before = [(module, dict(vars(module)), [dict(vars(module)[name]) for name in held]) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            network.train()
            yield
        finally:
            for module, attributes, contents in before:
                vars(module).clear()
                vars(module).update(attributes)
                for name, content in zip(held, contents, strict=True):
                    vars(module)[name].clear()
                    vars(module)[name].update(content)
            for buffer, value in buffers:
                buffer.copy_(value)
