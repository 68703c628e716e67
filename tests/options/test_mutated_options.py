"""Option files that are damaged at random: each runs, or ends in a listed fault; no traceback, no hang.

The short form is part of the suite. The long one, 500 files, is run by

    OMP_NUM_THREADS=1 python -m pytest -m slow tests/options/test_mutated_options.py
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import pytest

from tests.options.mutations import Damage, complaint, damaged, run_forked

if TYPE_CHECKING:
    from tests.conftest import Options

_SHORT, _LONG = 24, 500
_AT_ONCE = 2
_SEED = 5


@pytest.fixture
def kinds(aacl_options: Options, redsr_options: Options, photographs: Path, tmp_path: Path) -> list[Options]:
    """Options of tiny runs of every kind; each validates at its end."""
    align = copy.deepcopy(aacl_options)
    align["model_type"] = "SimpleAlignModel"
    align["network_g"] = {"type": "MSRResNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1}
    align["network_g"]["upscale"] = 4
    align["train"] = {
        key: align["train"][key] for key in ("ema_decay", "total_iter", "optim_g", "scheduler", "pixel_opt")
    }
    align["train"] |= {"align_opt": {"type": "AlignmentLoss"}, "dropout": {"p": 0.5}, "tap_layer": "conv_last"}
    align["datasets"]["train"]["num_views"] = 1
    align["train"]["scheduler"] = {"type": "CosineAnnealingRestartLR", "periods": [4], "eta_min": 1e-7}
    del align["network_moco"]

    stock = copy.deepcopy(align)
    stock["model_type"] = "SRModel"
    for key in ("align_opt", "dropout", "tap_layer"):
        del stock["train"][key]
    del stock["degradation"]
    lq = tmp_path / "lq"
    lq.mkdir()
    for file in photographs.iterdir():
        cv2.imwrite(str(lq / file.name), cv2.resize(cv2.imread(str(file)), (24, 24), interpolation=cv2.INTER_AREA))
    pairs: Options = {"type": "PairedImageDataset", "dataroot_gt": str(photographs), "dataroot_lq": str(lq)}
    pairs |= {"io_backend": {"type": "disk"}}
    loading = {"num_worker_per_gpu": 0, "batch_size_per_gpu": 4, "dataset_enlarge_ratio": 2, "prefetch_mode": None}
    stock["datasets"] = {
        "train": {"name": "train", **pairs, "gt_size": 32, "use_hflip": True, "use_rot": True, **loading},
        "val": {"name": "val", **copy.deepcopy(pairs)},
    }
    aacl_options["train"]["encoder_phase"]["iters"] = 1
    return [stock, aacl_options, redsr_options, align]


def complaints(kinds: list[Options], number: int, folder: Path) -> Iterator[str]:
    """Run as many damaged files, some at a time, and yield what is wrong with how they end."""
    draws = random.Random(_SEED)
    waiting = [damaged(kinds[count % len(kinds)], draws) for count in range(number)][::-1]
    going: dict[Path, tuple[Damage, object]] = {}
    while waiting or going:
        while waiting and len(going) < _AT_ONCE:
            damage, place = waiting.pop(), folder / str(len(waiting))
            going[place] = (damage, run_forked(damage, place))
        for place, (damage, ended) in list(going.items()):
            outcome = ended()  # type: ignore[operator]
            if outcome is not None:
                del going[place]
                found = complaint(damage, outcome, place)
                if found is not None:
                    yield found


def test_undamaged_files_run(kinds: list[Options], tmp_path: Path) -> None:
    for number, options in enumerate(kinds):
        damage, folder = Damage("nothing", ("name",), options), tmp_path / f"whole{number}"
        ended = run_forked(damage, folder)
        while (outcome := ended()) is None:
            pass
        assert outcome.status == 0, outcome.output
        assert complaint(damage, outcome, folder) is None


def test_some_damaged_files(kinds: list[Options], tmp_path: Path) -> None:
    assert not (found := list(complaints(kinds, _SHORT, tmp_path))), "\n\n".join(found)


@pytest.mark.slow
def test_many_damaged_files(kinds: list[Options], tmp_path: Path) -> None:
    assert not (found := list(complaints(kinds, _LONG, tmp_path))), "\n\n".join(found)
