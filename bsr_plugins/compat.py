"""All that BasicSR 1.4.2 needs to run on today's torch, torchvision and numpy; the only place that patches.

`REPAIRS` is the table: each entry is one function that says why it is there, checks that it is needed, and leaves
everything as it was where it is not. So it may be applied again, or beside another package that makes the same repair.
Whether there is CUDA is asked when the repaired code runs and never on import, which must not touch a device.

Left alone on purpose, as our models do not use them: `RealESRNetModel` and `RealESRGANModel`, into which CUDA
is written, NIQE on images that it cannot judge, and BasicSR's validation under DDP.
"""

from __future__ import annotations

import functools
import importlib
import queue
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def alias_functional_tensor() -> bool:
    """Let `import torchvision.transforms.functional_tensor`, without which `import basicsr` fails, find the module.

    torchvision 0.17 dropped this name for `_functional_tensor`.
    """
    name = "torchvision.transforms.functional_tensor"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        sys.modules[name] = importlib.import_module("torchvision.transforms._functional_tensor")
        return True
    return False


def reattach_submodules() -> bool:
    """Import BasicSR, and set the attributes that an earlier, failed `import basicsr` kept from being set.

    The next import finds submodules ready that came through, and does not set them on the new package.
    """
    importlib.import_module("basicsr")
    changed = False
    for name, module in list(sys.modules.items()):
        parent, _, child = name.rpartition(".")
        if name.startswith("basicsr.") and not hasattr(sys.modules[parent], child):
            setattr(sys.modules[parent], child, module)
            changed = True
    return changed


def resume_without_cuda() -> bool:
    """Let a run resume where there is no CUDA: stock `load_resume_state` asks for the current CUDA device."""
    train = _basicsr("train")
    stock = train.load_resume_state
    if not _mentions(stock, "current_device"):
        return False

    @functools.wraps(stock)
    def load_resume_state(opt: dict[str, Any]) -> Any:
        if torch.cuda.is_available():
            return stock(opt)
        if opt["auto_resume"]:
            folder = Path("experiments", opt["name"], "training_states")
            states = list(train.scandir(str(folder), suffix="state")) if folder.is_dir() else []
            if not states:
                return None
            latest = max(float(state.split(".state")[0]) for state in states)
            opt["path"]["resume_state"] = str(folder / f"{latest:.0f}.state")
        if not opt["path"].get("resume_state"):
            return None
        state = torch.load(opt["path"]["resume_state"], map_location="cpu", weights_only=True)
        train.check_resume(opt, state["iter"])
        return state

    _replace_by_name(stock, load_resume_state)
    return True


def filter_strided_batches() -> bool:
    """Let `filter2D` take a batch in any memory layout.

    Padding on the CPU keeps a channels-last layout, which `DiffJPEG` returns, and the `view` after it fails.
    """
    img_process_util = _basicsr("utils.img_process_util")
    stock = img_process_util.filter2D
    strided = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    try:
        stock(strided, torch.zeros(2, 3, 3))
    except RuntimeError:
        pass
    else:
        return False

    @functools.wraps(stock)
    def filter2D(img: Tensor, kernel: Tensor) -> Tensor:
        result: Tensor = stock(img.contiguous(), kernel)
        return result

    _replace_by_name(stock, filter2D)
    return True


def distribute_without_cuda() -> bool:
    """Let `torchrun` work where there is no CUDA: stock divides by the number of GPUs, and NCCL needs one."""
    dist_util = _basicsr("utils.dist_util")
    stock = dist_util._init_dist_pytorch
    if not _mentions(stock, "set_device"):
        return False

    @functools.wraps(stock)
    def _init_dist_pytorch(backend: str, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            stock(backend, **kwargs)
        else:
            torch.distributed.init_process_group(backend="gloo" if backend == "nccl" else backend, **kwargs)

    _replace_by_name(stock, _init_dist_pytorch)
    return True


def wrap_networks_on_cpu() -> bool:
    """Let a distributed run wrap its networks on the CPU: stock hands the current CUDA device to DDP."""
    base_model = _basicsr("models.base_model").BaseModel
    stock = base_model.model_to_device
    if not _mentions(stock, "current_device"):
        return False

    @functools.wraps(stock)
    def model_to_device(self: Any, net: nn.Module) -> nn.Module:
        if self.opt["dist"] and self.device.type == "cpu":
            unused = self.opt.get("find_unused_parameters", False)
            return DistributedDataParallel(net.to(self.device), find_unused_parameters=unused)
        moved: nn.Module = stock(self, net)
        return moved

    base_model.model_to_device = model_to_device
    return True


def accept_both_spellings_of_local_rank() -> bool:
    """Let `parse_options` take `--local-rank`, as `torch.distributed.launch` has spelt it since torch 2.0."""
    options = _basicsr("utils.options")
    parser = options.argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int)
    understood = not parser.parse_known_args(["--local-rank=1"])[1]
    if understood or _mentions(options.parse_options, "--local-rank"):
        return False
    stock = options.argparse.ArgumentParser

    class ArgumentParser(stock):  # type: ignore[misc, valid-type]
        def add_argument(self, *flags: Any, **settings: Any) -> Any:
            return super().add_argument(
                *(("--local-rank", *flags) if flags == ("--local_rank",) else flags), **settings
            )

    options.argparse = _copy_of(options.argparse, ArgumentParser=ArgumentParser)
    return True


def expand_lists_of_folders() -> bool:
    """Let `dataroot_gt` and `dataroot_lq` be lists of folders: `parse_options` expands `~` in one path."""
    options = _basicsr("utils.options")
    stock = options.osp.expanduser
    try:
        stock([""])
    except TypeError:
        pass
    else:
        return False

    @functools.wraps(stock)
    def expanduser(path: Any) -> Any:
        return [expanduser(one) for one in path] if isinstance(path, list | tuple) else stock(path)

    options.osp = _copy_of(options.osp, expanduser=expanduser)
    return True


