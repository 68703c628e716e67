"""The archs package registers all it has."""

from __future__ import annotations

import sys
from pathlib import Path

from basicsr.utils.registry import ARCH_REGISTRY

from bsr_plugins import archs


def test_every_arch_file_is_imported() -> None:
    folder = Path(archs.__file__).parent
    files = sorted([*folder.glob("*_arch.py"), *folder.glob("*_backbone.py")])
    assert len(files) >= 3
    assert "edsr" in archs.BACKBONES
    for file in files:
        assert f"bsr_plugins.archs.{file.stem}" in sys.modules, file.name


def test_archs_are_in_basicsrs_registry() -> None:
    assert ARCH_REGISTRY.get("AACLNet") is archs.AACLNet
    assert ARCH_REGISTRY.get("ContrastiveEncoder") is archs.ContrastiveEncoder
    assert ARCH_REGISTRY.get("MoCo") is archs.MoCo
    assert "DRF" not in ARCH_REGISTRY
    assert "RepresentationNet" not in ARCH_REGISTRY
