"""The stages of the classical degradation. Every module of this folder is imported here and registers what it holds."""

from importlib import import_module
from pkgutil import iter_modules

from bsr_plugins.degradations.stages.base import STAGES, Block, Blur, LRStage, SeparableBlur, Stage

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["STAGES", "Block", "Blur", "LRStage", "SeparableBlur", "Stage"]
