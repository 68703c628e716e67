"""calculate_lpips against the lpips package, where its weights come from, and what it refuses."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt
import pytest
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils.registry import METRIC_REGISTRY
from skimage import data
from torch import Tensor, nn

from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.metrics import calculate_lpips, lpips_metric
from bsr_plugins.metrics.lpips_metric import NETS

lpips = pytest.importorskip("lpips", reason="the package lpips is not installed")

Pixels = npt.NDArray[np.uint8]
models = importlib.import_module("torchvision.models")
URLS = {
    "alex": models.AlexNet_Weights.IMAGENET1K_V1.url,
    "vgg": models.VGG16_Weights.IMAGENET1K_V1.url,
    "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url,
}
FILES = {net: url.rpartition("/")[2] for net, url in URLS.items()}


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of torch's, from which no file is looked for elsewhere."""

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    lpips_metric._network.cache_clear()
    yield tmp_path / "hub" / "checkpoints"
    lpips_metric._network.cache_clear()


@cache
def package_network(net: str, seed: int = 0) -> nn.Module:
    """Build the package's network on a random backbone."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        network: nn.Module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    return network


def torchvision_state(network: nn.Module) -> dict[str, Tensor]:
    """Name a backbone's tensors as torchvision does, and add one of the classifier's."""
    backbone = network.get_submodule("net").state_dict()
    state = {f"features.{key.split('.', 1)[1]}": value for key, value in backbone.items()}
    return state | {"classifier.1.weight": torch.ones(2, 3)}


def pair(height: int = 64, width: int = 53) -> tuple[Pixels, Pixels]:
    """Return a photograph and a noisy copy, BGR."""
    image = data.chelsea()[60 : 60 + height, 100 : 100 + width, ::-1].copy()
    noise = np.random.default_rng(0).normal(0, 20, image.shape)
    return image, (image + noise).round().clip(0, 255).astype(np.uint8)


@pytest.fixture
def alex(tmp_path: Path) -> tuple[nn.Module, str]:
    """The package's network, and a file with its backbone's weights."""
    network = package_network("alex")
    torch.save(torchvision_state(network), tmp_path / "alex.pth")
    return network, str(tmp_path / "alex.pth")


def by_the_package(network: nn.Module, image: Pixels, other: Pixels) -> float:
    """Call the package as its own README does, on RGB in [-1, 1]."""
    first, second = (
        torch.from_numpy(pixels[..., ::-1].astype(np.float32)).permute(2, 0, 1)[None] / 255 * 2 - 1
        for pixels in (image, other)
    )
    with torch.no_grad():
        return float(network(first, second))


@pytest.mark.parametrize("net", sorted(NETS))
def test_agrees_with_the_package(net: str, tmp_path: Path) -> None:
    network = package_network(net)
    torch.save(torchvision_state(network), tmp_path / "backbone.pth")
    image, other = pair()
    weights = str(tmp_path / "backbone.pth")
    expected = by_the_package(network, image, other)
    assert calculate_lpips(image, other, 0, net=net, backbone_weights=weights) == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3
    assert calculate_lpips(image, image, 0, net=net, backbone_weights=weights) == pytest.approx(0, abs=1e-7)


def test_border_order_and_symmetry(alex: tuple[nn.Module, str]) -> None:
    network, weights = alex
    image, other = pair(60, 50)
    expected = by_the_package(network, image[4:-4, 4:-4], other[4:-4, 4:-4])
    assert calculate_lpips(image, other, 4, backbone_weights=weights) == pytest.approx(expected, rel=1e-4)
    assert calculate_lpips(other, image, 4, backbone_weights=weights) == pytest.approx(expected, rel=1e-4)
    planes = [np.ascontiguousarray(pixels.transpose(2, 0, 1)) for pixels in (image, other)]
    found = calculate_lpips(planes[0], planes[1], 4, input_order="CHW", backbone_weights=weights)
    assert found == pytest.approx(expected, rel=1e-4)
    swapped = calculate_lpips(image[..., ::-1], other[..., ::-1], 4, backbone_weights=weights)
    assert abs(swapped - expected) > 1e-3 * expected, "blue is not red"


def test_basicsr_calls_it_and_nothing_global_moves(alex: tuple[nn.Module, str]) -> None:
    image, other = pair()
    state = torch.get_rng_state()
    block = {"type": "calculate_lpips", "crop_border": 0, "better": "lower", "backbone_weights": alex[1]}
    found = calculate_metric({"img": image, "img2": other}, block)
    assert found == pytest.approx(by_the_package(alex[0], image, other), rel=1e-4)
    assert isinstance(found, float)
    assert torch.equal(torch.get_rng_state(), state)
    assert METRIC_REGISTRY.get("calculate_lpips") is calculate_lpips


def test_the_network_is_built_once(alex: tuple[nn.Module, str], monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    make = lpips.LPIPS

    def counted(**options: Any) -> nn.Module:
        built.append(options)
        network: nn.Module = make(**options)
        return network

    monkeypatch.setattr(lpips, "LPIPS", counted)
    for _ in range(2):
        calculate_lpips(*pair(), 0, backbone_weights=alex[1])
    assert len(built) == 1


@pytest.mark.parametrize("net", sorted(NETS))
def test_torchs_cache_is_looked_into(net: str, hub: Path) -> None:
    network = package_network(net, seed=3)
    hub.mkdir(parents=True)
    torch.save(torchvision_state(network), hub / FILES[net])
    image, other = pair()
    expected = by_the_package(network, image, other)
    assert calculate_lpips(image, other, 0, net=net) == pytest.approx(expected, rel=1e-4)


def test_what_is_missing_in_the_cache_is_downloaded_with_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    network = package_network("alex", seed=4)
    asked = []

    def download(url: str, dst: str, hash_prefix: str) -> None:
        asked.append((url, hash_prefix))
        torch.save(torchvision_state(network), dst)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    image, other = pair()
    found = calculate_lpips(image, other, 0)
    assert found == pytest.approx(by_the_package(network, image, other), rel=1e-4)
    assert asked == [(URLS["alex"], "7be5be79")]


@pytest.mark.parametrize(
    "error", [URLError("Name or service not known"), RuntimeError('invalid\nhash value (expected "7')]
)
def test_without_weights_one_line_says_where_they_belong(
    error: Exception, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(BSRError) as caught:
        calculate_lpips(*pair(), 0)
    message = str(caught.value)
    assert message.startswith(f"{hub / FILES['alex']}: is missing, and {URLS['alex']} ")
    assert message.endswith("put that file there, or name a copy with backbone_weights")
    assert "\n" not in message


def test_a_file_with_other_keys_or_shapes_is_refused_by_name(alex: tuple[nn.Module, str], tmp_path: Path) -> None:
    state = torchvision_state(alex[0])
    del state["features.3.bias"]
    state["features.0.weight"] = state["features.0.weight"][:, :1]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(BSRError, match=r"other\.pth: is no state dict of LPIPS's backbone alex: ") as caught:
        calculate_lpips(*pair(), 0, backbone_weights=str(tmp_path / "other.pth"))
    assert "features.0.weight has the shape (64, 1, 11, 11) and not (64, 3, 11, 11)" in str(caught.value)
    assert "features.3.bias is missing" in str(caught.value)
    assert str(caught.value).count("features.") == 2


def test_files_that_are_no_state_dicts(tmp_path: Path) -> None:
    with pytest.raises(BSRError, match=r"missing\.pth .*cannot be read \(No such file or directory\)"):
        calculate_lpips(*pair(), 0, backbone_weights=str(tmp_path / "missing.pth"))
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(BSRError, match=r"list\.pth: is no state dict .* expected a state dict of torchvision's$"):
        calculate_lpips(*pair(), 0, backbone_weights=str(tmp_path / "list.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(BSRError, match=r"text\.pth .*cannot be loaded safely"):
        calculate_lpips(*pair(), 0, backbone_weights=str(tmp_path / "text.pth"))


@pytest.mark.parametrize(("net", "side"), [("alex", 31), ("squeeze", 17), ("vgg", 16)])
def test_the_smallest_image(net: str, side: int, tmp_path: Path) -> None:
    network = package_network(net)
    torch.save(torchvision_state(network), tmp_path / "backbone.pth")
    weights = str(tmp_path / "backbone.pth")
    assert calculate_lpips(*pair(side, side + 3), 0, net=net, backbone_weights=weights) > 0
    with pytest.raises(RuntimeError, match="too small"):
        by_the_package(network, *pair(side - 1, side))
    with pytest.raises(BSRError, match=rf"^calculate_lpips: {side}x{side - 1} pixels .* at least {side} for {net}$"):
        calculate_lpips(*pair(side + 1, side + 2), 1, net=net, backbone_weights=weights)


def test_images_that_do_not_fit(alex: tuple[nn.Module, str]) -> None:
    image, other = pair()
    with pytest.raises(BSRError, match=r"^calculate_lpips: images of shapes .* expected equal ones$"):
        calculate_lpips(image, other[1:], 0, backbone_weights=alex[1])
    for grey in (image[..., 0], image[..., :1]):
        with pytest.raises(BSRError, match=r"^calculate_lpips: an image of shape .* expected three channels"):
            calculate_lpips(grey, grey, 0, backbone_weights=alex[1])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("net", "vgg19", "unknown name 'vgg19', expected one of alex, squeeze, vgg; did you mean 'vgg'?"),
        ("net", ["alex"], "unknown name ['alex']"),
        ("input_order", "NCHW", "unknown name 'NCHW', expected one of CHW, HWC"),
        ("crop_border", -1, "-1, expected a whole number at least 0"),
        ("crop_border", 2.0, "2.0, expected a whole number"),
        ("device", "gpu", "'gpu', expected auto, cpu, cuda or cuda:N"),
        ("device", 0, "0, expected auto"),
        ("device", "cuda:99", "'cuda:99', expected a device that is there"),
        ("better", "higher", "unknown name 'higher', expected one of lower"),
    ],
)
def test_bad_options(option: str, value: Any, message: str, alex: tuple[nn.Module, str]) -> None:
    options: dict[str, Any] = {"crop_border": 0, "backbone_weights": alex[1], "better": "lower", option: value}
    with pytest.raises(OptionError, match=rf"^{option}: {re.escape(message)}"):
        calculate_lpips(*pair(), **options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        (
            {"better": None},
            "val.metrics.lpips.better: the key is missing, expected 'lower', as BasicSR assumes 'higher'",
        ),
        ({"better": "higher"}, "val.metrics.lpips.better: unknown name 'higher', expected one of lower"),
        ({"net": "vgg19"}, "val.metrics.lpips.net: unknown name 'vgg19', expected one of alex, squeeze, vgg"),
        ({"crop_border": None}, "val.metrics.lpips.crop_border: the key is missing"),
        ({"crop_border": 40}, "calculate_lpips: 16x16 pixels inside crop_border, expected at least 31 for alex"),
        ({"test_y_channel": True}, "val.metrics.lpips.test_y_channel: unknown key"),
        ({"backbone_weights": None}, f"{FILES['alex']}: is missing, and {URLS['alex']} cannot be downloaded"),
    ],
)
def test_a_run_checks_it_before_it_starts(
    changed: dict[str, Any], message: str | None, alex: tuple[nn.Module, str], aacl_options: Any, in_process: Any
) -> None:
    block = {"type": "calculate_lpips", "crop_border": 4, "better": "lower", "backbone_weights": alex[1], **changed}
    aacl_options["val"]["metrics"] = {"lpips": {key: value for key, value in block.items() if value is not None}}
    outcome = in_process("train", aacl_options, "--check")
    if message is None:
        assert outcome.status == 0, outcome.output
    else:
        (line,) = outcome.output.splitlines()
        assert line.startswith("error: ")
        assert message in line


def test_auto_is_the_cpu_where_cuda_was_not_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert lpips_metric._device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert lpips_metric._device("auto") == torch.device("cuda:1")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(alex: tuple[nn.Module, str]) -> None:
    image, other = pair()
    on_cpu = calculate_lpips(image, other, 0, backbone_weights=alex[1], device="cpu")
    torch.zeros(1, device="cuda")
    on_cuda = calculate_lpips(image, other, 0, backbone_weights=alex[1])
    assert lpips_metric._device("auto").type == "cuda"
    assert on_cuda == pytest.approx(on_cpu, rel=1e-2)
