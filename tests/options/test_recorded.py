"""What models and datasets read is learned from their code, in whatever way people write it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY
from bsr_plugins.engine.option_reads import reads_of
from tests.options.unknown_keys import found, stock

from bsr_plugins.models import AACLModel, ReDSRModel

if TYPE_CHECKING:
    from tests.conftest import Options


class Helper:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def width(self) -> Any:
        return self.settings["width"]


def helper(block: Mapping[str, Any], *, key: str) -> Any:
    return block[key], block.get("by_helper")


NAMES = ("from_tuple", "from_tuple_too")


class StrangersModel(SRModel):  # type: ignore[misc]  # BasicSR carries no annotations
    """Reads options in all the ways that people write."""

    extra = ("one", "two")

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        train = opt["train"]
        self.plain = train["plain"]
        self.mine = self.opt.get("my_block") or {}
        self.deep = self.mine.get("deep", 1)
        if "asked_for" in train:
            self.later()
        for name in NAMES:
            train.get(name)
        self.networks = {name: self.opt[f"network_{name}"] for name in self.extra}
        first, second = self.opt["first"], opt["second"]
        self.pair = (first["a"], second["b"])
        helper(train, key="by_key")
        Helper(self.opt["size"]).width()
        self.popped = dict(train).pop("popped")
        self.loss(train_opt=train)

    @property
    def mine_too(self) -> Any:
        return self.opt["train"]

    def later(self) -> None:
        self.mine_too["by_property"]
        (lambda: self.opt["by_lambda"])()
        for _key, opt_ in self.opt["val"]["metrics"].items():
            opt_["strange"]
        [block["inner"] for block in self.opt["blocks"].values()]
        if (found := self.opt.get("walrus")) is not None:
            found["w"]

    def loss(self, train_opt: Mapping[str, Any]) -> Any:
        return train_opt["strange_opt"]


class AnyKeyModel(SRModel):  # type: ignore[misc]
    """Takes whatever is in a block."""

    def settings(self, key: str) -> Any:
        return self.opt["train"][key], self.opt[f"network_{key}"]

    def spread(self) -> Any:
        return SRGANModel(**self.opt["mine"])


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for kind in (StrangersModel, AnyKeyModel):
        MODEL_REGISTRY._obj_map[kind.__name__] = kind
    yield
    for kind in (StrangersModel, AnyKeyModel):
        del MODEL_REGISTRY._obj_map[kind.__name__]


STRANGE = {
    "train": [
        *("plain", "asked_for", "from_tuple", "from_tuple_too", "by_key", "by_helper", "popped", "by_property"),
        *("strange_opt", "ema_decay", "pixel_opt", "clip_grad_norm"),
    ],
    "": ["my_block", "network_one", "network_two", "first", "second", "size", "by_lambda", "blocks", "walrus"],
}


def test_a_strangers_model_is_understood(aacl_options: Options) -> None:
    options = stock(aacl_options, "StrangersModel")
    assert found(options) == []
    for block, keys in STRANGE.items():
        for key in keys:
            value = {"type": "MSRResNet"} if key.startswith("network_") else 1
            (options[block] if block else options).setdefault(key, value)
    assert found(options) == []
    options["train"]["plian"] = options["my_blok"] = 1
    options["network_three"] = {"type": "MSRResNet"}
    assert found(options) == ["my_blok", "network_three", "train.plian"]
    assert "my_block" in reads_of(StrangersModel).keys_of(())
    assert reads_of(StrangersModel).keys_of(("size",)) == {"width"}
    assert reads_of(StrangersModel).keys_of(("first",)) == {"a"}
    assert reads_of(StrangersModel).names(("val", "metrics", "psnr", "strange"))


def test_blocks_under_train_are_looked_into_where_they_are_read_key_by_key(aacl_options: Options) -> None:
    class Reader(SRModel):  # type: ignore[misc]
        def step(self) -> Any:
            settings = self.opt["train"]["settings"]
            return settings["a"], settings.get("b"), self.opt["train"]["other"].values()

    MODEL_REGISTRY._obj_map["AnyKeyModel"] = Reader
    options = stock(aacl_options, "AnyKeyModel")
    options["train"] |= {"settings": {"a": 1, "c": 2}, "other": {"x": 1}}
    assert found(options) == ["train.settings.c"]


def test_what_the_code_does_not_tell_is_known(aacl_options: Options) -> None:
    options = stock(aacl_options, "AnyKeyModel")
    options["train"]["anything"] = 1
    options["network_anything"] = {"type": "MSRResNet"}
    options["mine"] = {"x": 1}
    assert found(options) == []
    options["anything"] = 1
    assert found(options) == ["anything"]


def test_code_without_source_is_searched_for_strings(aacl_options: Options) -> None:
    names: dict[str, Any] = {"SRModel": SRModel, "__name__": "nowhere"}
    code = "class Made(SRModel):\n  def step(self):\n    return self.opt['train']['made'], [lambda: self.opt['inner']]"
    exec(compile(code, "<nowhere>", "exec"), names)  # noqa: S102  (a class whose source is nowhere)
    MODEL_REGISTRY._obj_map["AnyKeyModel"] = names["Made"]
    options = stock(aacl_options, "AnyKeyModel")
    options["train"]["made"] = options["inner"] = 1
    assert found(options) == []
    options["train"]["maed"] = 1
    assert found(options) == ["train.maed"]


def test_what_models_read_is_told_apart() -> None:
    for kind in (AACLModel, ReDSRModel, SRGANModel, BaseModel):
        reads = reads_of(kind)
        assert not reads.takes_all(())
        assert not reads.takes_all(("train",))
        assert not [place for place, begin, end in reads.patterns if place in ((), ("train",)) and not begin + end]


class ConfigModel(SRModel):  # type: ignore[misc]
    def __init__(self, config: Options) -> None:
        super().__init__(config)
        self.config = config
        self.config["train"]["mine"]


class ConfigBase(SRModel):  # type: ignore[misc]
    def __init__(self, settings: Options) -> None:
        SRModel.__init__(self, settings)
        settings["train"]["mine"]


class CallsBaseModel(ConfigBase):
    def __init__(self, config: Options) -> None:
        ConfigBase.__init__(self, config)


class StarredModel(SRModel):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = args[0]
        given["train"]["mine"]


class PassesOnModel(ConfigBase):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)


class KeysModel(SRModel):  # type: ignore[misc]
    def step(self) -> bool:
        return "mine" in self.opt["train"].keys()  # noqa: SIM118  (as people write)


class ContainsModel(SRModel):  # type: ignore[misc]
    def step(self) -> Any:
        return self.opt["train"].__contains__("mine")


class GetattrModel(SRModel):  # type: ignore[misc]
    def step(self) -> Any:
        return getattr(self, "opt")["train"]["mine"]  # noqa: B009  (as people write)


class MatchModel(SRModel):  # type: ignore[misc]
    def step(self) -> Any:
        match self.opt["train"]:
            case {"mine": found}:
                return found


class NestedMatchModel(SRModel):  # type: ignore[misc]
    def step(self) -> Any:
        match (self.opt, 1):
            case (dict() as options, 2) | (options, 1):
                match options:
                    case {"train": train, **rest} if rest["of_guard"]:
                        return train["mine"]


ONE_BY_ONE = (
    *(ConfigModel, CallsBaseModel, StarredModel, PassesOnModel),
    *(KeysModel, ContainsModel, GetattrModel, MatchModel, NestedMatchModel),
)


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_ways_to_get_at_options(kind: type, aacl_options: Options) -> None:
    MODEL_REGISTRY._obj_map["AnyKeyModel"] = kind
    options = stock(aacl_options, "AnyKeyModel")
    options["train"] |= {"mine": 1, "mien": 1}
    options["mine"] = 1
    assert found(options) == ["mine", "train.mien"]
    assert reads_of(kind).names(("of_guard",)) == (kind is NestedMatchModel)


def test_a_method_of_a_block_that_is_not_called_at_once_may_read_any_key(aacl_options: Options) -> None:
    class Bound(SRModel):  # type: ignore[misc]
        def step(self) -> Any:
            get = self.opt["train"].get
            return get("mine")

    MODEL_REGISTRY._obj_map["AnyKeyModel"] = Bound
    options = stock(aacl_options, "AnyKeyModel")
    options["train"]["mine"] = options["val"]["mine"] = options["mine"] = 1
    assert set(found(options)) == {"mine", "val.mine"}


class ConfigDataset(PairedImageDataset):  # type: ignore[misc]
    def __init__(self, config: Options) -> None:
        super().__init__(config)
        self.config = config
        self.config["mine"]


class PlainDataset:
    def __init__(self, dataset: Options) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        length: int = self.dataset["mine"]
        return length


class ConventionDataset:
    def __init__(self, dataset_opt: Options) -> None:
        dataset_opt["mine"]


class HelperDataset:
    def __init__(self, *args: Options) -> None:
        (self.block,) = args

    def read(self, dataset_opt: Options) -> Any:
        return dataset_opt["mine"]


@pytest.mark.parametrize("kind", [ConfigDataset, PlainDataset, ConventionDataset, HelperDataset])
def test_a_strangers_dataset_is_given_its_own_block(
    kind: type, aacl_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, kind.__name__, kind)
    aacl_options["datasets"]["train"] = {"type": kind.__name__, "mine": 1, "mien": 1, "on_bad_image": "skip"}
    assert found(aacl_options) == ["datasets.train.mien"]
