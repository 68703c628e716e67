"""Checkpoints of the released ReDSR and DASR: what comes out of the converted networks, round trips, refusals."""

from __future__ import annotations

import copy
import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from skimage import data
from torch import Tensor, nn

from bsr_plugins.archs import DASR, MoCo, ReDSR, ReDSRDegrader
from bsr_plugins.archs.released_checkpoints import convert, convert_back
from bsr_plugins.blocks import build_from_block
from bsr_plugins.errors import BSRError
from tests.archs import released_networks as released
from tests.archs.released_networks import Hostile, assert_same_file, tensors_of, written

SIZES = [(5, 4), (10, 4), (1, 3), (2, 2)]  # blocks per group, scale
MAKERS: dict[str, Callable[..., dict[str, Any]]] = {"ReDSR": released.redsr_file, "DASR": released.dasr_file}
COMPANIONS = {"ReDSR": "degrader", "DASR": "moco"}
OURS_ALONE = ("queue", "key_encoder.", "projection_k.")
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def photographs(height: int, width: int) -> Tensor:
    """Two photographs in float64, (2, 3, height, width), one of them darker and smoother."""
    crops = [torch.from_numpy(pixels[100:, 150:][:height, :width]) for pixels in (data.astronaut(), data.coffee())]
    batch = torch.stack(crops).permute(0, 3, 1, 2).double() / 255
    return torch.stack([batch[0], (batch[1] + batch[1].roll(1, -1)) / 4])


def in_double(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in state.items()}


