"""The main job through the tools, in real processes: train, resume, test."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome, Project

FIGURES = {"contrast_accuracy", "embedding_spread", "align_std", "align_accepted"}
PHASE, STOP, END = 6, 4, 8  # the run is stopped within the encoder's phase
BATCH = 4
NAME = "debug_tiny"  # BasicSR would keep its figures from TensorBoard, and validate it as often as it likes


def make_run(options: Options) -> Options:
    """A run on the demo photographs, as options/train_aacl.yml describes it, but much smaller."""
    options["degradation"] |= {"sampler": {"type": "ads", "grid": 9}}
    options["degradation"]["types"] = ["bicubic", "iso", "aniso", "aniso+noise", "aniso+noise+jpeg"]
    options["datasets"]["train"] |= {"dataroot_gt": "demo", "num_worker_per_gpu": 1}
    options["datasets"]["val"] |= {"dataroot_gt": "demo", "settings": ["bicubic", "aniso_noise_jpeg"]}
    options["train"] |= {"total_iter": END, "encoder_phase": {"iters": PHASE, "lr": 0.001}}
    options["val"]["val_freq"] = STOP
    options["name"] = NAME
    options["logger"] = {"print_freq": 1, "save_checkpoint_freq": STOP, "use_tb_logger": True}
    return options


def load(file: Path) -> Any:
    return torch.load(file, weights_only=True)


def rates(log: str) -> dict[int, float]:
    """The learning rate that a log names for every iteration."""
    return {int(n): float(lr) for n, lr in re.findall(r"iter:\s+(\d+), lr:\(([^,]+),", log)}


def measures(log: str) -> list[tuple[float, float]]:
    """PSNR and SSIM of every validation."""
    return [(float(p), float(s)) for p, s in re.findall(r"# psnr: ([\d.]+).*\n.*# ssim: ([\d.]+)", log)]


def check_training(root: Path, outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.output
    folder = root / "experiments" / NAME
    for name in ("models/net_g", "models/net_moco"):
        for when in (STOP, END, "latest"):
            assert (folder / f"{name}_{when}.pth").is_file()
    assert set(calibration(root)) == {"iso", "aniso", "noise", "jpeg"}
    assert len(calibration(root)["iso"]["distances"]) == 9
    assert len(measures(outcome.output)) == 2, "at the frequency, the second time at the end"
    assert all(psnr > 5 and 0 < ssim < 1 for psnr, ssim in measures(outcome.output))

    events = EventAccumulator(str(root / "tb_logger" / NAME)).Reload()
    every = [*range(1, END + 1)]
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert {name: steps[name] for name in (*FIGURES, "losses/l_contrast")} == dict.fromkeys(
        (*FIGURES, "losses/l_contrast"), every
    )
    assert steps["losses/l_pix"] == every[PHASE:]
    assert set(steps["metrics/val/psnr"]) == set(steps["metrics/val/ssim"]) >= {STOP, END}
    assert all(0 <= event.value <= 1 for name in FIGURES - {"align_std"} for event in events.Scalars(name))


def calibration(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "experiments" / NAME / "degradation_calibration.json").read_text())
    return found


def check_resumed(root: Path, outcome: Outcome, measured: tuple[str, int], queue: torch.Tensor) -> None:
    assert outcome.status == 0, outcome.output
    assert f"Resuming training from epoch: 0, iter: {STOP}." in outcome.output
    folder = root / "experiments" / NAME
    file = folder / "degradation_calibration.json"
    assert (file.read_text(), file.stat().st_mtime_ns) == measured
    assert "Measured the degraded distances" not in outcome.output

    wanted = dict.fromkeys(range(STOP + 1, PHASE + 1), 0.001) | dict.fromkeys(range(PHASE + 1, END + 1), 0.002)
    assert rates(outcome.output) == wanted
    moco = load(folder / "models" / f"net_moco_{END}.pth")["params"]
    assert int(moco["queue_filled"]) == BATCH * END
    assert torch.equal(moco["queue"][:, : BATCH * STOP], queue[:, : BATCH * STOP]), "what it had when it stopped"
    assert not torch.equal(moco["queue"][:, BATCH * STOP : BATCH * END], queue[:, BATCH * STOP : BATCH * END])
    state = load(folder / "training_states" / f"{END}.state")
    counts = {int(held["step"]) for held in state["optimizers"][0]["state"].values()}
    assert (state["iter"], counts) == (END, {END, END - PHASE}), (
        "encoder and projection learn always, the rest at the end"
    )


def test_train_resume_and_test(project: Project, aacl_options: Options, in_process: Callable[..., Outcome]) -> None:
    options, root = make_run(aacl_options), project.root
    trained = project.tool("train", options)
    check_training(root, trained)
    assert trained.output.count("Measured the degraded distances") == 1

    folder = root / "experiments" / NAME
    file = folder / "degradation_calibration.json"
    measured = (file.read_text(), file.stat().st_mtime_ns)
    queue = load(folder / "models" / f"net_moco_{STOP}.pth")["params"]["queue"]
    for late in (*folder.glob(f"models/*_{END}.pth"), *folder.glob("models/*_latest.pth")):
        late.unlink()
    resuming = copy.deepcopy(options)
    resuming["path"]["resume_state"] = f"experiments/{NAME}/training_states/{STOP}.state"
    resumed = project.tool("train", resuming)
    check_resumed(root, resumed, measured, queue)
    assert project.experiments == [NAME]

    testing = {key: options[key] for key in ("scale", "num_gpu", "manual_seed", "network_g", "val")}
    testing |= {"name": "tested", "model_type": "AACLModel", "datasets": {"test": options["datasets"]["val"]}}
    checkpoint = f"experiments/{NAME}/models/net_g_latest.pth"
    testing["path"] = {"pretrain_network_g": checkpoint, "param_key_g": "params_ema", "strict_load_g": True}
    testing["val"] = {**options["val"], "save_img": True}
    tested = project.tool("test", testing)
    assert tested.status == 0, tested.output
    assert measures(tested.output) == measures(resumed.output)[-1:], "as at the end of the training"
    images = sorted((root / "results/tested/visualization/val").glob("*.png"))
    names = [f"{photo}_{setting}" for photo in ("chelsea", "rocket") for setting in ("aniso_noise_jpeg", "bicubic")]
    assert [image.stem for image in images] == [f"{name}_tested" for name in names]
    first = cv2.imread(str(images[0]))
    assert first is not None
    assert first.shape == (300, 448, 3)

    stock = in_process("test", testing | {"name": "stock", "model_type": "SRModel"})
    assert stock.status == 0
    assert measures(stock.output) == measures(tested.output)
