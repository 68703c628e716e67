"""The training step of ReDSR as a plain port does it, beside ours: same weights, same batch, same degradations.

The plain port does as the released code does (TRAIN_setting1 of https://github.com/Chernobyllight/ReDSR), written
anew: the dynamic convolution as one `conv2d` with groups = batch × channels, the energy distance over all pairs laid
out by `repeat_interleave`, the blur as a grouped `conv2d` of 21×21 taps over the HR images before the bicubic is
gathered tap by tap. Its losses are the paper's, with the paper's weights, as ours are. What both take from torch and
from this package's networks is the same, so that nothing but these parts can differ.
"""

from __future__ import annotations

import copy
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

from bsr_plugins.archs import ReDSR, ReDSRDegrader
from bsr_plugins.archs.da_conv import DAConv
from bsr_plugins.archs.dynamic_conv import dynamic_depthwise_conv
from bsr_plugins.degradations import ClassicalDegradation, Params, classical_params
from bsr_plugins.degradations.resize import border_indices
from bsr_plugins.losses import EnergyDistanceLoss, ModulatedL1Loss, redegradation_distance
from plain_degradations import gaussian_kernels_of, plain_blur_bicubic

SCALE = 4
KERNEL_SIZE = 21
SIGMA = (0.2, 4.0)
REPRESENTATION_DIM = 64
NUM_SAMPLES = 64
ENERGY_WEIGHT = 0.01
LEARNING_RATE = 1e-4
_SEED = 10
_MEMORY_STEPS = 2  # the second finds the optimiser's state in memory, as all later ones do


@dataclass(frozen=True)
class StepSize:
    """What a step works on.

    Attributes:
        images: Images in a batch, of two patches each.
        lr_size: Side of the LR patches, at least 24.
        num_feat: Channels of the generator's and the degrader's features, and width of the encoder.
        num_group: Groups of the generator.
        num_block: Blocks in each group.
    """

    images: int
    lr_size: int
    num_feat: int
    num_group: int
    num_block: int

    def __str__(self) -> str:
        """Say it in a cell of a table."""
        return f"{self.images}×{self.lr_size}², {self.num_feat} features, {self.num_group}×{self.num_block} blocks"


SIZES = {
    "tiny": StepSize(2, 24, 8, 1, 1),
    "small": StepSize(4, 48, 64, 5, 2),
    "paper": StepSize(16, 64, 64, 5, 5),
}
"""Sizes by name; the last is that of the paper's recipe."""


class Batch(NamedTuple):
    """HR patches and how to degrade them.

    Attributes:
        gt: (B, 2, 3, H, W), RGB in [0, 1].
        params: One degradation for each image, as `classical_params` gives them.
    """

    gt: Tensor
    params: Params


def photograph_batch(size: StepSize, device: torch.device) -> Batch:
    """Cut a batch out of a photograph, float32, and give every image another isotropic kernel."""
    photograph = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    side = size.lr_size * SCALE
    crops = []
    for number in range(2 * size.images):
        rows = border_indices(torch.arange(side) + 7 * number, photograph.shape[1], "mirror")
        columns = border_indices(torch.arange(side) + 5 * number, photograph.shape[2], "mirror")
        crops.append(photograph[:, rows][:, :, columns])
    widths = torch.linspace(*SIGMA, size.images + 2)[1:-1]
    gt = torch.stack(crops).view(size.images, 2, 3, side, side)
    return Batch(gt.to(device), classical_params(widths.tolist()))


class Networks(NamedTuple):
    """The network with encoder and generator, and the degrader."""

    net_g: nn.Module
    degrader: nn.Module


def build_networks(size: StepSize, device: torch.device) -> Networks:
    """Build networks of a size; their weights come from torch's global random state."""
    encoder = {"type": "ReDSREncoder", "num_feat": size.num_feat, "representation_dim": REPRESENTATION_DIM}
    net_g = ReDSR(size.num_feat, size.num_group, size.num_block, upscale=SCALE, encoder=encoder)
    return Networks(net_g.to(device), ReDSRDegrader(size.num_feat, REPRESENTATION_DIM, scale=SCALE).to(device))


