"""Option files damaged at random, and what becomes of runs on them."""

from __future__ import annotations

import copy
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bsr_plugins import engine
from bsr_plugins.options.command_line import BAD_INPUT

Options = dict[str, Any]
Place = tuple[str, ...]

TIMEOUT_S = 60.0
ITERATIONS = 2
CRASHED, HUNG = 1, -1
_HUGE = 10**8
# Keys for which no value is too large to be noticed before anything is made.
_GUARDED = frozenset(
    [
        "batch_size_per_gpu",
        "calibration_images",
        "dataset_enlarge_ratio",
        "gt_size",
        "num_feat",
        "num_views",
        "queue_size",
        "upscale",
    ]
)
_OTHER_TYPES: tuple[Any, ...] = ("x", "", "1e-4", True, False, None, 0, -1, 1.5, float("nan"), [], [1], {}, {"a": 1})
_POLL_S = 0.01


class Damage(NamedTuple):
    """What was done to options.

    Attributes:
        kind: `dropped`, `misspelt`, `retyped` or `out of range`.
        place: Where.
        options: What they are now.
    """

    kind: str
    place: Place
    options: Options

    def __str__(self) -> str:
        block: Any = self.options
        for key in self.place[:-1]:
            block = block[key]
        value = block.get(self.place[-1], "-") if isinstance(block, dict) else block
        return f"{self.options.get('model_type')}: {'.'.join(self.place)} {self.kind}: {value!r}"


class Ended(NamedTuple):
    """How a run ended: its exit status (or `CRASHED`, `HUNG`), what it printed, how long it took."""

    status: int
    output: str
    seconds: float


def damaged(options: Options, draws: random.Random) -> Damage:
    """Damage one key of options, which are left as they are."""
    options = copy.deepcopy(options)
    place = draws.choice(list(_places(options, ())))
    block: Any = options
    for key in place[:-1]:
        block = block[key]
    key, value = place[-1], block[place[-1]]
    kinds = ["dropped", "misspelt", "retyped"] + ["out of range"] * (2 * _is_number(value))
    kind = draws.choice(kinds)
    if kind == "dropped":
        del block[key]
    elif kind == "misspelt":
        block[_misspelt(key, draws)] = block.pop(key)
    elif kind == "retyped":
        block[key] = copy.deepcopy(draws.choice([other for other in _OTHER_TYPES if other != value]))
    else:
        factors = [-1, 0, 2, 3, 0.5, *([_HUGE] if key in _GUARDED else [])]
        factor = draws.choice(factors)
        block[key] = _scaled(value, factor)
    return Damage(kind, place, options)


def _places(value: Any, place: Place) -> Iterator[Place]:
    if isinstance(value, dict):
        for key in value:
            yield (*place, key)
            yield from _places(value[key], (*place, key))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | list) and not isinstance(value, bool) and value != []


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, list):
        return [_scaled(item, factor) for item in value]
    if isinstance(value, str):
        return value * 2
    scaled = value * factor
    return int(scaled) if isinstance(value, int) and factor != 0.5 else scaled


def _misspelt(key: str, draws: random.Random) -> str:
    at = draws.randrange(len(key))
    return draws.choice([key[:at] + key[at + 1 :] or "x", key[:at] + "q" + key[at:], key.upper(), f"{key}s"])


def run_forked(damage: Damage, folder: Path) -> Callable[[], Ended | None]:
    """Start a training run in a fork of this process.

    Returns:
        What gives how it ended, or None while it goes on.
    """
    folder.mkdir()
    (folder / "options.yml").write_text(yaml.safe_dump(damage.options, sort_keys=False))
    arguments = ["train", "-opt", "options.yml"]
    if damage.place != ("train", "total_iter"):
        arguments += ["--set", f"train:total_iter={ITERATIONS}"]
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _run_and_exit(folder, arguments)

    def ended() -> Ended | None:
        pid, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - began
        if pid == 0 and seconds < TIMEOUT_S:
            time.sleep(_POLL_S)
            return None
        if pid == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        code = HUNG if pid == 0 else os.waitstatus_to_exitcode(status)
        return Ended(code, (folder / "output").read_text(), seconds)

    return ended


def _run_and_exit(folder: Path, arguments: list[str]) -> None:
    status = CRASHED
    try:
        os.chdir(folder)
        output = os.open("output", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  (open to the end)
        sys.argv = arguments
        status = engine.run(engine.train_pipeline, folder)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else CRASHED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def complaint(damage: Damage, ended: Ended, folder: Path) -> str | None:
    """Return what is wrong with how a run ended, if anything: it ends well, or with its faults listed."""
    if ended.status == 0:
        if (folder / "experiments").is_dir() and "End of training" in ended.output:
            return None
        return f"{damage}: status 0, but it did not run"
    lines = ended.output.splitlines()
    listed = bool(lines) and all(line.startswith(("error: ", "warning: ")) for line in lines)
    if ended.status == BAD_INPUT and listed and not (folder / "experiments").exists():
        return None
    return f"{damage}: status {ended.status} after {ended.seconds:.1f} s\n{ended.output[-3000:]}"
