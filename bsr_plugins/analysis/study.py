"""What the small studies share: photographs, batches, options, arguments, and runs side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from bsr_plugins.data.decode import Pixels
from bsr_plugins.data.image_files import DEMO, ImageFile, find_images, read_image
from bsr_plugins.data.patches import patches
from bsr_plugins.errors import BadImageError, OptionError
from bsr_plugins.seeding import generator_at

_HELD_OUT = 5  # of so many images one is held out
_LEAST = 6  # of which two are held out

Job = TypeVar("Job")
Result = TypeVar("Result")


def find_photographs(root: str, split: str, where: str, smallest_side: int) -> list[ImageFile]:
    """Find the photographs of a folder, or those of `demo` in a split, `train` or `val`.

    Raises:
        BSRError: The folder is missing, or holds no photographs or one with a shorter side; the message begins with
            `where`.
    """
    if not root:
        raise OptionError(f"{where}: is empty, expected a folder or '{DEMO}'")
    found = find_images([root], "disk", split, where)
    for image in found:
        if min(image.height, image.width) < smallest_side:
            size = f"{image.width}x{image.height}"
            raise BadImageError(f"{image.path}: is {size}, expected both sides at least {smallest_side}")
    return found


def split_photographs(root: str, smallest_side: int) -> tuple[list[ImageFile], list[ImageFile]]:
    """Find the photographs to train on, and those held out: every fifth, or the validation split of `demo`.

    Raises:
        BSRError: See `find_photographs`; or the folder holds too few.
    """
    found = find_photographs(root, "train", "--dataroot", smallest_side)
    if root == DEMO:
        return found, find_photographs(root, "val", "--dataroot", smallest_side)
    if len(found) < _LEAST:
        raise OptionError(f"--dataroot: '{root}' holds {len(found)} images, expected at least {_LEAST}")
    return [image for image in found if image not in found[::_HELD_OUT]], found[::_HELD_OUT]


def patch_batches(
    images: Sequence[Pixels], iters: int, batch_size: int, size: int, num_views: int, seed: int
) -> Iterator[Tensor]:
    """Yield batches of patches (B, V, 3, size, size) in [0, 1], flipped and turned, which a seed alone decides."""
    for iteration in range(1, iters + 1):
        generator = generator_at(seed, "study", iteration)
        chosen = torch.randint(len(images), (batch_size,), generator=generator).tolist()
        yield torch.stack([patches(images[index], size, num_views, True, True, generator) for index in chosen])


def study_options(study: Any, scale: int, seed: int, last_lr: float) -> dict[str, Any]:
    """Return options of a training run of a `Study` in one process, without folders; the study adds its blocks."""
    process = {"num_gpu": 0 if study.device == "cpu" else 1, "dist": False, "rank": 0, "world_size": 1}
    train = {
        "total_iter": study.iters,
        "optim_g": {"type": "Adam", "lr": study.lr, "betas": [0.9, 0.999]},
        "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [study.iters], "eta_min": last_lr},
        "pixel_opt": {"type": "L1Loss"},
    }
    return {**process, "is_train": True, "path": {}, "scale": scale, "manual_seed": seed, "train": train}


def at_least(low: int) -> Callable[[str], int]:
    """Return what reads an argument that is a whole number of at least `low`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text}, expected a whole number at least {low}")
        return int(text)

    return read


def usable_device(text: str) -> str:
    """Read an argument that names a device, `cpu` or `cuda`."""
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("there is no CUDA device here, expected cpu")
    return text


def study_parser(doc: str | None, study: Any, least_batch_size: int = 1) -> argparse.ArgumentParser:
    """Make the parser of a study's tool, with the arguments that all have; defaults are those of its `Study`."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--dataroot", default=DEMO, help="folder of HR photographs")
    parser.add_argument("--iters", type=at_least(1), default=study.iters, help="training steps of each run")
    parser.add_argument("--batch-size", type=at_least(least_batch_size), default=study.batch_size, help="images a step")
    parser.add_argument("--device", choices=("cpu", "cuda"), type=usable_device, default=study.device)
    parser.add_argument("--processes", type=at_least(1), default=2, help="runs side by side; each has one CPU thread")
    return parser


def run_side_by_side(
    run: Callable[..., Result], jobs: Sequence[Job], photographs: Sequence[Sequence[ImageFile]], processes: int
) -> dict[Job, Result]:
    """Make the runs of a study, so many at a time in processes of one thread, with a progress bar.

    `run`, which is pickled, gets a job, the pixels to train on, and those held out.
    """
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        results = tqdm(pool.map(partial(_run, run, photographs), jobs), total=len(jobs), unit="run")
        return dict(zip(jobs, results, strict=True))


def _run(run: Callable[..., Result], photographs: Sequence[Sequence[ImageFile]], job: Any) -> Result:
    return run(job, *([read_image(image) for image in images] for images in photographs))