class TrainingStep:
    """Ours: what `ReDSRModel` does in a step, but for the 8 bits, as rounding makes much of a float error.

    Args:
        networks: What to train; it is copied.
    """

    def __init__(self, networks: Networks) -> None:
        self.net_g, self.degrader = (copy.deepcopy(network) for network in networks)
        parameters = [*self.net_g.parameters(), *self.degrader.parameters()]
        self.optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=LEARNING_RATE)
        self._degradation = ClassicalDegradation(SCALE, KERNEL_SIZE, round_to_8bit=False)
        self._energy_distance = EnergyDistanceLoss(ENERGY_WEIGHT, "gaussian", NUM_SAMPLES)
        self._modulated_loss = ModulatedL1Loss()

    def degrade(self, batch: Batch) -> Tensor:
        """Make the LR patches (B, 2, 3, h, w)."""
        return self._degradation(batch.gt, batch.params)

    def energy_distance(self, representation: Tensor, generator: torch.Generator) -> Tensor:
        """Return the weighted loss of Eq. 5."""
        loss: Tensor = self._energy_distance(representation, generator)
        return loss

    def modulated_loss(self, sr: Tensor, gt: Tensor, reproduced: Tensor, lq: Tensor) -> Tensor:
        """Return the loss of Eq. 7 and 8."""
        loss: Tensor = self._modulated_loss(sr, gt, redegradation_distance(reproduced, lq))
        return loss

    def losses(self, gt: Tensor, lq: Tensor) -> dict[str, Tensor]:
        """Return the losses of Eq. 9, of HR patches (B, 2, 3, H, W) and LR patches (B, 2, 3, h, w)."""
        sr, representation = self.net_g(lq[:, 0], return_representation=True)
        generator = torch.Generator().manual_seed(_SEED)
        reproduced = self.degrader(gt[:, 1], representation)
        return {
            "l_representation": self.energy_distance(representation, generator),
            "l_redegradation": F.l1_loss(reproduced, lq[:, 1]),
            "l_pix": self.modulated_loss(sr, gt[:, 0], reproduced, lq[:, 1]),
        }

    def differentiate(self, batch: Batch) -> dict[str, Tensor]:
        """Degrade, and leave the gradients of the summed losses with the parameters; return the losses."""
        with torch.no_grad():
            lq = self.degrade(batch)
        losses = self.losses(batch.gt, lq)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def run(self, batch: Batch) -> None:
        """Do the whole step."""
        self.differentiate(batch)
        self.optimizer.step()

    def gradients(self) -> dict[str, Tensor]:
        """Return the flat gradients of all parameters by name.

        Those of single weights (PReLU's) come together for each network, as they are sums that may all but cancel.
        """
        found: dict[str, list[Tensor]] = {}
        for key, network in (("net_g", self.net_g), ("degrader", self.degrader)):
            for name, parameter in network.named_parameters():
                if parameter.grad is not None:
                    place = f"{key}.{name}" if parameter.numel() > 1 else f"{key}, single weights"
                    found.setdefault(place, []).append(parameter.grad.flatten())
        return {place: torch.cat(some) for place, some in found.items()}


class PlainStep(TrainingStep):
    """The plain port, on copies of the same networks.

    Args:
        networks: What to train; it is copied.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__(Networks(*(_plain_copy(network) for network in networks)))

    def degrade(self, batch: Batch) -> Tensor:
        """See `plain_degradation`."""
        return plain_degradation(*batch)

    def energy_distance(self, representation: Tensor, generator: torch.Generator) -> Tensor:
        """See `plain_energy_distance`."""
        return plain_energy_distance(representation, generator)

    def modulated_loss(self, sr: Tensor, gt: Tensor, reproduced: Tensor, lq: Tensor) -> Tensor:
        """Return the loss of Eq. 7 and 8, written down as they are."""
        distance = ((reproduced - lq) ** 2).mean((1, 2, 3)).sqrt().detach()
        weight = 2 / (1 + distance)
        return (weight * (sr - gt).abs().mean((1, 2, 3))).mean()


class PlainDAConv(nn.Module):
    """`DAConv` with the plain dynamic convolution, on the layers of one that exists."""

    def __init__(self, ours: DAConv) -> None:
        super().__init__()
        self.pad_mode = ours.pad_mode
        self.kernel, self.act, self.conv, self.attention = ours.kernel, ours.act, ours.conv, ours.attention

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        """See `DAConv.forward`."""
        kernels = self.kernel(representation).view(*x.shape[:2], 3, 3)
        mixed: Tensor = self.conv(self.act(plain_dynamic_conv(x, kernels, self.pad_mode)))
        scaled: Tensor = x * self.attention(representation[:, :, None, None])
        return mixed + scaled


def _plain_copy(network: nn.Module) -> nn.Module:
    copied = copy.deepcopy(network)
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, DAConv):
                setattr(module, name, PlainDAConv(child))
    return copied


def plain_dynamic_conv(x: Tensor, kernels: Tensor, pad_mode: str) -> Tensor:
    """Convolve features (B, C, H, W) with kernels (B, C, k, k) in one `conv2d` with B·C groups."""
    batch, channels, height, width = x.shape
    radius = kernels.shape[-1] // 2
    zeros = pad_mode == "constant"
    outside = x if zeros else F.pad(x, (radius,) * 4, mode=pad_mode)
    planes = outside.reshape(1, batch * channels, *outside.shape[-2:])
    filters = kernels.reshape(batch * channels, 1, *kernels.shape[-2:])
    result = F.conv2d(planes, filters, padding=radius if zeros else 0, groups=batch * channels)
    return result.view(batch, channels, height, width)


def plain_energy_distance(representation: Tensor, generator: torch.Generator) -> Tensor:
    """Return the weighted Eq. 5 of representations (B, C) and normal samples."""
    samples = torch.randn(NUM_SAMPLES, representation.shape[1], generator=generator).to(representation)
    within = _mean_norm(representation, representation) + _mean_norm(samples, samples)
    return ENERGY_WEIGHT * (2 * _mean_norm(representation, samples) - within)


def _mean_norm(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean distance of all pairs of (N, C) and (M, C), laid out as two times (N·M, C)."""
    pairs = first.repeat_interleave(len(second), 0) - second.repeat(len(first), 1)
    distance: Tensor = torch.linalg.vector_norm(pairs, dim=1).mean()
    return distance


