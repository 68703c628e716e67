"""What is found before a run by trying: metrics, networks, weights, and what strangers bring."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from torch import Tensor, nn

from tests.options.stock_options import RESNET, write_image
from tests.options.test_bad_options import assert_refused, change

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

Run = Callable[..., "Outcome"]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("val.metrics.psnr.crop_border", 24, "crop_border: 24, which leaves nothing of the smallest image, 64x48"),
        ("val.metrics.ssim.crop_border", 20, "val.metrics.ssim: calculate_ssim on images of 64x48 "),
        ("val.metrics.psnr.input_order", "CHW", "val.metrics.psnr.input_order: 'CHW', expected 'HWC'"),
        ("val.metrics.psnr.type", "calculate_psnr_pt", "val.metrics.psnr: calculate_psnr_pt on images of 64x48 "),
        ("val.metrics.niqe", {"type": "calculate_niqe", "crop_border": 0}, "niqe: calculate_niqe on images of 64x48 "),
        ("network_g.num_in_ch", 1, r"network_g: cannot be run on an image of 8x8 pixels \(RuntimeError: "),
        ("network_g.num_out_ch", 1, r"network_g: cannot be run on an image of 8x8 pixels \(RuntimeError: "),
        ("network_g.num_feat", 10**8, "network_g: has more than .* GiB of weights, which do not fit in memory"),
        ("network_g.num_block", 10**8, "network_g: has more than 10000 parameters, expected a smaller network"),
        ("scale", 3, "network_g.upscale: 4, expected scale, which is 3"),
        ("train.optim_d", {"type": "Adam", "lr": 1}, "train.optim_d: unknown key, which neither SRModel"),
        ("logger.wandb", {"project": "x"}, "logger.use_tb_logger: false, expected true with logger.wandb.project"),
        ("manual_seed", 2**32, "manual_seed: 4294967296, expected a whole number in"),
    ],
)  # fmt: skip
def test_a_run_on_pairs_is_refused(
    project: Project, pairs: Options, in_process: Run, place: str, value: Any, message: str
) -> None:
    change(pairs, place, value)
    if place == "scale":
        pairs["datasets"]["train"]["gt_size"] = 30
        pairs["datasets"] = {"train": pairs["datasets"]["train"] | {"dataroot_lq": "gt3"}}
        for name in ("a", "b"):
            write_image(project.root / "gt3" / f"{name}.png", 16, 21)
            write_image(project.root / "gt" / f"{name}.png", 48, 63)
    outcome = in_process("train", pairs)
    lines = [line for line in outcome.output.splitlines() if "package wandb" not in line]  # it may be missing
    assert_refused(outcome._replace(output="\n".join(lines)), message)
    assert project.experiments == []


def test_metrics_that_need_hr_images(project: Project, pairs: Options, in_process: Run) -> None:
    torch.save({"params": build("MSRResNet", **RESNET).state_dict()}, project.root / "g.pth")
    pairs["path"] = {"pretrain_network_g": "g.pth"}
    singles = {"name": "lq", "type": "SingleImageDataset", "dataroot_lq": "lq", "io_backend": {"type": "disk"}}
    pairs |= {"datasets": {"test": singles}, "val": {"save_img": False, "suffix": None}}
    del pairs["train"]
    pairs["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "crop_border": 4}}
    assert_refused(in_process("test", pairs), "'calculate_psnr' compares with HR images, which datasets.test has not")
    pairs["val"]["metrics"] = None
    assert in_process("test", pairs).status == 0


def build(name: str, **arguments: Any) -> nn.Module:
    network: nn.Module = ARCH_REGISTRY.get(name)(**{k: v for k, v in arguments.items() if k != "type"})
    return network


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        ({"params": {"x": torch.zeros(1)}}, {}, "g.pth: lacks conv_first.weight, "),
        (
            {"params": {"x": torch.zeros(1)}},
            {"strict_load_g": False},
            "g.pth: fits 0 of the network's 14 tensors, 0.0% of its weights, expected at least 10%",
        ),
        ({"params": {}}, {"param_key_g": "params_em"}, "g.pth: holds no weights under 'params_em', expected one of"),
        (
            {"x": torch.zeros(1)},
            {},
            "g.pth: holds no weights under 'params', as it is a plain state dict",
        ),
        (None, {}, r"g.pth: cannot be loaded safely \(.+\), expected a checkpoint"),
        ({}, {"strict_load_g": "no"}, "path.strict_load_g: 'no', expected true or false"),
    ],
)
def test_weights_that_do_not_fit(
    project: Project, pairs: Options, in_process: Run, is_train: bool, content: Any, path: Options, message: str
) -> None:
    torch.save(content, project.root / "g.pth")
    if content is None:
        (project.root / "g.pth").write_bytes(pickle.dumps({"params": Hostile()}))
    pairs["path"] = {"pretrain_network_g": "g.pth", **path}
    if not is_train:
        pairs["datasets"] = {"test": pairs["datasets"]["val"]}
        del pairs["train"]
    assert_refused(in_process("train" if is_train else "test", pairs), message)
    assert not (project.root / "unpickled").exists()


def test_weights_of_which_some_fit(project: Project, pairs: Options, in_process: Run) -> None:
    state = build("MSRResNet", **RESNET).state_dict()
    state["conv_first.weight"] = torch.zeros(1)
    torch.save({"params": state}, project.root / "g.pth")
    pairs["path"] = {"pretrain_network_g": "g.pth", "strict_load_g": False}
    outcome = in_process("train", pairs, "--check")
    assert outcome.status == 0
    number = len(state)
    line = rf"g.pth: fits {number - 1} of the network's {number} tensors, \d\d.\d% of its weights; the others begin"
    assert re.search(f"warning: path.pretrain_network_g: {line} at random\n", outcome.output)


def test_weights_of_another_arch_do_not_fit(project: Project, pairs: Options, in_process: Run) -> None:
    """Most archs begin and end with the same small layers."""
    pairs["network_g"] |= {"num_feat": 64, "num_block": 2}
    other = build("RRDBNet", num_in_ch=3, num_out_ch=3, num_feat=64, num_block=1, scale=4)
    torch.save({"params": other.state_dict()}, project.root / "g.pth")
    pairs["path"] = {"pretrain_network_g": "g.pth", "strict_load_g": False}
    message = "g.pth: fits [1-9] of the network's [0-9]+ tensors, [0-9].[0-9]% of its weights, expected at least 10%"
    assert_refused(in_process("train", pairs, "--check"), message)


@pytest.mark.parametrize("value", [None, "missing"])
def test_random_weights_are_not_tested(pairs: Options, in_process: Run, value: str | None) -> None:
    pairs["datasets"] = {"test": pairs["datasets"]["val"]}
    del pairs["train"]
    pairs["path"] = {"pretrain_network_g": None} if value is None else {}
    assert_refused(in_process("test", pairs), "path.pretrain_network_g: None, expected the weights to be tested")


class Upscaler(nn.Module):
    """Has no weights, so that a test run needs none."""

    def __init__(self, upscale: int = 4) -> None:
        super().__init__()
        self.upscale = upscale

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.interpolate(image, scale_factor=self.upscale)


class Reader(nn.Module):
    """Looks at numbers while it is built and while it runs, which cannot be done on shapes alone."""

    def __init__(self, num_feat: int = 3) -> None:
        super().__init__()
        widths = [int(x.item()) for x in torch.linspace(num_feat, num_feat, 2)]
        self.conv = nn.Conv2d(3, 3 * 16, 3, padding=1)
        self.more = nn.Linear(widths[0], widths[1])

    def forward(self, image: Tensor) -> Tensor:
        if float(image.mean()) < 0:
            raise ValueError("negative")
        return nn.functional.pixel_shuffle(self.conv(image), 4)


class Broken(Reader):
    def forward(self, image: Tensor) -> Tensor:
        raise ZeroDivisionError(str(image.shape))


class Same(nn.Module):
    """Makes images of the size that it gets."""

    def forward(self, image: Tensor) -> Tensor:
        return image


class Numbers(DATASET_REGISTRY.get("PairedImageDataset")):  # type: ignore[misc]
    def __len__(self) -> int:
        return int(self.opt["number"])


def metric_of_one(img: Any, crop_border: int) -> float:
    return float(img[0, 0, 0]) / crop_border


class OtherInputModel(SRModel):  # type: ignore[misc]
    def feed_data(self, data: Any) -> None:
        super().feed_data(data)
        self.lq: Tensor = self.lq[:, :1]


STRANGERS = {
    "Upscaler": (ARCH_REGISTRY, Upscaler),
    "Reader": (ARCH_REGISTRY, Reader),
    "Broken": (ARCH_REGISTRY, Broken),
    "Same": (ARCH_REGISTRY, Same),
    "Numbers": (DATASET_REGISTRY, Numbers),
    "metric_of_one": (METRIC_REGISTRY, metric_of_one),
    "OtherInputModel": (MODEL_REGISTRY, OtherInputModel),
}


@pytest.fixture
def strangers() -> Iterator[None]:
    """Have other people's classes in BasicSR's registries."""
    for name, (registry, kind) in STRANGERS.items():
        registry._obj_map[name] = kind
    yield
    for name, (registry, _) in STRANGERS.items():
        del registry._obj_map[name]


@pytest.mark.usefixtures("strangers")
def test_a_network_without_weights_is_tested(pairs: Options, in_process: Run) -> None:
    pairs["datasets"] = {"test": pairs["datasets"]["val"]}
    del pairs["train"]
    pairs |= {"network_g": {"type": "Upscaler"}, "path": {}}
    assert in_process("test", pairs, "--check").status == 0


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_g": {"type": "Reader"}}, None),
        ({"network_g": {"type": "Reader", "num_feat": 10**7}}, r"network_g: Reader cannot be .*allocate memory"),
        ({"network_g": {"type": "Reader", "num_feat": None}}, r"network_g: Reader cannot be built from this block \("),
        ({"network_g": {"type": "Broken"}}, r"network_g: cannot be run on an image of 8x8 pixels \(ZeroDiv"),
        ({"network_g": {"type": "Same"}}, r"gives \(1, 3, 8, 8\) for images of .*, expected \(1, 3, 32, 32\)"),
        ({"network_g": {"type": "Upscaler", "upscale": 2}}, "network_g.upscale: 2, expected scale, which is 4"),
        ({"datasets.train.type": "Numbers", "datasets.train.number": 2}, None),
        ({"datasets.train.type": "Numbers"}, "datasets.train.number: the key is missing, Numbers needs it"),
        ({"datasets.train.type": "Numbers", "datasets.train.number": 0}, "datasets.train: holds no image, expected at"),
        ({"val.metrics": {"x": {"type": "metric_of_one", "crop_border": 2}}}, None),
        (
            {"val.metrics": {"x": {"type": "metric_of_one", "crop_border": 0}}},
            r"val.metrics.x: metric_of_one on images of 64x48 cannot be used \(ZeroDivisionError: ",
        ),
        ({"model_type": "OtherInputModel", "network_g": RESNET | {"num_in_ch": 1}}, None),
    ],
)  # fmt: skip
def test_what_strangers_bring_is_tried(pairs: Options, in_process: Run, changes: Options, message: str | None) -> None:
    for place, value in changes.items():
        change(pairs, place, value)
    outcome = in_process("train", pairs, "--check")
    if message is None:
        assert outcome.status == 0, outcome.output
    else:
        assert_refused(outcome, message)


def perceptual_options(pairs: Options) -> Options:
    pairs["train"]["perceptual_opt"] = {"type": "PerceptualLoss", "layer_weights": {"conv1_1": 1}, "vgg_type": "vgg11"}
    return pairs


def test_weights_that_cannot_be_fetched(
    project: Project, pairs: Options, in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(project.root / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert in_process("train", perceptual_options(pairs), "--check").status == 0
    message = "train.perceptual_opt: the weights of vgg11 are missing, and https://.* cannot be downloaded .no network."
    assert_refused(in_process("train", pairs), message)
    (project.root / "torch" / "hub" / "checkpoints" / "vgg11-8a719046.pth").touch()
    outcome = in_process("train", pairs, "--set", "scale=0")
    assert_refused(outcome, "scale: 0, expected a number above 0")


def test_a_stock_gan_runs_and_lacks_nothing(pairs: Options, in_process: Run) -> None:
    pairs |= {"model_type": "SRGANModel"}
    pairs["network_d"] = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4}
    pairs["train"] |= {"gan_opt": {"type": "GANLoss", "gan_type": "vanilla"}, "net_d_iters": 1, "net_d_init_iters": 0}
    pairs["train"]["optim_d"] = {"type": "Adam", "lr": 1e-4}
    assert in_process("train", pairs, "--check").status == 0
    change(pairs, "train.net_d_iters", 0)
    assert_refused(in_process("train", pairs), "train.net_d_iters: 0, expected a whole number at least 1")
    change(pairs, "train.net_d_iters", 1)
    del pairs["train"]["optim_d"]
    assert_refused(in_process("train", pairs), "train.optim_d: expected a block with the key 'type', got None")
    pairs["train"]["optim_d"] = {"type": "Adam", "lr": 1e-4}
    del pairs["network_d"]
    assert_refused(in_process("train", pairs), "network_d: the key is missing, SRGANModel needs it")
