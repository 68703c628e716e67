"""AACL on two processes on the CPU, started by torchrun through the train tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tests.conftest import Options, Project

SCRIPT = """
import torch
from pathlib import Path

from bsr_plugins.engine import run, train_pipeline
from bsr_plugins.models import AACLModel

HERE = Path(__file__).parent
step, average = AACLModel.optimize_parameters, AACLModel.after_backward


def after_backward(self):
    weight = self.bare_net_g.encoder.features[0].weight
    self.own = weight.grad.clone()
    average(self)
    self.averaged = weight.grad.clone()


def optimize_parameters(self, current_iter):
    step(self, current_iter)
    networks = {"g": self.bare_net_g, "moco": self.bare_moco}
    state = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    kept = {"state": state, "keys": self.keys, "lq": self.lq, "log": dict(self.get_current_log())}
    kept |= {"own": self.own, "averaged": self.averaged}
    torch.save(kept, HERE / f"rank{self.opt['rank']}_{current_iter}.pth")


AACLModel.optimize_parameters, AACLModel.after_backward = optimize_parameters, after_backward
raise SystemExit(run(train_pipeline, HERE))
"""


def test_two_processes_train_one_network(project: Project, aacl_options: Options) -> None:
    aacl_options["degradation"]["sampler"] = {"type": "ads", "grid": 5}
    aacl_options["train"] |= {"total_iter": 4, "encoder_phase": {"iters": 2, "lr": 0.001}}
    aacl_options["datasets"]["train"]["batch_size_per_gpu"] = 2
    (project.root / "train.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    option_file = project.write(aacl_options)
    outcome = project.python(*launch, "train.py", "-opt", option_file, "--launcher", "pytorch")
    assert outcome.status == 0, outcome.output

    for iteration in range(1, 5):
        first, second = (load(project.root / f"rank{rank}_{iteration}.pth") for rank in range(2))
        for name, value in first["state"].items():
            assert torch.equal(value, second["state"][name]), (iteration, name)
        keys = torch.stack([first["keys"], second["keys"]], dim=1).flatten(0, 2)
        queue = first["state"]["moco.queue"]
        assert torch.equal(queue[:, 4 * (iteration - 1) : 4 * iteration], keys.T), "the keys of both in turn"
        assert int(first["state"]["moco.queue_filled"]) == 4 * iteration
        assert not torch.equal(first["lq"], second["lq"])
        if iteration <= 2:  # in the encoder's phase
            assert torch.allclose(first["averaged"], (first["own"] + second["own"]) / 2)
            assert torch.equal(first["averaged"], second["averaged"])
            assert not torch.allclose(first["own"], second["own"])
        assert ("l_pix" in first["log"]) == (iteration > 2)
    start, end = (load(project.root / f"rank0_{iteration}.pth")["state"] for iteration in (1, 4))
    assert not torch.equal(start["g.encoder.features.0.weight"], end["g.encoder.features.0.weight"])


def load(file: Path) -> dict[str, Any]:
    kept: dict[str, Any] = torch.load(file, weights_only=True)
    return kept
