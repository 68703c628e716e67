"""Install bsr_plugins; the tools' configuration is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """Read the version from the package's text, as importing the package needs what is to be installed."""
    text = (HERE / "bsr_plugins" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit('bsr_plugins/__init__.py: the line __version__ = "..." is missing')
    return found[1]


# A bound stands where there is a reason for it; scikit-image, lmdb, scipy and TensorBoard come with basicsr.
INSTALL = [
    "torch>=2.10",  # before it, loading a checkpoint with weights_only=True is unsafe: CVE-2025-32434, CVE-2026-24747
    "torchvision>=0.25",  # the one for torch 2.10; each requires exactly its own torch
    "basicsr==1.4.2",  # compat.py and the models know the inside of this release, the last one
    "mmengine",
    "lpips",
    "numpy>=1.21.2",  # the first with wheels for Python 3.10; numpy.typing.NDArray is from 1.21
    "opencv-python>=4.8.1.78",  # before it, reading a crafted WebP image can run its code: CVE-2023-4863
    "pydantic>=2.7",
    "pyyaml>=6.0",  # the first with wheels for Python 3.10
]
ANALYSIS = ["matplotlib", "scikit-learn"]
TEST = [*ANALYSIS, "pytest", "pytest-xdist", "hypothesis"]
DEV = [*TEST, "ruff", "mypy", "types-PyYAML"]

setup(
    name="bsr-plugins",
    version=read_version(),
    description="Blind super-resolution methods (AACL, ReDSR, Simple-Align) as plugins for BasicSR",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(str(HERE), include=["bsr_plugins", "bsr_plugins.*"]),
    # 3.10 is the oldest with wheels of torch 2.10. On 3.13 and newer BasicSR runs, but its source package does not
    # build (KeyError '__version__' in its setup.py): install a wheel of it that was built on an older Python first.
    python_requires=">=3.10",
    install_requires=INSTALL,
    extras_require={"analysis": ANALYSIS, "test": TEST, "dev": DEV},
)
