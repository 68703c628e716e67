"""The reference of all declared options: Markdown for readers, a JSON schema for editors."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from bsr_plugins.blocks import is_own
from bsr_plugins.data.dataset_options import PatchOptions, WholeImageOptions
from bsr_plugins.data.paired_degradation_dataset import PairedDegradationDataset
from bsr_plugins.degradations import DEGRADATIONS
from bsr_plugins.options import schema
from bsr_plugins.options.declared import OptionBlock, expected_of
from bsr_plugins.options.files import BASE, DELETE
from bsr_plugins.options.schema import OPTIMISERS, SCHEDULERS
from bsr_plugins.registration import Registry

_PACKAGE = "bsr_plugins"
_BLOCKS: tuple[tuple[str, type[OptionBlock]], ...] = (
    ("(top)", schema.RunOptions),
    ("path", schema.PathOptions),
    ("train", schema.TrainOptions),
    ("train.optim_…", schema.OptimiserOptions),
    ("train.scheduler", schema.SchedulerOptions),
    ("train.…_opt", schema.LossOptions),
    ("val", schema.ValOptions),
    ("val.metrics.…", schema.MetricOptions),
    ("logger", schema.LoggerOptions),
    ("logger.wandb", schema.WandbOptions),
    ("dist_params", schema.DistOptions),
    ("datasets.train", schema.TrainDatasetOptions),
    ("datasets.val…, datasets.test…", schema.WholeDatasetOptions),
)
Row = tuple[str, str, str, str]
"""Key, type, default, meaning."""

_GIVEN = ("self", "img", "img2")
_HEAD = """# Options

Made by `python -m bsr_plugins.options` of what the code declares; edit that, not this file. Keys without a default are
needed. A block of `type: NAME` takes the arguments of that class as its keys.
"""
_JSON_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}


def markdown() -> str:
    """Return the reference as Markdown."""
    text = [_HEAD, "## What the trainer reads\n"]
    for place, kind in _BLOCKS:
        text += _section(f"`{place}`", kind, _fields(kind))
    text += ["## Stock models of BasicSR\n"]
    for kind in dict.fromkeys(schema.STOCK_MODELS.values()):
        names = [model.__name__ for model, declared in schema.STOCK_MODELS.items() if declared is kind]
        text += _section(f"`train` of {', '.join(names)}", None, _fields(kind))
    text += ["## Datasets\n", *_section("`PairedDegradationDataset`", PairedDegradationDataset, ())]
    text += ["Training:\n", *_table(_fields(PatchOptions))]
    text += ["Validation and testing:\n", *_table(_fields(WholeImageOptions))]
    text += _section("BasicSR's datasets", schema.StockDatasetOptions, _fields(schema.StockDatasetOptions))
    text += ["## Models\n"]
    for name, model in _ours(MODEL_REGISTRY):
        text += _section(f"`{name}`", model, ())
        for title, declared in (("At the top", "Options"), ("Under `train`", "TrainOptions")):
            table = _table(_fields(getattr(model, declared, None)))
            text += [f"{title}:\n", *table] if table else []
    for title, known in _named():
        text += [f"## {title[0].upper()}{title[1:]}\n"]
        for name, made in sorted(known.items()):
            text += _section(f"`{name}`", made, _arguments(made))
    return "\n".join(text).rstrip() + "\n"


def json_schema() -> dict[str, Any]:
    """Return a JSON schema of option files, for `yaml-language-server`."""
    definitions: dict[str, Any] = {}

    def block(*kinds: type[OptionBlock], **patterns: Any) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        for kind in kinds:
            made = kind.model_json_schema(ref_template="#/definitions/{model}")
            definitions.update(made.pop("$defs", {}))
            properties = {**made["properties"], **properties}
        return _object(properties, patterns)

    models = [model for _, model in _ours(MODEL_REGISTRY)]
    top, train = ([getattr(m, name) for m in models if hasattr(m, name)] for name in ("Options", "TrainOptions"))
    run = block(schema.RunOptions, *top, **{"^network_": _by_type(_shipped(ARCH_REGISTRY)), "^x-": {}})
    losses = {"_opt$": _by_type(_shipped(LOSS_REGISTRY))}
    training = block(schema.TrainOptions, *schema.STOCK_MODELS.values(), *train, **losses)
    optimiser = {"^optim_": _by_type(OPTIMISERS, ("params",))}
    training["patternProperties"] |= optimiser
    training["properties"] = {k: v for k, v in training["properties"].items() if not re.search("_opt$|^optim_", k)}
    training["properties"]["scheduler"] = _by_type(SCHEDULERS, ("optimizer", "last_epoch"))
    metrics = _object({}, {"": _by_type(_shipped(METRIC_REGISTRY), _GIVEN, block(schema.MetricOptions)["properties"])})
    path = block(
        schema.PathOptions, **{"^pretrain_network_": {}, "^strict_load_": {"type": "boolean"}, "^param_key_": {}}
    )
    val, logger = block(schema.ValOptions), block(schema.LoggerOptions)
    val["properties"]["metrics"], logger["properties"]["wandb"] = metrics, block(schema.WandbOptions)
    datasets = {
        "^train": block(schema.TrainDatasetOptions, PatchOptions, schema.StockDatasetOptions),
        "^(val|test)": block(schema.WholeDatasetOptions, WholeImageOptions, schema.StockDatasetOptions),
    }
    for one in datasets.values():
        del one["additionalProperties"]  # datasets of others
    run["properties"] |= {"path": path, "train": training, "val": val, "logger": logger}
    run["properties"] |= {"datasets": _object({}, datasets), "dist_params": block(schema.DistOptions)}
    run["properties"]["degradation"] = _by_type(_shipped(DEGRADATIONS.items()))
    run["properties"][BASE] = {"description": "Option files that this one inherits from."}
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": f"Option files of {_PACKAGE}"}
    return {**head, **run, "definitions": definitions}


def _object(properties: dict[str, Any], patterns: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a block, which may be null and may replace an inherited one."""
    properties = {**properties, DELETE: {"type": "boolean", "description": "Whether this replaces what is inherited."}}
    made = {"type": ["object", "null"], "properties": properties, "patternProperties": dict(patterns)}
    return {**made, "additionalProperties": False}


