"""What is installed, what it asks for, and the README's command lines, on which CI relies."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bsr_plugins

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("bsr_plugins", "options", "tests", "tools", ".ci")
TEXT = {".py", ".yml", ".yaml", ".md", ".toml", ".cff", ""}
HOME_FOLDER = re.compile(r"""(?<![\w.~}/-])/(?:home|root|Users|work|tmp|mnt|opt|data)/\w""")
ANALYSIS_ONLY = {"matplotlib", "scikit-learn"}
BENCH = {canonicalize_name(path.stem) for path in (ROOT / "tools" / "bench").glob("*.py")}
"""The benchmarks import each other by their bare names."""


@pytest.fixture(scope="module")
def arguments() -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    given: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", given.update)
        patch.chdir(ROOT.parent)
        runpy.run_path(str(ROOT / "setup.py"))
    return given


def distributions(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def text_files() -> Iterator[Path]:
    for paths in (ROOT.iterdir(), *((ROOT / folder).rglob("*") for folder in FOLDERS)):
        yield from (path for path in paths if path.is_file() and path.suffix in TEXT)


@cache
def distributions_of_modules() -> Mapping[str, list[str]]:
    """Which distributions each installed module comes from; finding out takes a second."""
    return importlib.metadata.packages_distributions()


def third_party_imports(path: Path) -> Iterator[str]:
    """Name the distributions that a file imports from, wherever in the file it does."""
    known = distributions_of_modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.append(node.module)
        for module in (module.partition(".")[0] for module in modules):
            if module not in sys.stdlib_module_names and module != bsr_plugins.__name__:
                yield canonicalize_name(known.get(module, [module])[0])


def test_the_version_is_the_package_s(arguments: dict[str, Any]) -> None:
    assert arguments["version"] == bsr_plugins.__version__
    assert (arguments["name"], arguments["python_requires"]) == ("bsr-plugins", ">=3.10")


def test_citation_and_changelog_know_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == bsr_plugins.__version__
    assert f"## [{bsr_plugins.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()


def test_every_sub_package_is_installed_and_nothing_else(arguments: dict[str, Any]) -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "bsr_plugins").rglob("*.py")}
    assert set(arguments["packages"]) == {".".join(folder.parts) for folder in folders}


def test_whatever_is_imported_is_required(arguments: dict[str, Any]) -> None:
    through_basicsr = distributions(importlib.metadata.requires("basicsr") or [])
    allowed = distributions(arguments["install_requires"]) | through_basicsr
    allowed_in_analysis = allowed | distributions(arguments["extras_require"]["analysis"])
    analysis = [*(ROOT / "bsr_plugins" / "analysis").rglob("*.py"), ROOT / "tools" / "draw_overview.py"]
    for path in [*(ROOT / "bsr_plugins").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        ours = BENCH if path.parent.name == "bench" else set[str]()
        missing = set(third_party_imports(path)) - (allowed_in_analysis if path in analysis else allowed) - ours
        assert not missing, f"{path.relative_to(ROOT)} imports from {missing}, which setup.py does not require"


def test_tests_need_no_more_than_their_extra(arguments: dict[str, Any]) -> None:
    through_basicsr = distributions(importlib.metadata.requires("basicsr") or [])
    allowed = distributions(arguments["install_requires"]) | through_basicsr
    allowed |= distributions(arguments["extras_require"]["test"])
    allowed |= {"setuptools", "packaging"}  # the README's test line installs the one, pytest the other
    ours = {canonicalize_name(path.stem) for path in (ROOT / "tests").rglob("*.py")} | {"tests", "tools"} | BENCH
    for path in (ROOT / "tests").rglob("*.py"):
        missing = set(third_party_imports(path)) - allowed - ours
        assert not missing, f"{path.relative_to(ROOT)} imports from {missing}, which the extra 'test' does not require"


def test_extras_contain_each_other(arguments: dict[str, Any]) -> None:
    extras = {name: distributions(requirements) for name, requirements in arguments["extras_require"].items()}
    assert extras["analysis"] == ANALYSIS_ONLY
    assert extras["analysis"] < extras["test"] < extras["dev"]


def test_readme_has_its_two_lines() -> None:
    """CI runs the test line as it stands in the README; both lines name files that exist."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in readme.splitlines() if line.startswith("python3 -m venv ")]
    assert len(lines) == 2
    for line in lines:
        assert "pip install" in line
        for file in re.findall(r"[\w/.-]+\.(?:py|yml)", line):
            assert (ROOT / file).is_file(), file
    assert sum(line.endswith("&& pytest -n 2") and '".[test]"' in line for line in lines) == 1
    assert sum("tools/train.py -opt options/train_aacl.yml" in line for line in lines) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_ci_is_a_script_that_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)


def test_no_file_names_a_folder_of_one_machine() -> None:
    for path in text_files():
        found = HOME_FOLDER.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)}: {found and found[0]}…"