class Converted:
    """A released file with random weights, and what came of it."""

    def __init__(self, kind: str, folder: Path, num_block: int, upscale: int, seed: int = 0) -> None:
        self.content = MAKERS[kind](seed, num_block, upscale)
        self.folder = folder / "ours"
        torch.save(self.content, folder / "released.tar")
        self.options = convert(folder / "released.tar", self.folder)
        self.companion = COMPANIONS[kind]

    def file(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(self.folder / f"net_{name}.pth", weights_only=True)
        return content

    def network(self, name: str) -> nn.Module:
        """A network built of the options that came out, with the weights that came out."""
        network: nn.Module = build_from_block(self.options[f"network_{name}"], dict(iter(ARCH_REGISTRY)), name)
        network.load_state_dict(self.file(name)["params"])
        return network.eval()


def test_random_files_have_the_published_layout() -> None:
    redsr, dasr = released.published_layout("redsr"), released.published_layout("dasr")
    if redsr is None or dasr is None:
        pytest.skip("the layouts of the released files are not at hand")
    for part, layout in released.redsr_layout().items():
        assert list(layout.items()) == [(name, tuple(shape)) for name, shape in redsr[part].items()]
    expected = [(name, tuple(shape)) for name, shape in dasr["state_dict"].items()]
    assert list(released.dasr_layout().items()) == expected


@pytest.mark.parametrize(("num_block", "upscale"), SIZES)
@pytest.mark.parametrize("kind", MAKERS)
def test_every_tensor_has_one_place_and_comes_back(kind: str, num_block: int, upscale: int, tmp_path: Path) -> None:
    done = Converted(kind, tmp_path, num_block, upscale)
    network, expected = done.options["network_g"], {"type": kind, "num_block": num_block, "upscale": upscale}
    assert network == expected | ({"img_range": 255.0} if kind == "DASR" else {})
    assert kind == "DASR" or done.options["network_degrader"]["scale"] == upscale

    def digest(value: Tensor) -> tuple[Any, ...]:
        return tuple(value.shape), hashlib.sha256(value.numpy().tobytes()).hexdigest()

    ours: list[Tensor] = []
    for name in ("g", done.companion):
        state = done.file(name)["params"]
        assert list(state) == list(done.network(name).state_dict())
        ours += [value for key, value in state.items() if not key.startswith(OURS_ALONE)]
    theirs = list(tensors_of(done.content).values())
    assert len(ours) == len(theirs)
    assert sorted(map(digest, ours)) == sorted(map(digest, theirs))

    convert_back(done.folder, tmp_path / "back.tar")
    assert_same_file(torch.load(tmp_path / "back.tar", weights_only=True), done.content)


@pytest.mark.parametrize(("num_block", "upscale", "size"), [(5, 4, (25, 29)), (1, 3, (25, 26)), (2, 2, (27, 24))])
def test_redsr_gives_what_the_released_network_gives(
    num_block: int, upscale: int, size: tuple[int, int], tmp_path: Path
) -> None:
    done = Converted("ReDSR", tmp_path, num_block, upscale)
    encoder, degrader, generator = (in_double(done.content[f"model_{part}_state_dict"]) for part in ("DP", "RB", "SRN"))
    lq, gt = photographs(*size), photographs(size[0] * 4, size[1] * 4)
    with torch.no_grad():
        representation = released.redsr_encode(encoder, lq)
        sr = released.redsr_restore(generator, lq, representation)
        reproduced = released.redsr_degrade(degrader, gt, representation) if upscale == 4 else None
        assert sr.shape == (2, 3, size[0] * upscale, size[1] * upscale)
        assert sr.std() > 0.3
        for dtype, tolerance in TOLERANCES.items():
            network = done.network("g").to(dtype)
            assert isinstance(network, ReDSR)
            ours, steer = network(lq.to(dtype), return_representation=True)
            assert (steer - representation).abs().max() < tolerance
            assert (ours - sr).abs().max() < tolerance
            if reproduced is not None:  # the released degrader is for ×4 alone
                ours = done.network("degrader").to(dtype)(gt.to(dtype), representation.to(dtype))
                assert (ours - reproduced).abs().max() < tolerance


@pytest.mark.parametrize(("num_block", "upscale", "size"), [(5, 4, (25, 29)), (1, 3, (25, 26)), (2, 2, (27, 24))])
def test_dasr_gives_what_the_released_network_gives(
    num_block: int, upscale: int, size: tuple[int, int], tmp_path: Path
) -> None:
    done = Converted("DASR", tmp_path, num_block, upscale)
    state, lq = in_double(done.content), photographs(*size)
    with torch.no_grad():
        representation = released.dasr_encode(state, lq * 255)
        sr = released.dasr_restore(state, lq * 255, representation) / 255
        assert sr.shape == (2, 3, size[0] * upscale, size[1] * upscale)
        assert sr.std() > 0.1
        for dtype, tolerance in TOLERANCES.items():
            network = done.network("g").to(dtype)
            assert isinstance(network, DASR)
            ours, steer = network(lq.to(dtype), return_representation=True)
            assert (steer - representation).abs().max() < tolerance
            assert (ours - sr).abs().max() < tolerance


def test_contrast_goes_on_from_the_released_encoder(tmp_path: Path) -> None:
    done = Converted("DASR", tmp_path, 1, 4)
    network, moco = done.network("g").double(), done.network("moco").double()
    assert isinstance(network, DASR)
    assert isinstance(moco, MoCo)
    copy.deepcopy(moco).start_from(network.encoder)
    lq = photographs(24, 24)
    with torch.no_grad():
        query, key = moco(network.encode(lq), lq)
        state = in_double(done.content)
        expected = released.dasr_project(state, released.dasr_encode(state, lq * 255))
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert (query - expected).abs().max() < 1e-10
    assert (key - expected).abs().max() < 1e-10
    fresh = MoCo().state_dict()
    assert all(torch.equal(done.file("moco")["params"][name], fresh[name]) for name in fresh if "queue" in name)
    file = done.file("moco")["params"]
    assert file["projection_k.0.weight"].data_ptr() != file["projection_q.0.weight"].data_ptr()


def test_networks_trained_here_go_back(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    networks = {"net_g": ReDSR(num_block=1), "net_degrader": ReDSRDegrader()}
    for name, network in networks.items():
        torch.save({"params": network.state_dict()}, folder / f"{name}_latest.pth")
    averaged = {
        name: value * 2 if "encoder" in name else value for name, value in networks["net_g"].state_dict().items()
    }
    torch.save({"params": networks["net_g"].state_dict(), "params_ema": averaged}, folder / "net_g_latest.pth")

    for key, factor in (("params", 1), ("params_ema", 2)):
        convert_back(folder / "net_g_latest.pth", tmp_path / f"{key}.tar", key)
        content = torch.load(tmp_path / f"{key}.tar", weights_only=True)
        assert list(content) == ["epoch", *released.redsr_layout()]
        assert content["epoch"] == 0
        encoder, own = content["model_DP_state_dict"], networks["net_g"].state_dict()
        assert torch.equal(encoder["ConvNet.4.bias"], factor * own["encoder.features.2.bias"])
        assert torch.equal(content["model_SRN_state_dict"]["tail.1.bias"], own["generator.conv_last.bias"])
    convert(tmp_path / "params.tar", tmp_path / "again")
    again = torch.load(tmp_path / "again" / "net_g.pth", weights_only=True)["params"]
    assert all(torch.equal(value, again[name]) for name, value in networks["net_g"].state_dict().items())


@pytest.mark.parametrize("kind", MAKERS)
def test_other_forms_of_a_released_file(kind: str, tmp_path: Path) -> None:
    content = MAKERS[kind](num_block=1)

    def each(change: Callable[[str, Tensor], tuple[str, Tensor]]) -> dict[str, Any]:
        def state(tensors: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
            return OrderedDict(change(name, value) for name, value in tensors.items())

        return {k: v if k == "epoch" else state(v) for k, v in content.items()} if kind == "ReDSR" else state(content)

    halved = each(lambda name, value: (name, value.half() if value.is_floating_point() else value))
    torch.save(halved, tmp_path / "half.tar")
    torch.save(each(lambda name, value: (f"module.{name}", value)), tmp_path / "parallel.tar")
    torch.save(content, tmp_path / "old.tar", _use_new_zipfile_serialization=False)
    for name, expected in (("half", halved), ("parallel", content), ("old", content)):
        convert(tmp_path / f"{name}.tar", tmp_path / name)
        convert_back(tmp_path / name, tmp_path / f"{name}_back.tar")
        assert_same_file(torch.load(tmp_path / f"{name}_back.tar", weights_only=True), expected)


ENCODER = "model_DP_state_dict"
Change = Callable[[dict[str, Any]], Any]


def without(*places: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        for place in places:
            part, _, name = place.rpartition("/")
            del (content[part] if part else content)[name]

    return change


def with_(place: str, value: object) -> Change:
    def change(content: dict[str, Any]) -> None:
        part, _, name = place.rpartition("/")
        (content[part] if part else content)[name] = value

    return change


def scaled_shift(content: dict[str, Any]) -> None:
    content["model_SRN_state_dict"]["sub_mean.bias"] *= 255


REDSR_REFUSED: dict[str, tuple[Change, str]] = {
    "a part is missing": (without("model_RB_state_dict"), "lacks 'model_RB_state_dict'; expected the keys epoch, "),
    "the epoch is missing": (without("epoch"), "lacks 'epoch'; expected the keys epoch, "),
    "the epoch is a tensor": (with_("epoch", torch.zeros(1)), r"epoch: tensor\(\[0.\]\), expected a whole number"),
    "another part": (with_("optimizer", {}), "has the unknown 'optimizer'; expected the keys epoch, "),
    "a part is no dict": (with_(ENCODER, [1]), f"has no state dict as '{ENCODER}'; expected"),
    "a tensor is missing": (
        without(f"{ENCODER}/ConvNet.1.bias"),
        f"lacks '{ENCODER}.ConvNet.1.bias'; expected the tensors of the released ReDSR for ×4 with 1 blocks per group",
    ),
    "many are missing": (
        with_(ENCODER, {}),
        rf"lacks '{ENCODER}.ConvNet.1.weight', ('{ENCODER}\.[^,]*, ){{3}}'{ENCODER}.ConvNet.4.bias' and 13 more; exp",
    ),
    "an upsampler is missing": (
        without("model_SRN_state_dict/tail.0.2.weight"),
        "lacks 'model_SRN_state_dict.tail.0.2.weight'; expected",
    ),
    "an unknown tensor": (
        with_("model_RB_state_dict/A_tail.12.bias", torch.zeros(3)),
        "has the unknown 'model_RB_state_dict.A_tail.12.bias'; expected",
    ),
    "only some are of DataParallel": (
        with_(f"{ENCODER}/module.x", torch.zeros(3)),
        f"has the unknown '{ENCODER}.module.x'; expected",
    ),
    "a line break in a name": (with_(f"{ENCODER}/x\nerror: y", torch.zeros(3)), r"'model_DP_state_dict.x\\nerror: y'"),
    "another shape": (
        with_(f"{ENCODER}/ConvNet.4.bias", torch.zeros(65)),
        rf"has misfits: '{ENCODER}.ConvNet.4.bias' is \(65,\) and not \(64,\); expected",
    ),
    "no tensor": (with_(f"{ENCODER}/ConvNet.4.bias", 1), "ConvNet.4.bias' is no tensor but of type int; expected"),
    "whole numbers": (
        with_(f"{ENCODER}/ConvNet.4.bias", torch.zeros(64, dtype=torch.int64)),
        r"ConvNet.4.bias' is of torch.int64, torch.strided on cpu and not a dense tensor of torch.float32; expected",
    ),
    "no data": (with_(f"{ENCODER}/ConvNet.4.bias", torch.zeros(64, device="meta")), "ConvNet.4.bias' is of .* on meta"),
    "images in [0, 255]": (
        scaled_shift,
        r"shifts images by another mean, generator.sub_mean.bias = -114.4440, -111.4605, -103.0200, "
        r"expected -0.4488, -0.4371, -0.4040, which is DIV2K's in \[0, 1\]",
    ),
    "weights in the shift": (
        with_("model_SRN_state_dict/add_mean.weight", torch.full((3, 3, 1, 1), 0.5)),
        r"shifts images by another mean, generator.add_mean.weight = 0.5000, ",
    ),
}
DASR_REFUSED: dict[str, tuple[Change, str]] = {
    "no projection": (
        without("E.encoder_q.mlp.2.bias"),
        "lacks 'E.encoder_q.mlp.2.bias'; expected the tensors of the released DASR",
    ),
    "a queue": (with_("E.queue", torch.zeros(256, 8)), "has the unknown 'E.queue'; expected"),
    "images in [0, 1]": (
        with_("G.sub_mean.bias", -torch.tensor(released.MEAN)),
        r"= -0.4488, -0.4371, -0.4040, expected -114.4440, -111.4605, -103.0200, which is DIV2K's in \[0, 255\]",
    ),
    "all at once": (
        lambda content: content.update({"G.x": content.pop("G.head.0.bias"), "G.tail.1.bias": torch.zeros(())}),
        r"lacks 'G.head.0.bias'; has the unknown 'G.x'; has misfits: 'G.tail.1.bias' is \(\) and not \(3,\); expected",
    ),
}
REFUSED = [("ReDSR", *case) for case in REDSR_REFUSED.values()] + [("DASR", *case) for case in DASR_REFUSED.values()]


@pytest.mark.parametrize(
    ("kind", "change", "message"), REFUSED, ids=[*REDSR_REFUSED, *(f"DASR, {name}" for name in DASR_REFUSED)]
)
def test_odd_released_files_are_refused(kind: str, change: Change, message: str, tmp_path: Path) -> None:
    content = MAKERS[kind](num_block=1)
    change(content)
    torch.save(content, tmp_path / "odd.tar")
    with pytest.raises(BSRError, match=rf"^\S*odd\.tar: .*{message}") as refusal:
        convert(tmp_path / "odd.tar", tmp_path / "ours")
    assert "\n" not in str(refusal.value)
    assert written(tmp_path) == {"odd.tar"}


def test_what_is_no_released_file_is_refused(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    contents: dict[str, tuple[object, str]] = {
        "list": ([1], "is no released checkpoint, expected ReDSR's keys .* or DASR's"),
        "empty": ({}, "is no released checkpoint"),
        "other": ({"params": {"conv.weight": torch.zeros(1)}}, "is no released checkpoint"),
        "numbers": ({1: torch.zeros(1)}, "is no released checkpoint"),
        "hostile": (
            {**released.redsr_file(num_block=1), "epoch": Hostile(tmp_path / "made")},
            r"cannot be loaded safely \(UnpicklingError: ",
        ),
    }
    for name, (content, _) in contents.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "pickle").write_bytes(pickle.dumps(Hostile(tmp_path / "made")))
    whole = (tmp_path / "hostile").read_bytes()
    (tmp_path / "broken").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "nothing").write_bytes(b"")
    messages = {name: message for name, (_, message) in contents.items()}
    messages |= dict.fromkeys(("pickle", "broken", "nothing"), "cannot be loaded safely")
    messages |= {"missing": r"cannot be read \(No such file or directory\)", "": r"cannot be read \(Is a directory\)"}
    before = written(tmp_path)
    for name, message in messages.items():
        for attempt in (convert, convert_back) if name in ("hostile", "pickle", "broken", "nothing") else (convert,):
            with pytest.raises(BSRError, match=message) as refusal:
                attempt(tmp_path / name, tmp_path / "ours")
            assert str(refusal.value).startswith(str(tmp_path / name))
            assert "\n" not in str(refusal.value)
    assert written(tmp_path) == before
    assert not recwarn.list


def narrow(folder: Path) -> None:
    torch.save({"params": ReDSR(num_feat=8, num_block=1).state_dict()}, folder / "net_g.pth")


def other_network(folder: Path) -> None:
    torch.save({"params": ReDSRDegrader().state_dict()}, folder / "net_g.pth")


def bare(folder: Path) -> None:
    torch.save(ReDSR(num_block=1).state_dict(), folder / "net_g.pth")


def another_range(folder: Path) -> None:
    net_g = DASR(num_block=1, img_range=1.0)
    torch.save({"params": net_g.state_dict()}, folder / "net_g.pth")
    torch.save({"params": MoCo().state_dict()}, folder / "net_moco.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "net_degrader.pth").unlink(),
            r"net_degrader.pth: there is no such file, expected it, ",
        ),
        (lambda folder: (folder / "net_g.pth").unlink(), r"net_g.pth: cannot be read \(No such file or directory\)"),
        (narrow, r"net_g.pth: has misfits: .*is \(8, 3, 3, 3\) and not \(64, 3, 3, 3\).* and \d+ more; expected the "),
        (other_network, "net_g.pth: holds another network, expected the weights of ReDSR or DASR"),
        (bare, "net_g.pth: holds no weights under params, expected BasicSR's file"),
        (another_range, r"shifts images by another mean, .* which is DIV2K's in \[0, 255\]"),
    ],
)
def test_what_cannot_go_back_is_refused(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    done = Converted("ReDSR", tmp_path, 1, 4)
    change(done.folder)
    with pytest.raises(BSRError, match=message) as refusal:
        convert_back(done.folder, tmp_path / "back.tar")
    assert "\n" not in str(refusal.value)
    assert written(tmp_path) == {"released.tar", "ours"}


def test_weights_that_are_not_there_do_not_go_back(tmp_path: Path) -> None:
    done = Converted("ReDSR", tmp_path, 1, 4)
    with pytest.raises(BSRError, match=r"net_g.pth: holds no weights under params_ema, expected"):
        convert_back(done.folder, tmp_path / "back.tar", "params_ema")
    (done.folder / "net_g.pth").rename(done.folder / "generator.pth")
    with pytest.raises(BSRError, match=r"generator.pth: expected a name like net_g.pth, so that net_degrader.pth is"):
        convert_back(done.folder / "generator.pth", tmp_path / "back.tar")
    assert written(tmp_path) == {"released.tar", "ours"}
