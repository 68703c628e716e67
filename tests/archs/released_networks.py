"""The released networks of ReDSR and DASR, written plainly on the state dicts of their files, and such files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
Layout = dict[str, tuple[int, ...]]
Act = Callable[[str, Tensor], Tensor]

MEAN = (0.4488, 0.4371, 0.4040)
GROUPS = 5
WIDTHS = (64, 64, 128, 128, 256)
LAYOUTS = Path(__file__).resolve().parents[2] / "../shared/reference"


# What is in the files.


def conv_layout(name: str, num_in: int, num_out: int, taps: int, bias: bool = True) -> Layout:
    layout: Layout = {f"{name}.weight": (num_out, num_in, taps, taps)}
    return layout | ({f"{name}.bias": (num_out,)} if bias else {})


def linear_layout(name: str, num_in: int, num_out: int, bias: bool = True) -> Layout:
    return {f"{name}.weight": (num_out, num_in)} | ({f"{name}.bias": (num_out,)} if bias else {})


def slope(name: str, is_redsr: bool = True) -> Layout:
    return {f"{name}.weight": (1,)} if is_redsr else {}


def kernel_layout(name: str, is_redsr: bool = True) -> Layout:
    first = linear_layout(f"{name}.kernel.0", 64, 64, bias=False)
    return first | slope(f"{name}.kernel.1", is_redsr) | linear_layout(f"{name}.kernel.2", 64, 576, bias=False)


def attention_layout(name: str, hidden: int, is_redsr: bool = True) -> Layout:
    first = conv_layout(f"{name}.ca.conv_du.0", 64, hidden, 1, bias=False)
    last = conv_layout(f"{name}.ca.conv_du.2", hidden, 64, 1, bias=False)
    return first | slope(f"{name}.ca.conv_du.1", is_redsr) | last


def block_layout(name: str, is_redsr: bool) -> Layout:
    layout: Layout = {}
    for part in (f"{name}.da_conv1", f"{name}.da_conv2"):
        layout |= kernel_layout(part, is_redsr) | conv_layout(f"{part}.conv", 64, 64, 1)
        layout |= attention_layout(part, 8, is_redsr) | slope(f"{part}.prelu", is_redsr)
    layout |= conv_layout(f"{name}.conv1", 64, 64, 3) | conv_layout(f"{name}.conv2", 64, 64, 3)
    return layout | {key: s for n in (1, 2, 3) for key, s in slope(f"{name}.prelu{n}", is_redsr).items()}


def generator_layout(is_redsr: bool, num_block: int, upscale: int) -> Layout:
    layout = conv_layout("sub_mean", 3, 3, 1) | conv_layout("add_mean", 3, 3, 1) | conv_layout("head.0", 3, 64, 3)
    if is_redsr:
        layout |= linear_layout("compress.0", 64, 64, bias=False) | slope("compress.1")
        layout |= linear_layout("compress.2", 64, 64 * GROUPS)
    else:
        layout |= linear_layout("compress.0", 256, 64, bias=False)
    for group in range(GROUPS):
        for block in range(num_block):
            layout |= block_layout(f"body.{group}.body.{block}", is_redsr)
        layout |= conv_layout(f"body.{group}.body.{num_block}", 64, 64, 3)
    layout |= conv_layout(f"body.{GROUPS}", 64, 64, 3)
    for number, factor in enumerate({2: [2], 3: [3], 4: [2, 2]}[upscale]):
        layout |= conv_layout(f"tail.0.{2 * number}", 64, 64 * factor**2, 3)
    return layout | conv_layout("tail.1", 64, 3, 3)


def redsr_encoder_layout() -> Layout:
    layout: Layout = {}
    for number, (num_in, num_out) in enumerate(zip((3, *WIDTHS), (*WIDTHS, 64), strict=True)):
        layout |= conv_layout(f"ConvNet.{3 * number + 1}", num_in, num_out, 5 if number % 2 else 4)
        layout |= slope(f"ConvNet.{3 * number + 2}")
    return layout


def degrader_layout() -> Layout:
    layout = linear_layout("mlpA.0", 64, 64) | slope("mlpA.1") | linear_layout("mlpA.2", 64, 192) | slope("mlpA.3")
    layout |= conv_layout("A_head.1", 3, 64, 3) | slope("A_head.2")
    for block in ("blk1_A", "blk2_A", "blk3_A"):
        for number in (1, 2):
            part = f"{block}.da_conv{number}"
            layout |= kernel_layout(part) | attention_layout(part, 16)
            layout |= conv_layout(f"{part}.conv.1", 64, 64, 3) | slope(f"{part}.prelu")
            layout |= conv_layout(f"{block}.conv{number}.0.1", 64, 64, 3)
        layout |= {key: s for n in (1, 2, 3) for key, s in slope(f"{block}.prelu{n}").items()}
    layout |= conv_layout("A_tail.0", 64, 256, 3) | slope("A_tail.1") | conv_layout("A_tail.3", 256, 128, 3)
    layout |= slope("A_tail.4") | conv_layout("A_tail.6", 128, 64, 3) | slope("A_tail.7")
    return layout | conv_layout("A_tail.9", 64, 3, 3)


def redsr_layout(num_block: int = 5, upscale: int = 4) -> dict[str, Layout]:
    return {
        "model_DP_state_dict": redsr_encoder_layout(),
        "model_RB_state_dict": degrader_layout(),
        "model_SRN_state_dict": generator_layout(True, num_block, upscale),
    }


def dasr_layout(num_block: int = 5, upscale: int = 4) -> Layout:
    layout = {f"G.{name}": shape for name, shape in generator_layout(False, num_block, upscale).items()}
    for number, (num_in, num_out) in enumerate(zip((3, *WIDTHS), (*WIDTHS, 256), strict=True)):
        norm = f"E.encoder_q.E.{3 * number + 1}"
        layout |= conv_layout(f"E.encoder_q.E.{3 * number}", num_in, num_out, 3)
        layout |= {f"{norm}.{leaf}": (num_out,) for leaf in ("weight", "bias", "running_mean", "running_var")}
        layout |= {f"{norm}.num_batches_tracked": ()}
    return layout | linear_layout("E.encoder_q.mlp.0", 256, 256) | linear_layout("E.encoder_q.mlp.2", 256, 256)


def published_layout(name: str) -> dict[str, Any] | None:
    """The layout of the released file, read off it; None where that is not at hand."""
    file = LAYOUTS / f"{name}_checkpoint_layout.json"
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
    return found


def draw(layout: Layout, white: float, seed: int) -> State:
    """Draw weights under which the networks neither fade out nor overflow."""
    generator = torch.Generator().manual_seed(seed)

    def draw_one(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith(("sub_mean.weight", "add_mean.weight")):
            return torch.eye(3)[:, :, None, None]
        if name.endswith(("sub_mean.bias", "add_mean.bias")):
            return torch.tensor(MEAN) * (white if "add" in name else -white)
        if name.endswith("num_batches_tracked"):
            return torch.randint(100_000, (), generator=generator)
        uniform = torch.rand(shape, generator=generator)
        if name.endswith("running_var"):
            return (uniform + 0.5) * (white**2 / 8 if ".E.1." in name else 1.0)
        if shape == (1,):
            return 0.05 + 0.4 * uniform
        if len(shape) == 1:
            return uniform + 0.5 if name.endswith("weight") else uniform - 0.5
        gain = 0.1 if name.endswith("tail.1.weight") else 1.0
        return torch.randn(shape, generator=generator) * gain / math.sqrt(math.prod(shape[1:]))

    return {name: draw_one(name, shape) for name, shape in layout.items()}


def redsr_file(seed: int = 0, num_block: int = 5, upscale: int = 4) -> dict[str, Any]:
    states = redsr_layout(num_block, upscale).items()
    return {"epoch": 2900 + seed, **{part: draw(layout, 1.0, seed + n) for n, (part, layout) in enumerate(states)}}


def dasr_file(seed: int = 0, num_block: int = 5, upscale: int = 4) -> State:
    return draw(dasr_layout(num_block, upscale), 255.0, seed)


def tensors_of(content: Any) -> dict[str, Tensor]:
    """All tensors of a file by their names; a ReDSR file's are one level down."""
    parts = {"": content} if "epoch" not in content else {f"{k}.": v for k, v in content.items() if k != "epoch"}
    return {prefix + name: value for prefix, state in parts.items() for name, value in state.items()}


