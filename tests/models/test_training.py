"""Short runs of AACLModel: they learn, and a seed decides everything."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from torch import Tensor

if TYPE_CHECKING:
    from tests.conftest import Options

Make = Callable[..., Any]


def train(make_model: Make, opt: Options, iterations: int) -> tuple[Any, list[dict[str, float]]]:
    """Train as BasicSR does, within one epoch; returns the model and every iteration's log."""
    block = opt["datasets"]["train"]
    dataset = build_dataset(block)
    sampler = EnlargedSampler(dataset, 1, 0, block["dataset_enlarge_ratio"])
    loader = build_dataloader(dataset, block, num_gpu=0, sampler=sampler, seed=opt["manual_seed"])
    model, log = make_model(opt), []
    for iteration, batch in zip(range(1, iterations + 1), loader, strict=False):
        model.update_learning_rate(iteration)
        model.feed_data(batch)
        model.optimize_parameters(iteration)
        log.append(model.get_current_log())
    assert len(log) == iterations
    return model, log


def mean(log: list[dict[str, float]], name: str) -> float:
    return sum(entry[name] for entry in log) / len(log)


def test_a_short_run_learns(opt: Options, make_model: Make) -> None:
    """Untrained, the accuracy stays near 0.1 and the pixel loss near 0.3, for every seed that was tried."""
    opt["datasets"]["train"] |= {"batch_size_per_gpu": 8, "num_views": 4, "dataset_enlarge_ratio": 1000}
    opt["network_moco"]["queue_size"] = 128
    opt["degradation"]["sampler"] = {"type": "ads", "grid": 9}
    opt["train"] |= {"total_iter": 200, "encoder_phase": {"iters": 20, "lr": 0.002}}
    model, log = train(make_model, opt, 200)
    assert int(model.bare_moco.queue_filled) == 128, "chance is 1 / 129"
    assert mean(log[-60:], "contrast_accuracy") > max(0.5, mean(log[:20], "contrast_accuracy") + 0.1)
    assert mean(log[-60:], "l_contrast") < 0.35
    assert mean(log[-60:], "l_pix") < mean(log[20:30], "l_pix") / 2
    assert mean(log[-60:], "embedding_spread") > 0.2, "the representations have not collapsed"


def state(model: Any) -> dict[str, Tensor]:
    networks = {"g": model.net_g, "ema": model.net_g_ema, "moco": model.bare_moco}
    return {f"{key}.{name}": value for key, net in networks.items() for name, value in net.state_dict().items()}


def test_a_seed_decides_everything(opt: Options, make_model: Make) -> None:
    def run(**changes: Any) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        options = copy.deepcopy(opt)
        options["datasets"]["train"]["seed"] = changes.pop("dataset_seed", 10)
        options["datasets"]["train"]["num_worker_per_gpu"] = changes.pop("workers", 0)
        model, log = train(make_model, options | changes, 4)
        return state(model), log

    first, log = run()
    for weights, again in (run(), run(workers=2)):
        assert again == log
        assert weights.keys() == first.keys()
        assert all(torch.equal(weights[name], first[name]) for name in first)
    for weights, other in (run(manual_seed=11), run(dataset_seed=11)):
        assert other != log
        assert not torch.equal(weights["g.encoder.features.0.weight"], first["g.encoder.features.0.weight"])
        assert not torch.equal(weights["moco.queue"], first["moco.queue"])


def test_global_random_states_are_not_touched(opt: Options, make_model: Make) -> None:
    train(make_model, opt, 1)
    torch.manual_seed(3)
    random.seed(3)
    model, block = make_model(opt), opt["datasets"]["train"]
    before = (torch.get_rng_state(), random.getstate())
    batch = next(iter(build_dataloader(build_dataset(block), block, num_gpu=0, sampler=[0, 1, 2, 3])))
    torch.set_rng_state(before[0])  # which the loader draws its workers' seed from
    for iteration in (1, 2, 3):
        model.feed_data(batch)
        model.optimize_parameters(iteration)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
