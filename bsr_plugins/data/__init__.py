"""Datasets; importing this package registers every `*_dataset.py` in BasicSR's DATASET_REGISTRY."""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    if _module.name.endswith("_dataset"):
        importlib.import_module(f"{__name__}.{_module.name}")