def _shipped(registry: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return what BasicSR and this package have registered, whatever a project adds."""
    return {name: made for name, made in registry if is_own(made)}


def _by_type(
    known: Mapping[str, Any], given: Iterable[str] = (), also: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe a block of `type: NAME` with the arguments of what it names."""
    choices = []
    for name, made in sorted(known.items()):
        properties = dict(also or {})
        for argument, text, default, meaning in _arguments(made):
            if argument not in given:
                described = f"{meaning} Default: {default}.".strip() if default else meaning
                properties[argument] = {"description": described} if described else {}
                properties[argument] |= {"type": _JSON_TYPES[text]} if text in _JSON_TYPES else {}
        parameters = inspect.signature(made).parameters.values()
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters) and not is_own(made)
        then = {"properties": {**properties, "type": {}, DELETE: {}}} | (
            {} if takes_any else {"additionalProperties": False}
        )
        choices.append({"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": then})
    return {"type": ["object", "null"], "properties": {"type": {"enum": sorted(known)}}, "allOf": choices}


def _named() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what blocks may name by `type`, or a string: ours of BasicSR's registries, and our own registries."""
    yield "networks", dict(_ours(ARCH_REGISTRY))
    yield "losses", dict(_ours(LOSS_REGISTRY))
    yield "metrics", dict(_ours(METRIC_REGISTRY))
    yield "degradations", DEGRADATIONS
    seen = {id(DEGRADATIONS)}
    for name in sorted(name for name in sys.modules if name.startswith(f"{_PACKAGE}.")):
        for value in list(vars(sys.modules[name]).values()):
            if isinstance(value, Registry) and id(value) not in seen:
                seen.add(id(value))
                yield f"{value.what}s", value


def _ours(registry: Any) -> list[tuple[str, Any]]:
    return sorted((name, made) for name, made in registry if made.__module__.startswith(f"{_PACKAGE}."))


def _section(title: str, made: object, rows: Iterable[Row]) -> list[str]:
    """Write a title, the first sentence of a docstring, and a table."""
    text = inspect.cleandoc((made.__doc__ if made else "") or "").partition("\n\n")[0]
    return [f"### {title}\n", *([" ".join(text.split()) + "\n"] if text else []), *_table(rows)]


def _fields(kind: type[OptionBlock] | None) -> Iterator[Row]:
    for key, field in kind.model_fields.items() if kind else ():
        default = "" if field.is_required() else _written(field.default)
        yield key, expected_of(field), default, field.description or ""


def _arguments(made: Callable[..., Any]) -> Iterator[Row]:
    """Yield the arguments of a class or function, with what its docstring says of them."""
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError):  # a registry may hold what is not called
        return
    meanings = _meanings(made)
    for name, parameter in parameters.items():
        if name in _GIVEN or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        annotation = parameter.annotation
        text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
        default = "" if parameter.default is parameter.empty else _written(parameter.default)
        yield name, "" if annotation is parameter.empty else text, default, meanings.get(name, "")


def _meanings(made: Any) -> dict[str, str]:
    """Read the section `Args` of a docstring in Google's style."""
    lines = inspect.cleandoc(made.__doc__ or "").splitlines()
    if "Args:" not in lines:
        return {}
    found: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        match = re.match(r" {4}(\w+)(?: \([^)]*\))?: (.*)", line)
        name = match[1] if match else name
        text = match[2] if match else line.strip()
        found[name] = f"{found.get(name, '')} {text}".strip()
    return found


def _written(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return getattr(value, "__name__", None) or repr(value)


def _table(rows: Iterable[Row]) -> list[str]:
    lines = [
        f"| `{key}` | {text} | {f'`{default}`' if default else ''} | {meaning} |".replace(" |  | ", " | | ")
        for key, text, default, meaning in ((*row[:1], *(cell.replace("|", "\\|") for cell in row[1:])) for row in rows)
    ]
    return ["| key | type | default | meaning |", "|---|---|---|---|", *lines, ""] if lines else []
