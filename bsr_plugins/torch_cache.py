"""Weights of torchvision's networks in torch's cache, where they are downloaded once."""

from __future__ import annotations

import http.client
from pathlib import Path, PurePosixPath

import torch

from bsr_plugins.errors import BSRError

_HASH_DIGITS = 8  # of a weight file's SHA-256, before the ending of its name


def cached_file(url: str) -> Path:
    """Return where torch keeps what it downloads from an address: in `checkpoints/` of `torch.hub.get_dir()`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(url).name


def download(url: str, what: str, expected: str) -> None:
    """Download weights to their place in torch's cache, checked by the hash in their name.

    Raises:
        BSRError: `what` is missing, and cannot be downloaded; `expected` is what would help.
    """
    file = cached_file(url)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem[-_HASH_DIGITS:])
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BSRError(f"{what} missing, and {url} cannot be downloaded ({reason}), expected {expected}") from error
