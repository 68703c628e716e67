"""Load what others have saved without running what is in it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from bsr_plugins.errors import BSRError, described


def load_safely(file: Path, place: str) -> Any:
    """Load a checkpoint to the CPU: tensors, numbers, text and containers of these, and nothing else.

    Raises:
        BSRError: It is missing, broken, or holds anything else; the message begins with `place`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forms of pickles that it may refuse: then it says so
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BSRError(f"{place}: cannot be read ({error.strerror}), expected a checkpoint") from error
    except Exception as error:
        reason = described(error).split(". ")[0]
        raise BSRError(f"{place}: cannot be loaded safely ({reason}), expected a checkpoint") from error
