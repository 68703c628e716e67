"""Importing bsr_plugins, and starting distributed runs on it, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

NOTHING_ELSE_HAPPENED = """
import random, threading
from pathlib import Path
import mmengine, numpy, torch  # mmengine imports rich, which draws from `random` when it is imported

def state():
    return (random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(),
            torch.cuda.is_initialized(), threading.active_count(), sorted(Path().rglob("*")))

before = state()
import bsr_plugins
assert state() == before
from basicsr.utils.logger import initialized_logger
assert not initialized_logger
"""
FAILED_BASICSR = """
import sys
sys.modules["torchvision.transforms.functional_tensor"] = None
try:
    import basicsr
except ImportError:
    del sys.modules["torchvision.transforms.functional_tensor"]
assert "basicsr" not in sys.modules and "basicsr.archs" in sys.modules
"""
FOREIGN_REPAIRS = """
import importlib, sys
sys.modules["torchvision.transforms.functional_tensor"] = foreign_alias = importlib.import_module(
    "torchvision.transforms._functional_tensor")
import basicsr.train

def foreign_resume(opt):
    return None

basicsr.train.load_resume_state = foreign_resume
import bsr_plugins
assert sys.modules["torchvision.transforms.functional_tensor"] is foreign_alias
assert basicsr.train.load_resume_state is foreign_resume
"""
EVERYTHING_IS_THERE = """
import importlib, sys
import bsr_plugins
assert bsr_plugins.compat.apply() == (), "the repairs are made again"
importlib.reload(bsr_plugins)
assert bsr_plugins.compat.apply() == (), "the repairs are made again after a reload"
for name in [name for name in sys.modules if name.partition(".")[0] == "bsr_plugins"]:
    del sys.modules[name]
import bsr_plugins
assert bsr_plugins.compat.apply() == (), "the repairs are made again after a second import"

import basicsr
for name in [name for name in sys.modules if name.startswith("basicsr.")]:
    parent, _, child = name.rpartition(".")
    assert hasattr(sys.modules[parent], child), name
assert basicsr.utils.registry.ARCH_REGISTRY.get("AACLNet").__module__.startswith("bsr_plugins.")
basicsr.archs.build_network({"type": "MSRResNet", "num_block": 1, "num_feat": 4})
"""


DISTRIBUTED = """
from pathlib import Path
import bsr_plugins, torch, torch.distributed
from basicsr.models.base_model import BaseModel
from basicsr.utils.dist_util import get_dist_info, init_dist

def step():  # a function, as torch now and then aborts at exit where a DDP network outlives it
    rank, world_size = get_dist_info()
    model = BaseModel({"num_gpu": 0, "dist": True, "is_train": True})
    net = model.model_to_device(torch.nn.Linear(1, 1, bias=False))
    (net(torch.ones(1, 1)) * rank).sum().backward()
    assert model.get_bare_model(net).weight.grad.item() == 0.5, "the gradients 0 and 1 are averaged"
    Path(f"rank{rank}").write_text(f"one of {world_size} over {torch.distributed.get_backend()}")

init_dist("pytorch")
step()
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def run_python(code: str, tmp_path: Path, *arguments: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "before",
    [NOTHING_ELSE_HAPPENED, FAILED_BASICSR, FOREIGN_REPAIRS],
    ids=["fresh", "after a failed import of BasicSR", "beside another package's repairs"],
)
def test_importing(before: str, tmp_path: Path) -> None:
    run_python(before + EVERYTHING_IS_THERE, tmp_path)


def test_two_processes_without_cuda(tmp_path: Path) -> None:
    run_python(DISTRIBUTED, tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["one of 2 over gloo"] * 2
