"""Checkpoints of the released codes of ReDSR and DASR, made into BasicSR's of our networks and back.

A released ReDSR file is a dict of `epoch` and the state dicts of encoder (`model_DP_state_dict`), degrader
(`model_RB_state_dict`) and generator (`model_SRN_state_dict`); a released DASR file is one flat state dict of generator
(`G.`) and encoder with projection (`E.encoder_q.`). Here a tensor of either side has one flat name, which begins with
the part or file that it is in, e.g. `model_DP_state_dict.ConvNet.1.weight` and `net_g.encoder.features.0.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from bsr_plugins.atomic_file import StagedFile
from bsr_plugins.blocks import build_from_block, integer
from bsr_plugins.errors import BSRError
from bsr_plugins.safe_loading import load_safely

Options = dict[str, dict[str, Any]]
_Rows = list[tuple[str, str]]  # prefix of released names, of ours; in the order of the released file

PARAM_KEYS = ("params", "params_ema")
_COMPANIONS = {"ReDSR": "net_degrader", "DASR": "net_moco"}  # our file beside net_g
_NUM_GROUP = 5
_TRIPLING_CHANNELS = 9 * 64  # of the convolution before a pixel shuffle by 3
_SHIFT_RTOL, _SHIFT_ATOL = 1e-3, 1e-6  # wide enough for weights in half precision
_NAMED = 5  # so many names make a message; the rest is counted
_PARTS = ("model_DP_state_dict", "model_RB_state_dict", "model_SRN_state_dict")

# Sizes are read from names like these, of either side.
_BLOCK = re.compile(r"\.(?:body\.\d+\.body|groups\.\d+\.blocks)\.(\d+)\.conv1\.")
_UPSAMPLER = re.compile(r"\.(?:tail\.0|generator\.upsample)\.(\d+)\.")

# What MoCo has beyond the released file. A follower starts as a copy of its leader.
_FOLLOWERS = {"net_moco.key_encoder.": "net_g.encoder.", "net_moco.projection_k.": "net_moco.projection_q."}
_OURS_ALONE = (*_FOLLOWERS, "net_moco.queue")


def _under(released: str, ours: str, rows: Iterable[tuple[str, str]]) -> _Rows:
    return [(f"{released}.{theirs}", f"{ours}.{mine}") for theirs, mine in rows]


# DASR's activations have no parameters, so its files have no tensors for some of these rows.
_ACTIVATIONS = [(f"prelu{number}", f"act{number}") for number in (1, 2, 3)]
_GENERATOR_CONV = [("kernel", "kernel"), ("conv", "conv"), ("ca.conv_du", "attention"), ("prelu", "act")]
_GENERATOR_BLOCK = [
    *_under("da_conv1", "da_conv1", _GENERATOR_CONV),
    *_under("da_conv2", "da_conv2", _GENERATOR_CONV),
    *(("conv1", "conv1"), ("conv2", "conv2"), *_ACTIVATIONS),
]
_DEGRADER_CONV = [("kernel", "kernel"), ("ca.conv_du", "attention"), ("conv.1", "conv"), ("prelu", "act")]
_DEGRADER_BLOCK = [
    *_under("da_conv1", "da_conv1", _DEGRADER_CONV),
    ("conv1.0.1", "conv1"),
    *_under("da_conv2", "da_conv2", _DEGRADER_CONV),
    *(("conv2.0.1", "conv2"), *_ACTIVATIONS),
]
_DEGRADER = [
    *(("mlpA", "expand"), ("A_head.1", "head.0"), ("A_head.2", "head.1")),
    *(row for n in range(3) for row in _under(f"blk{n + 1}_A", f"blocks.{n}", _DEGRADER_BLOCK)),
    *(("A_tail.0", "downscale.0"), ("A_tail.1", "downscale.1")),
    *((f"A_tail.{theirs}", f"tail.{n}") for n, theirs in enumerate((3, 4, 6, 7, 9))),
]
# A padding, a convolution and an activation in each released layer; ours pads in the convolution.
_ENCODER = [(f"ConvNet.{3 * n + 1 + k}", f"encoder.features.{2 * n + k}") for n in range(6) for k in (0, 1)]


def _generator(num_block: int) -> _Rows:
    rows = [("sub_mean", "generator.sub_mean"), ("add_mean", "generator.add_mean")]
    rows += [("head.0", "generator.conv_first"), ("compress", "compress")]
    for n in range(_NUM_GROUP):
        released, ours = f"body.{n}.body", f"generator.groups.{n}"
        for block in range(num_block):
            rows += _under(f"{released}.{block}", f"{ours}.blocks.{block}", _GENERATOR_BLOCK)
        rows.append((f"{released}.{num_block}", f"{ours}.conv"))
    rows.append((f"body.{_NUM_GROUP}", "generator.conv_after_body"))
    return [*rows, ("tail.0", "generator.upsample"), ("tail.1", "generator.conv_last")]


class _Checkpoint:
    """A released file, or two of ours, and what such files hold; the names in it tell the sizes."""

    def __init__(self, file: Path, kind: str, tensors: Mapping[str, Any], epoch: int) -> None:
        self.file, self.kind, self.tensors, self.epoch = file, kind, tensors, epoch
        num_block = max(1, len({found[1] for name in tensors if (found := _BLOCK.search(name))}))
        # One convolution for ×2, two for ×4, one with more channels for ×3.
        upsampler = {match[1]: value for name, value in tensors.items() if (match := _UPSAMPLER.search(name))}
        triples = any(getattr(value, "shape", ())[:1] == (_TRIPLING_CHANNELS,) for value in upsampler.values())
        upscale = 3 if triples else 2 if len(upsampler) == 1 else 4
        self.title = f"the released {kind} for ×{upscale} with {num_block} blocks per group"
        network_g: dict[str, Any] = {"type": kind, "num_block": num_block, "upscale": upscale}
        if kind == "ReDSR":
            self.white = 1.0  # in the images
            degrader = {"type": "ReDSRDegrader", "scale": upscale}
            self.options: Options = {"network_g": network_g, "network_degrader": degrader}
            parts = ("net_g", _ENCODER), ("net_degrader", _DEGRADER), ("net_g", _generator(num_block))
            rows = [row for part, (net, rows) in zip(_PARTS, parts, strict=True) for row in _under(part, net, rows)]
        else:
            self.white = network_g["img_range"] = 255.0
            moco = {"type": "MoCo", "encoder": {"type": "ContrastiveEncoder", "img_range": self.white}}
            self.options = {"network_g": network_g, "network_moco": moco}
            rows = _under("G", "net_g", _generator(num_block))
            rows += [("E.encoder_q.E", "net_g.encoder.features"), ("E.encoder_q.mlp", "net_moco.projection_q")]
        archs = dict(iter(ARCH_REGISTRY))
        states = {key: build_from_block(block, archs, key).state_dict() for key, block in self.options.items()}
        # Of our fresh networks, by our names and in our order.
        self.initial = _flatten({key.replace("network_", "net_"): state for key, state in states.items()})
        self.ours = {  # our name for every released one, in the order of the released file
            released + name.removeprefix(ours): name
            for released, ours in rows
            for name in self.initial
            if name.startswith(f"{ours}.")
        }

    def fitting(self, expected: Mapping[str, str]) -> dict[str, Tensor]:
        """Return the tensors by our names, given our name for each tensor that has to be there, and no other."""
        found = {ours: self.tensors[name] for name, ours in expected.items() if name in self.tensors}
        misfits = ((name, _misfit(found[ours], self.initial[ours])) for name, ours in expected.items() if ours in found)
        wrong = {"has misfits:": [f"{name!r} {misfit}" for name, misfit in misfits if misfit]}
        _check_names(self.file, self.tensors, expected, wrong, f"the tensors of {self.title}")
        for name, wanted in self.initial.items():
            value = found.get(name, wanted)
            if "_mean." in name and not torch.allclose(value.to(wanted), wanted, _SHIFT_RTOL, _SHIFT_ATOL):
                ours, theirs = (", ".join(f"{x:.4f}" for x in tensor.flatten().tolist()) for tensor in (wanted, value))
                raise BSRError(
                    f"{self.file}: shifts images by another mean, {name.removeprefix('net_g.')} = {theirs}, expected "
                    f"{ours}, which is DIV2K's in [0, {self.white:g}]"
                )
        return found


def convert(source: Path, folder: Path, force: bool = False) -> Options:
    """Convert a released file into BasicSR's in a folder: `net_g.pth`, and `net_degrader.pth` or `net_moco.pth`.

    Every tensor is carried over as it is; a prefix `module.` of all names is dropped. The released DASR file lacks the
    key side and the queue of MoCo: here the key side is a copy of the query side, and the queue is a fresh one of
    MoCo's default size. The folder is made if its parent is there; `force` replaces files that are there.

    Returns:
        The blocks of options that the files fit: `network_g`, and `network_degrader` or `network_moco`.

    Raises:
        BSRError: The source cannot be used, or the files cannot be written. Nothing has been written then.
    """
    released = _read_released(source)
    found = released.fitting(released.ours)
    for name in released.initial:
        for follower, leader in _FOLLOWERS.items():
            if name.startswith(follower):
                found[name] = found[leader + name.removeprefix(follower)].clone()
    networks = _unflatten({name: found.get(name, fresh) for name, fresh in released.initial.items()})
    contents: dict[str, dict[str, Any]] = {f"{name}.pth": {"params": state} for name, state in networks.items()}
    if released.kind == "ReDSR":
        contents["net_g.pth"]["epoch"] = released.epoch
    _write(folder, contents, force)
    return released.options


def convert_back(source: Path, file: Path, param_key: str = "params", force: bool = False) -> None:
    """Convert our checkpoints into a released one, the inverse of `convert`.

    The released codes know 5 groups of 64 features only. They have no place for the key side and the queue of MoCo,
    which are left out, and they count epochs: ReDSR's `epoch` is 0 unless `net_g` was converted from a released file.
    The released ReDSR code knows its degrader for ×4 alone, but tests at other scales without it.

    Args:
        source: Folder of what `convert` writes; or a file named `net_g…`, e.g. `net_g_latest.pth`, which has the other
            beside it, `net_degrader_latest.pth`.
        file: The file to write; its folder is made if the parent of that is there.
        param_key: The weights to take, `params` or `params_ema`; `params` where the other network has no others.
        force: Replace the file if it is there.

    Raises:
        BSRError: The source cannot be used, or the file cannot be written. Nothing has been written then.
    """
    net = _read_ours(source / "net_g.pth" if source.is_dir() else source, param_key)
    found = net.fitting({ours: ours for ours in net.ours.values()})
    released = {name: found[ours] for name, ours in net.ours.items()}
    content = {"epoch": net.epoch, **_unflatten(released)} if net.kind == "ReDSR" else released
    _write(file.parent, {file.name: content}, force)


def _misfit(value: object, wanted: Tensor) -> str | None:
    """Say why a value cannot take the place of a tensor, if it cannot."""
    if not isinstance(value, Tensor):
        return f"is no tensor but of type {type(value).__name__}"
    if value.shape != wanted.shape:
        return f"is {tuple(value.shape)} and not {tuple(wanted.shape)}"
    dense = value.layout is torch.strided and value.device == wanted.device
    if not dense or value.is_floating_point() != wanted.is_floating_point():
        return f"is of {value.dtype}, {value.layout} on {value.device} and not a dense tensor of {wanted.dtype}"
    return None


def _check_names(
    file: Path, present: Mapping[str, Any], needed: Collection[str], wrong: Mapping[str, list[str]], expected: str
) -> None:
    """Check that a file has the names that it needs and no others, and that nothing else is wrong."""
    lists = {
        "lacks": [repr(name) for name in needed if name not in present],
        "has the unknown": [repr(name) for name in present if name not in needed],
        **wrong,
    }
    problems = [
        f"{what} {', '.join(names[:_NAMED])}" + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for what, names in lists.items()
        if names
    ]
    if problems:
        raise BSRError(f"{file}: {'; '.join(problems)}; expected {expected}")


def _flatten(states: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}


def _unflatten(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    states: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        states.setdefault(part, {})[rest] = value
    return states


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _without_data_parallel(state: Mapping[str, object]) -> dict[str, object]:
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _read_released(file: Path) -> _Checkpoint:
    content = load_safely(file, str(file))
    if not _is_state(content):
        content = {}
    needed = ("epoch", *_PARTS)
    if any(part in content for part in _PARTS):
        wrong = {"has no state dict as": [repr(part) for part in _PARTS if not _is_state(content.get(part, {}))]}
        _check_names(file, content, needed, wrong, f"the keys {', '.join(needed)} of a released ReDSR")
        epoch = integer(content["epoch"], f"{file}: epoch", 0)
        tensors = _flatten({part: _without_data_parallel(content[part]) for part in _PARTS})
        return _Checkpoint(file, "ReDSR", tensors, epoch)
    tensors = _without_data_parallel(content)
    if any(name.startswith(("G.", "E.")) for name in tensors):
        return _Checkpoint(file, "DASR", tensors, 0)
    raise BSRError(
        f"{file}: is no released checkpoint, expected ReDSR's keys ({', '.join(needed)}) or DASR's (G.…, E.…)"
    )


def _read_ours(file: Path, param_key: str) -> _Checkpoint:
    """Return the tensors of our files that a released one has a place for."""
    content, net_g = _load_ours(file, (param_key,))
    if not any(name.startswith("generator.") for name in net_g):
        raise BSRError(f"{file}: holds another network, expected the weights of ReDSR or DASR")
    kind = "ReDSR" if "compress.2.weight" in net_g else "DASR"
    companion = _COMPANIONS[kind]
    if not file.name.startswith("net_g"):
        raise BSRError(f"{file}: expected a name like net_g.pth, so that {companion}.pth is found beside it")
    other = file.with_name(companion + file.name.removeprefix("net_g"))
    if not other.is_file():
        raise BSRError(f"{other}: there is no such file, expected it, as a released {kind} holds its weights too")
    _, state = _load_ours(other, (param_key, "params"))
    tensors = _flatten({"net_g": net_g, companion: state})
    carried = {name: value for name, value in tensors.items() if not name.startswith(_OURS_ALONE)}
    return _Checkpoint(file, kind, carried, integer(content.get("epoch", 0), f"{file}: epoch", 0))


def _load_ours(file: Path, param_keys: Iterable[str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return a BasicSR checkpoint, and the first of the wanted state dicts that it has."""
    content = load_safely(file, str(file))
    for key in param_keys:
        if isinstance(content, Mapping) and key in content and _is_state(content[key]):
            return content, content[key]
    raise BSRError(f"{file}: holds no weights under {' or '.join(dict.fromkeys(param_keys))}, expected BasicSR's file")


def _write(folder: Path, contents: Mapping[str, object], force: bool) -> None:
    """Write files, none of them unless all can be; the folder is made if its parent is there."""
    for name in contents:
        if (folder / name).is_dir() or ((folder / name).exists() and not force):
            raise BSRError(f"{folder / name}: is there already, expected a new name, or force for a file")
    is_new = not folder.exists()
    staged: list[StagedFile] = []
    try:
        folder.mkdir(exist_ok=True)
        for name, content in contents.items():
            staged.append(StagedFile(folder / name, partial(torch.save, content)))
        for file in staged:
            file.commit()
    except OSError as error:
        raise BSRError(f"{folder}: cannot be written to ({error.strerror}), expected a folder for files") from error
    finally:
        for file in staged:
            file.discard()
        if is_new:
            with suppress(OSError):  # it holds the files, or was not made
                folder.rmdir()
