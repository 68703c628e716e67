"""Keys that nothing reads are faults; what models and datasets read is learned from their code."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from bsr_plugins.engine.faults import Faults
from bsr_plugins.engine.known_keys import check_keys
from bsr_plugins.engine.named_blocks import check_named_blocks, model_class
from bsr_plugins.engine.option_reads import reads_of, unread_keywords
from bsr_plugins.models import AACLModel, BlindSRModel, DASRModel, ReDSRModel, SimpleAlignModel

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


def found(options: Options, switched_off: set[tuple[str, ...]] | None = None) -> list[str]:
    """Return the places of unknown keys."""
    faults = Faults("x")
    model = model_class(options)
    check_keys(options, model, switched_off or set(), faults)
    check_named_blocks(options, model, faults)
    assert all(": unknown key, " in line for line in faults.lines), faults.lines
    return [line.split(": ")[1] for line in faults.lines]


STRANGE = {
    "train": [
        *("plain", "asked_for", "from_tuple", "from_tuple_too", "by_key", "by_helper", "popped", "by_property"),
        *("strange_opt", "ema_decay", "pixel_opt", "clip_grad_norm"),
    ],
    "": ["my_block", "network_one", "network_two", "first", "second", "size", "by_lambda", "blocks", "walrus"],
}


def stock(options: Options, model: str) -> Options:
    """Leave what BasicSR's SRModel reads."""
    options = copy.deepcopy(options)
    for key in ("degradation", "network_moco"):
        options.pop(key, None)
    options["train"] = {
        key: options["train"][key] for key in ("ema_decay", "total_iter", "optim_g", "scheduler", "pixel_opt")
    }
    return options | {"model_type": model}


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


OURS = {kind.__name__: kind for kind in (AACLModel, BlindSRModel, DASRModel, ReDSRModel, SimpleAlignModel)}
ONLY = {
    ("network_moco",): {"AACLModel", "DASRModel"},
    ("network_degrader",): {"ReDSRModel"},
    ("network_d",): {"SRGANModel"},
    ("degradation",): set(OURS),
    ("train", "align_opt"): set(OURS),
    ("train", "dropout"): set(OURS),
    ("train", "tap_layer"): set(OURS),
    ("train", "representation_opt"): set(OURS),
    ("train", "contrastive_opt"): {"AACLModel", "DASRModel"},
    ("train", "encoder_phase"): {"AACLModel", "DASRModel"},
    ("train", "sigma_alignment"): {"AACLModel"},
    ("train", "redegradation_opt"): {"ReDSRModel"},
    ("train", "optim_d"): {"SRGANModel"},
    ("train", "gan_opt"): {"SRGANModel"},
    ("train", "net_d_iters"): {"SRGANModel"},
    ("train", "pixel_opt"): {*OURS, "SRModel", "SRGANModel"},
    ("train", "ema_decay"): {*OURS, "SRModel", "SRGANModel"},
    ("train", "ema_deacy"): set(),
    ("train", "lr"): set(),
    ("path", "pretrain_network_moco"): {"AACLModel", "DASRModel"},
    ("path", "param_key_degrader"): {"ReDSRModel"},
    ("path", "pretrain_netwrk_g"): set(),
    ("val", "pbar"): {*OURS, "SRModel", "SRGANModel"},
    ("val", "freq"): set(),
    ("logger", "print_frq"): set(),
    ("logger", "save_last_n"): {*OURS, "SRModel", "SRGANModel"},
    ("seed",): set(),
    ("network_h",): set(),
}


@pytest.mark.parametrize("model", [*OURS, "SRModel", "SRGANModel"])
def test_every_model_reads_its_own_keys(aacl_options: Options, model: str) -> None:
    for place, readers in ONLY.items():
        options = stock(aacl_options, model)
        block = options
        for key in place[:-1]:
            block = block[key]
        block.setdefault(place[-1], None)
        assert (found(options) == []) == (model in readers), place


