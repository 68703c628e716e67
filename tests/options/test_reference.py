"""The reference of options and the schema for editors: up to date, whole, and in agreement with our option files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY

from bsr_plugins.data.dataset_options import PatchOptions, WholeImageOptions
from bsr_plugins.options import schema
from bsr_plugins.options.files import resolve
from bsr_plugins.options.reference import json_schema, markdown

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "options").rglob("*.yml"))
RENEW = "stale, run `python -m bsr_plugins.options` in the repository"


def test_the_files_are_what_the_code_declares() -> None:
    assert (REPOSITORY / "docs" / "options.md").read_text() == markdown(), RENEW
    assert json.loads((REPOSITORY / "options" / "schema.json").read_text()) == json_schema(), RENEW


def test_every_declared_key_and_argument_is_in_the_reference() -> None:
    text = markdown()
    for kind in (schema.RunOptions, schema.TrainOptions, schema.LoggerOptions, PatchOptions, WholeImageOptions):
        for key, field in kind.model_fields.items():
            assert field.description, (kind, key)
            assert re.search(rf"^\| `{key}` \| [^|]+ \|.*\| {re.escape(field.description)} \|$", text, re.MULTILINE)
    for registry in (ARCH_REGISTRY, LOSS_REGISTRY):
        for name, made in registry:
            assert (f"### `{name}`" in text) == made.__module__.startswith("bsr_plugins.")
    assert "| `num_feat` | int | `64` | Channels of the features, in [1, 4096]. |" in text


def complaints(value: Any, rule: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Yield what a JSON schema has against a value, as far as ours use the language."""
    types = rule.get("type", [])
    kinds: dict[str, Any] = {
        "object": dict,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "string": str,
        "null": type(None),
    }
    kinds["array"] = list
    known = [types] if isinstance(types, str) else types
    wrong = isinstance(value, bool) and "boolean" not in known
    if known and (wrong or not any(isinstance(value, kinds[one]) for one in known)):
        yield f"{place}: {value!r} is no {types}"
    if "enum" in rule and value not in rule["enum"]:
        yield f"{place}: {value!r} is none of {rule['enum']}"
    if "anyOf" in rule and all(list(complaints(value, one, place)) for one in rule["anyOf"]):
        yield f"{place}: {value!r} fits none"
    for one in rule.get("allOf", ()) if isinstance(value, dict) else ():
        if value.get("type") == one["if"]["properties"]["type"]["const"]:
            yield from complaints(value, one["then"], place)
    for key, inner in value.items() if isinstance(value, dict) else ():
        found = [rule["properties"][key]] if key in rule.get("properties", {}) else []
        found += [one for pattern, one in rule.get("patternProperties", {}).items() if re.search(pattern, key)]
        if not found and rule.get("additionalProperties") is False:
            yield f"{place}.{key}: unknown"
        for one in found:
            yield from complaints(inner, one, f"{place}.{key}")


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    """The schema."""
    made: dict[str, Any] = json.loads(json.dumps(json_schema()))
    return made


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(REPOSITORY)) for file in FILES])
def test_our_option_files_fit_the_schema(file: Path, rules: dict[str, Any]) -> None:
    written = yaml.safe_load(re.sub(r"(\de)(-?\d)", r"\g<1>\2", file.read_text()))
    for options in (written, resolve(file)):
        found = [one for one in complaints(options, rules) if not re.search(r"\.(lr|eta_min): '[\de-]+' is no", one)]
        assert not found


def test_the_schema_finds_slips(rules: dict[str, Any]) -> None:
    options = resolve(REPOSITORY / "options" / "train_aacl.yml")
    options["nam"] = options["train"]["optim_g"]["beta"] = options["network_g"]["num_fet"] = 1
    options["network_moco"]["type"] = "MoCoo"
    options["logger"]["print_freq"] = "often"
    options["val"]["metrics"]["psnr"]["crop_bordr"] = 1
    options["train"]["pixel_opt"]["loss_wight"] = 1
    found = {line.partition(":")[0] for line in complaints(options, rules)}
    assert found >= {".nam", ".train.optim_g.beta", ".network_g.num_fet", ".network_moco.type", ".logger.print_freq"}
    assert found >= {".val.metrics.psnr.crop_bordr", ".train.pixel_opt.loss_wight"}