def plain_degradation(gt: Tensor, params: Params) -> Tensor:
    """See `plain_blur_bicubic`: HR patches (B, V, 3, H, W) to (B, V, 3, H/s, W/s)."""
    return plain_blur_bicubic(gt, gaussian_kernels_of(params, KERNEL_SIZE, gt), SCALE)


WAYS: dict[str, type[TrainingStep]] = {"plain": PlainStep, "ours": TrainingStep}


class Agreement(NamedTuple):
    """How far the plain port and ours are apart.

    Attributes:
        losses: Each loss of the plain port, and ours minus it.
        gradient: Largest difference of the gradient of a parameter, or of a network's single weights together,
            relative to that gradient (Euclidean norms).
        parameter: Whose gradient that is.
    """

    losses: dict[str, tuple[float, float]]
    gradient: float
    parameter: str


def agreement(steps: Mapping[str, TrainingStep], batch: Batch) -> Agreement:
    """Differentiate once both ways, the degradation included."""
    losses = {name: step.differentiate(batch) for name, step in steps.items()}
    differences = {key: (float(loss), float(losses["ours"][key] - loss)) for key, loss in losses["plain"].items()}
    plain, ours = (steps[name].gradients() for name in WAYS)
    if plain.keys() != ours.keys():
        return Agreement(differences, float("inf"), ", ".join(sorted(plain.keys() ^ ours.keys())))
    apart = torch.stack([(ours[name] - grad).norm() / grad.norm() for name, grad in plain.items()])
    worst = int(apart.argmax())  # one that is no number counts as the largest
    return Agreement(differences, float(apart[worst]), list(plain)[worst])


class Part(NamedTuple):
    """What the two do differently.

    Attributes:
        name: What it is.
        size: On what, for a table.
        ways: How each does it, and its backward pass.
    """

    name: str
    size: str
    ways: dict[str, Callable[[], object]]


def parts(steps: Mapping[str, TrainingStep], size: StepSize, batch: Batch) -> list[Part]:
    """Return the parts of a step that the two do differently, at the sizes of that step."""
    views = batch.gt.shape
    return [
        _dynamic_conv("generator", "constant", (size.images, size.num_feat, size.lr_size, size.lr_size), batch.gt),
        _dynamic_conv("degrader", "reflect", (size.images, size.num_feat, *views[-2:]), batch.gt),
        _energy_distance(steps, (size.images, REPRESENTATION_DIM), batch.gt),
        Part("degradation", _times(*views), {name: partial(step.degrade, batch) for name, step in steps.items()}),
    ]


def _dynamic_conv(where: str, pad_mode: str, shape: tuple[int, ...], like: Tensor) -> Part:
    x, kernels, grad = _drawn(shape, like), _drawn((*shape[:2], 3, 3), like), _drawn(shape, like)
    x, kernels = x.requires_grad_(), kernels.requires_grad_()

    def run(way: Callable[[Tensor, Tensor, str], Tensor]) -> object:
        return torch.autograd.grad(way(x, kernels, pad_mode), (x, kernels), grad)

    ways: dict[str, Callable[[Tensor, Tensor, str], Tensor]]
    ways = {"plain": plain_dynamic_conv, "ours": dynamic_depthwise_conv}
    return Part(
        f"dynamic convolution, {where}", _times(*shape), {name: partial(run, way) for name, way in ways.items()}
    )


def _energy_distance(steps: Mapping[str, TrainingStep], shape: tuple[int, ...], like: Tensor) -> Part:
    representation = _drawn(shape, like).requires_grad_()

    def run(step: TrainingStep) -> object:
        return torch.autograd.grad(step.energy_distance(representation, torch.Generator()), representation)

    return Part("energy distance", _times(*shape), {name: partial(run, step) for name, step in steps.items()})


def _drawn(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(_SEED)).to(like)


def _times(*sides: int) -> str:
    return "×".join(map(str, sides))


def peak_memory(way: str, size: StepSize, device: str, threads: int) -> int:
    """Measure what whole steps need at most, above what is there before the first; to be run in a fresh process.

    On CUDA it is what torch has allocated. On a CPU it is resident memory, whose peak the system keeps for the life of
    a process: hence the fresh one. It contains what the allocator keeps back for reuse.

    Args:
        way: `plain` or `ours`.
        size: What to work on.
        device: `cpu` or `cuda`.
        threads: CPU threads.

    Returns:
        int: Bytes.
    """
    torch.set_num_threads(threads)
    place = torch.device(device)
    step, batch = WAYS[way](build_networks(size, place)), photograph_batch(size, place)
    peak = torch.cuda.max_memory_allocated if place.type == "cuda" else _peak_resident
    before = peak()
    for _ in range(_MEMORY_STEPS):
        step.run(batch)
    return peak() - before


def _peak_resident() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # where getrusage's figure starts from that of the process that has started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