def test_what_models_read_is_told_apart() -> None:
    for kind in (AACLModel, ReDSRModel, SRGANModel, BaseModel):
        reads = reads_of(kind)
        assert not reads.takes_all(())
        assert not reads.takes_all(("train",))
        assert not [place for place, begin, end in reads.patterns if place in ((), ("train",)) and not begin + end]


def test_an_inherited_key_may_be_taken_back(aacl_options: Options) -> None:
    options = stock(aacl_options, "SRModel") | {"network_moco": None}
    assert found(options) == ["network_moco"]
    assert found(options, {("network_moco",)}) == []


def test_keys_of_datasets(aacl_options: Options) -> None:
    options = copy.deepcopy(aacl_options)
    options["datasets"]["train"]["gt_sise"] = 1
    options["datasets"]["val"] |= {"type": "PairedImageDataset", "dataroot_lq": "x", "color": "y", "filename_tmp": 1}
    assert set(found(options)) == {
        *("datasets.train.gt_sise", "datasets.val.protocol", "datasets.val.settings"),
        *("datasets.val.seed", "datasets.val.filename_tmp"),
    }
    assert reads_of(PairedImageDataset, is_dataset=True).keys_of(()) >= {
        "dataroot_gt",
        "gt_size",
        "use_hflip",
        "scale",
        "mean",
    }
    assert "PairedImageDataset" in DATASET_REGISTRY


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


@pytest.mark.parametrize("kind", ["PairedImageDataset", "PairedDegradationDataset"])
def test_bad_images_are_skipped_in_training_alone(kind: str, aacl_options: Options) -> None:
    for phase in ("train", "val"):
        aacl_options["datasets"][phase] = {"type": kind, "dataroot_gt": "x", "on_bad_image": "skip"}
    assert found(aacl_options) == ["datasets.val.on_bad_image"]


def test_keys_of_basicsrs_own_option_files(aacl_options: Options) -> None:
    aacl_options["datasets"]["train"] = {"type": "Vimeo90KDataset", "interval_list": [1], "dataroot_flow": None}
    assert found(aacl_options) == []
    aacl_options["datasets"]["train"] = {"type": "PairedDegradationDataset", "interval_list": [1]}
    assert found(aacl_options) == ["datasets.train.interval_list"]


def test_keys_that_the_trainer_sets(aacl_options: Options) -> None:
    faults = Faults("x")
    options = aacl_options | {"rank": 3}
    options["datasets"]["train"] |= {"phase": "val", "scale": 2}
    options["datasets"]["val"] |= {"phase": "val", "scale": 4}
    check_keys(options, AACLModel, set(), faults)
    assert faults.lines == (
        "x: rank: 3, expected no such key, as the trainer sets it",
        "x: datasets.train.phase: 'val', expected 'train', which the trainer puts there",
        "x: datasets.train.scale: 2, expected 4, which the trainer puts there",
    )


def test_keywords_that_are_swallowed(aacl_options: Options) -> None:
    """BasicSR's metrics take `**kwargs` for `better` alone, so that a misspelt key changes what is measured."""

    def passes_on(crop_border: int, **kwargs: Any) -> Any:
        return dict(crop_border=crop_border, **kwargs)

    assert unread_keywords(METRIC_REGISTRY.get("calculate_psnr"))
    assert not unread_keywords(passes_on)
    aacl_options["val"]["metrics"]["psnr"]["test_y_chanel"] = True
    assert found(aacl_options) == ["val.metrics.psnr.test_y_chanel"]


def test_all_wrong_keys_of_a_block_are_found(aacl_options: Options) -> None:
    aacl_options["network_g"] |= {"num_fet": 1, "bakbone": 2}
    aacl_options["train"]["optim_g"]["beta"] = 1
    aacl_options["degradation"]["nois"] = 1
    assert set(found(aacl_options)) == {
        *("network_g.num_fet", "network_g.bakbone", "train.optim_g.beta", "degradation.nois"),
    }
