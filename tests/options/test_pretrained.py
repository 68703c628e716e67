"""Weights that an option file names: other networks', and files that hold none, are refused before anything runs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.options.networks import check_weights


class Hostile:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled",))


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3))


def check(file: Path, network: nn.Module, **options: object) -> None:
    check_weights("network_g", network, {"pretrain_network_g": str(file), **options})


def test_weights_of_the_network_pass(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    torch.save(
        {"params_ema": state, "other": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "g"
    )
    torch.save({"params": state}, tmp_path / "no_ema")
    torch.save(state, tmp_path / "bare")
    check(tmp_path / "g", network, param_key_g="params_ema")
    check(tmp_path / "g", network, param_key_g="other")
    check(tmp_path / "no_ema", network, param_key_g="params_ema")
    check(tmp_path / "bare", network, param_key_g=None)
    check_weights("network_g", network, {"pretrain_network_g": None})


def test_other_networks_are_refused_unless_loading_is_loose(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    lacking = {name: value for name, value in state.items() if name.startswith("0")}
    cases = {
        "lacks 1.weight, 1.bias, expected": lacking,
        "has the unknown 2.weight, 2.bias, 3.weight and 1 more, expected": {
            **state,
            **{f"{n}.{kind}": torch.zeros(1) for n in (2, 3) for kind in ("weight", "bias")},
        },
        "has other shapes of 1.bias, expected": {**state, "1.bias": torch.zeros(2)},
    }
    for message, weights in cases.items():
        torch.save({"params": weights}, tmp_path / "g.pth")
        with pytest.raises(OptionError, match=rf"path.pretrain_network_g: .*g\.pth: {message}"):
            check(tmp_path / "g.pth", network)
        check(tmp_path / "g.pth", network, strict_load_g=False)


@pytest.mark.parametrize("content", [[1], {"params": [1]}, {"weights": {}}, {"params": {"0.weight": 1}}])
def test_a_file_without_weights_is_refused(network: nn.Module, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "g.pth")
    with pytest.raises(OptionError, match="holds no weights under 'params'"):
        check(tmp_path / "g.pth", network)


def test_a_misspelt_part_is_refused(network: nn.Module, tmp_path: Path) -> None:
    torch.save({"params": network.state_dict()}, tmp_path / "g.pth")
    with pytest.raises(OptionError, match="holds no weights under 'params_em'"):
        check(tmp_path / "g.pth", network, param_key_g="params_em")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", pickle.dumps({"params": Hostile()})])
def test_what_cannot_be_loaded_safely_is_refused(
    network: nn.Module, tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "g.pth").write_bytes(content)
    with pytest.raises(BSRError, match=r"g\.pth: cannot be loaded safely \(.+\), expected a checkpoint") as error:
        check(tmp_path / "g.pth", network)
    assert "\n" not in str(error.value)
    assert "unpickled" not in capfd.readouterr().out