def assert_same_file(found: Any, expected: Any) -> None:
    """Check names and their order, dtypes, shapes and every bit."""
    assert list(found) == list(expected)
    assert found.get("epoch") == expected.get("epoch")
    assert type(found.get("epoch")) is type(expected.get("epoch"))
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape), name
        assert ours[name].numpy().tobytes() == value.numpy().tobytes(), name


class Hostile:
    """What makes a folder when it is unpickled without care."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def written(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.exists() else set()


# What is computed with them.


def conv(state: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, padding)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def mirrored(x: Tensor, border: int) -> Tensor:
    return F.pad(x, (border,) * 4, mode="reflect")


def prelu(state: State) -> Act:
    return lambda name, x: torch.where(x > 0, x, state[f"{name}.weight"] * x)


def leaky_relu(_: str, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def filtered(padded: Tensor, kernels: Tensor) -> Tensor:
    """Each channel of each sample with its own kernel; kernels (B, 9·C)."""
    channels = padded.shape[1]
    samples = zip(padded, kernels, strict=True)
    return torch.stack([F.conv2d(x[None], k.view(channels, 1, 3, 3), groups=channels)[0] for x, k in samples])


def kernels_for(state: State, name: str, vector: Tensor, act: Act) -> Tensor:
    hidden = act(f"{name}.kernel.1", linear(state, f"{name}.kernel.0", vector))
    return linear(state, f"{name}.kernel.2", hidden)


def attention(state: State, name: str, vector: Tensor, act: Act) -> Tensor:
    hidden = act(f"{name}.ca.conv_du.1", conv(state, f"{name}.ca.conv_du.0", vector[:, :, None, None]))
    return torch.sigmoid(conv(state, f"{name}.ca.conv_du.2", hidden))


def generate(state: State, image: Tensor, vectors: list[Tensor], act: Act) -> Tensor:
    """The generator of both, given the vector that steers each group."""

    def steered(name: str, x: Tensor, vector: Tensor) -> Tensor:
        zero_bordered = F.pad(x, (1, 1, 1, 1))
        inner = act(f"{name}.prelu", filtered(zero_bordered, kernels_for(state, name, vector, act)))
        return conv(state, f"{name}.conv", inner) + x * attention(state, name, vector, act)

    def block(name: str, x: Tensor, vector: Tensor) -> Tensor:
        out = act(f"{name}.prelu1", steered(f"{name}.da_conv1", x, vector))
        out = act(f"{name}.prelu2", conv(state, f"{name}.conv1", out, padding=1))
        out = act(f"{name}.prelu3", steered(f"{name}.da_conv2", out, vector))
        return x + conv(state, f"{name}.conv2", out, padding=1)

    num_block = sum(name.startswith("body.0.body.") and name.endswith(".conv1.weight") for name in state)
    start = conv(state, "head.0", conv(state, "sub_mean", image), padding=1)
    features = start
    for group, vector in enumerate(vectors):
        inner = features
        for number in range(num_block):
            inner = block(f"body.{group}.body.{number}", inner, vector)
        features = features + conv(state, f"body.{group}.body.{num_block}", inner, padding=1)
    features = start + conv(state, f"body.{GROUPS}", features, padding=1)
    for layer in ("tail.0.0", "tail.0.2"):
        if f"{layer}.weight" in state:
            wide = conv(state, layer, features, padding=1)
            features = F.pixel_shuffle(wide, math.isqrt(wide.shape[1] // 64))
    return conv(state, "add_mean", conv(state, "tail.1", features, padding=1))


def redsr_encode(state: State, lq: Tensor) -> Tensor:
    """`model_DP_state_dict` on LR images in [0, 1]."""
    x = lq
    for number in range(6):
        border, stride = (2, 1) if number % 2 else (1, 2)
        x = conv(state, f"ConvNet.{3 * number + 1}", mirrored(x, border), stride)
        x = prelu(state)(f"ConvNet.{3 * number + 2}", x)
    return x.flatten(2).mean(2)


def redsr_restore(state: State, lq: Tensor, representation: Tensor) -> Tensor:
    """`model_SRN_state_dict` on LR images in [0, 1]."""
    act = prelu(state)
    vectors = linear(state, "compress.2", act("compress.1", linear(state, "compress.0", representation)))
    return generate(state, lq, list(vectors.split(64, dim=1)), act)


def redsr_degrade(state: State, gt: Tensor, representation: Tensor) -> Tensor:
    """`model_RB_state_dict` on HR images in [0, 1]."""
    act = prelu(state)

    def steered(name: str, x: Tensor, vector: Tensor) -> Tensor:
        inner = act(f"{name}.prelu", filtered(mirrored(x, 1), kernels_for(state, name, vector, act)))
        return conv(state, f"{name}.conv.1", mirrored(inner, 1)) + x * attention(state, name, vector, act)

    vectors = act("mlpA.1", linear(state, "mlpA.0", representation))
    vectors = act("mlpA.3", linear(state, "mlpA.2", vectors))
    x = act("A_head.2", conv(state, "A_head.1", mirrored(gt, 1)))
    for name, vector in zip(("blk1_A", "blk2_A", "blk3_A"), vectors.split(64, dim=1), strict=True):
        out = act(f"{name}.prelu1", steered(f"{name}.da_conv1", x, vector))
        out = act(f"{name}.prelu2", conv(state, f"{name}.conv1.0.1", mirrored(out, 1)))
        out = act(f"{name}.prelu3", steered(f"{name}.da_conv2", out, vector))
        x = x + conv(state, f"{name}.conv2.0.1", mirrored(out, 1))
    x = act("A_tail.1", conv(state, "A_tail.0", x, stride=4))
    x = act("A_tail.4", conv(state, "A_tail.3", mirrored(x, 1)))
    x = act("A_tail.7", conv(state, "A_tail.6", mirrored(x, 1)))
    return conv(state, "A_tail.9", mirrored(x, 1))


def dasr_encode(state: State, lq: Tensor) -> Tensor:
    """The encoder, in evaluation, on LR images in [0, 255]."""
    x = lq
    for number in range(6):
        x = conv(state, f"E.encoder_q.E.{3 * number}", x, stride=2 if number in (2, 4) else 1, padding=1)
        mean, var, weight, bias = (
            state[f"E.encoder_q.E.{3 * number + 1}.{leaf}"][:, None, None]
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        x = leaky_relu("", (x - mean) / torch.sqrt(var + 1e-5) * weight + bias)
    return x.flatten(2).mean(2)


def dasr_project(state: State, representation: Tensor) -> Tensor:
    """The projection head; its result has no unit length yet."""
    hidden = leaky_relu("", linear(state, "E.encoder_q.mlp.0", representation))
    return linear(state, "E.encoder_q.mlp.2", hidden)


def dasr_restore(state: State, lq: Tensor, representation: Tensor) -> Tensor:
    """The generator on LR images in [0, 255]."""
    generator = {name.removeprefix("G."): value for name, value in state.items() if name.startswith("G.")}
    vector = leaky_relu("", linear(generator, "compress.0", representation))
    return generate(generator, lq, [vector] * GROUPS, leaky_relu)