def prefetch_without_cuda() -> bool:
    """Let `prefetch_mode: cuda` run where there is no CUDA, with a warning: stock opens a CUDA stream."""
    prefetch = _basicsr("data.prefetch_dataloader")
    stock = prefetch.CUDAPrefetcher
    if not _mentions(stock.__init__, "Stream") or stock.__new__ is not object.__new__:
        return False

    # __new__ rather than another class, as it reaches whoever has imported the class by its name
    def __new__(cls: type, loader: Iterable[Any], opt: dict[str, Any]) -> Any:  # noqa: ARG001  (the class's signature)
        if torch.cuda.is_available():
            return object.__new__(cls)
        _basicsr("utils").get_root_logger().warning(
            "prefetch_mode: 'cuda' needs CUDA, and there is none: the batches come straight from the loader."
        )
        return prefetch.CPUPrefetcher(loader)

    stock.__new__ = staticmethod(__new__)
    return True


class _Failure(NamedTuple):
    """What a prefetching thread leaves in its queue in the place of the batch that it could not make."""

    error: BaseException


def hand_on_prefetch_errors() -> bool:
    """Let an error in the dataset end the run under `prefetch_mode: cpu`, where the stock trainer waits for ever."""
    generator_class = _basicsr("data.prefetch_dataloader").PrefetchGenerator
    if not _dies_silently(generator_class):
        return False
    stock_run, stock_next = generator_class.run, generator_class.__next__

    @functools.wraps(stock_run)
    def run(self: Any) -> None:
        try:
            stock_run(self)
        except BaseException as error:  # whatever ends this thread has to reach the other one
            self.queue.put(_Failure(error))
            self.queue.put(None)

    @functools.wraps(stock_next)
    def __next__(self: Any) -> Any:
        item = stock_next(self)
        if isinstance(item, _Failure):
            raise item.error
        return item

    generator_class.run, generator_class.__next__ = run, __next__
    return True


def _dies_silently(generator_class: Any) -> bool:
    """Tell whether a prefetching thread leaves nothing in its queue when its generator raises."""
    thread = object.__new__(generator_class)  # without __init__, which would start it
    thread.generator, thread.queue = (1 / 0 for _ in range(1)), queue.Queue()
    try:
        thread.run()
    except ZeroDivisionError:
        return bool(thread.queue.empty())
    return False


def whole_jpeg_quality() -> bool:
    """Let `random_add_jpg_compression` run: it draws a real quality, and OpenCV takes whole ones only."""
    stock = _basicsr("data.degradations").add_jpg_compression
    try:
        stock(np.zeros((8, 8, 3), np.float32), 90.5)
    except cv2.error:
        pass
    else:
        return False

    @functools.wraps(stock)
    def add_jpg_compression(img: Any, quality: float = 90) -> Any:
        return stock(img, int(quality))

    _replace_by_name(stock, add_jpg_compression)
    return True


def position_indices() -> bool:
    """Let a dataset know the epoch and the place in it: `EnlargedSampler` yields `PositionedIndex`.

    With a bare index, a dataset in a worker can only draw from the worker's random state. That is seeded alike in every
    epoch, so each repeats the crops of the one before. Values and order of the indices stay as they are.
    """
    sampler_class = _basicsr("data.data_sampler").EnlargedSampler
    made = importlib.import_module("bsr_plugins.data.positions").PositionedIndex
    if type(next(iter(sampler_class(range(1), 1, 0)))) is made:
        return False
    stock = sampler_class.__iter__

    @functools.wraps(stock)
    def __iter__(self: Any) -> Iterator[int]:
        epoch, positions = self.epoch, range(self.rank, self.total_size, self.num_replicas)
        return (made(index, epoch, position) for index, position in zip(stock(self), positions, strict=True))

    sampler_class.__iter__ = __iter__
    return True


REPAIRS: tuple[Callable[[], bool], ...] = (
    alias_functional_tensor,
    reattach_submodules,
    resume_without_cuda,
    filter_strided_batches,
    distribute_without_cuda,
    wrap_networks_on_cpu,
    accept_both_spellings_of_local_rank,
    expand_lists_of_folders,
    prefetch_without_cuda,
    hand_on_prefetch_errors,
    whole_jpeg_quality,
    position_indices,
)
"""Every repair, in the order in which it is made: BasicSR cannot be imported before the first."""


def apply() -> tuple[str, ...]:
    """Make the repairs that are needed and not yet made; return the names of those that changed something."""
    return tuple(repair.__name__ for repair in REPAIRS if repair())


def _basicsr(module: str) -> Any:
    """Import a module of BasicSR, which cannot be done at the top of this file."""
    return importlib.import_module(f"basicsr.{module}")


def _mentions(function: Any, name: str) -> bool:
    """Tell whether a function's code holds a name or a text; running it would touch CUDA or a file."""
    code = getattr(function, "__code__", None)
    return code is not None and name in (*code.co_names, *code.co_consts)


def _replace_by_name(stock: Any, repaired: Any) -> None:
    """Give the repaired function to every loaded module that holds the stock one under its name."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            # past the module's own attribute look-up, which a lazily loaded module answers by loading
            held: Any = object.__getattribute__(module, "__dict__")
            if held.get(stock.__name__) is stock:
                held[stock.__name__] = repaired


def _copy_of(module: ModuleType, **changes: Any) -> ModuleType:
    """Copy a module with some names changed, for one module of BasicSR to hold in the original's place."""
    copy = ModuleType(module.__name__, module.__doc__)
    vars(copy).update(vars(module) | changes)
    return copy
