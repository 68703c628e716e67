"""ReDSRModel with the oracle, model 9 of Table 2: it is told the true blur kernel wherever it looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from basicsr.data import build_dataset
from torch import Tensor

from bsr_plugins.archs import OracleEncoder
from tests.degradations.reference import gaussian_kernel
from tests.models.stepping import prepare_and_tell

if TYPE_CHECKING:
    from tests.conftest import Options, Outcome

Make = Callable[..., Any]
Step = Callable[[Any, Tensor, int], None]
ITERATION = 3


@pytest.fixture
def oracle_opt(redsr_options: Options, as_read: Callable[[Options], Options]) -> Options:
    """The options of a tiny run of model 9."""
    opt = as_read(redsr_options)
    opt["network_g"]["encoder"] = {"type": "OracleEncoder", "num_feat": 8, "representation_dim": 6}
    return opt


def closed_form(sigma: float) -> Tensor:
    return torch.from_numpy(gaussian_kernel(sigma, sigma, 0.0)).float()


@pytest.mark.parametrize("blur", ["iso", "aniso"])
def test_the_oracle_is_told_the_true_kernels_in_training(
    oracle_opt: Options, make_model: Make, pairs: Tensor, blur: str
) -> None:
    oracle_opt["degradation"] = {"type": "ClassicalDegradation", f"blur_{blur}": {"sigma": [0.2, 4.0]}}
    model = make_model(oracle_opt)
    _, params = prepare_and_tell(model, pairs, ITERATION)
    seen: list[Tensor] = []
    model.net_g.encoder.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model.compute_losses()
    assert seen[0].shape == (4, 21, 21)
    for index, kernel in enumerate(seen[0]):
        lambda1, lambda2, theta = (float(params[name][index]) for name in ("lambda1", "lambda2", "theta"))
        expected = torch.from_numpy(gaussian_kernel(lambda1, lambda2, theta)).float()
        torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-6)
    assert len({float(kernel.max()) for kernel in seen[0]}) == 4


def test_the_oracle_is_told_the_true_kernels_in_validation(
    oracle_opt: Options, make_model: Make, pairs: Tensor, step: Step
) -> None:
    oracle_opt["datasets"]["val"]["settings"] = ["sig1.8", "sig2.6"]
    dataset = build_dataset(oracle_opt["datasets"]["val"])
    model = make_model(oracle_opt)
    step(model, pairs, 1)  # a training batch and its kernels came before
    for index, sigma in enumerate((1.8, 2.6)):
        item = dataset[index]
        model.feed_data({key: item[key][None] for key in ("lq", "gt", "kernel")})
        model.test()
        assert not model.net_g_ema.training
        with torch.no_grad():
            expected = model.net_g_ema(item["lq"][None], kernel=closed_form(sigma)[None])
            wrong = model.net_g_ema(item["lq"][None], kernel=closed_form(4.0)[None])
            not_averaged = model.net_g(item["lq"][None], kernel=closed_form(sigma)[None])
        assert torch.allclose(model.output, expected, rtol=0, atol=1e-6)
        assert not torch.allclose(model.output, wrong, rtol=0, atol=1e-5)
        assert not torch.allclose(model.output, not_averaged, rtol=0, atol=1e-5)


def test_an_oracle_is_validated_and_tested_through_the_pipelines(
    redsr_options: Options, in_process: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = redsr_options
    options["network_g"]["encoder"] = {"type": "OracleEncoder", "num_feat": 8, "representation_dim": 6}
    seen: list[Tensor] = []
    forward = OracleEncoder.forward

    def remember(self: OracleEncoder, kernel: Tensor) -> Tensor:
        seen.append(kernel.detach().clone())
        return forward(self, kernel)

    monkeypatch.setattr(OracleEncoder, "forward", remember)
    options["train"]["total_iter"] = 1
    trained = in_process("train", options)
    assert trained.status == 0, trained.output
    assert "# psnr: " in trained.output
    # Networks run for trial before a run.
    (batch, *validated), expected = seen[-9:], closed_form(1.8)[None]
    assert batch.shape == (4, 21, 21)
    for kernel in validated:
        torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-6)

    seen.clear()
    testing = {key: options[key] for key in ("scale", "num_gpu", "manual_seed", "network_g", "val", "model_type")}
    testing |= {"name": "tested", "datasets": {"test": options["datasets"]["val"]}}
    testing["path"] = {"pretrain_network_g": "experiments/tiny/models/net_g_latest.pth", "strict_load_g": True}
    tested = in_process("test", testing)
    assert tested.status == 0, tested.output
    assert len(seen) >= 8
    for kernel in seen[-8:]:
        torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-6)
