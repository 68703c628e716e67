"""MoCo: what it gives, the key side, the queue, the accuracy, what is saved."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from basicsr.archs import build_network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bsr_plugins.archs import ContrastiveEncoder, MoCo
from bsr_plugins.blocks import placed
from bsr_plugins.errors import BSRError, OptionError
from bsr_plugins.losses import InfoNCELoss

DIM = 8
ENCODER = {"type": "ContrastiveEncoder", "num_feat": 2}


def seeded(factory: Any, seed: int = 0, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return factory(**options)


def small_moco(**options: Any) -> MoCo:
    moco: MoCo = seeded(MoCo, **{"encoder": ENCODER, "dim": DIM, "queue_size": 7, **options})
    return moco


def small_encoder(seed: int = 1) -> ContrastiveEncoder:
    encoder: ContrastiveEncoder = seeded(ContrastiveEncoder, seed, num_feat=2)
    return encoder


def random_units(*shape: int, seed: int = 0) -> Tensor:
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def filled_moco(keys: Tensor, queue_size: int) -> MoCo:
    moco = small_moco(queue_size=queue_size)
    if len(keys):
        moco.enqueue(keys)
    return moco


def test_defaults_are_dasrs() -> None:
    moco = MoCo()
    assert moco.queue.shape == (256, 8192)
    assert moco.momentum == 0.999
    assert isinstance(moco.key_encoder, ContrastiveEncoder)
    head = {name: tuple(value.shape) for name, value in moco.projection_q.state_dict().items()}
    square = {"weight": (256, 256), "bias": (256,)}
    assert head == {f"{layer}.{name}": shape for layer in (0, 2) for name, shape in square.items()}


def test_stock_basicsr_builds_it_and_the_block_stays() -> None:
    block = {"type": "MoCo", "encoder": dict(ENCODER), "dim": DIM, "queue_size": 5}
    assert isinstance(build_network(block), MoCo)
    assert block["encoder"] == ENCODER


@pytest.mark.parametrize("views", [(), (1,), (3,)])
def test_forward_gives_unit_queries_and_unit_keys(views: tuple[int, ...]) -> None:
    moco, encoder = small_moco(), small_encoder()
    query, keys = moco(encoder(torch.rand(4, 3, 12, 12)), torch.rand(4, *views, 3, 12, 12))
    assert query.shape == (4, DIM)
    assert keys.shape == (4, *views, DIM)
    assert torch.allclose(query.norm(dim=-1), torch.ones(4))
    assert torch.allclose(keys.norm(dim=-1), torch.ones(4, *views))
    assert query.requires_grad
    assert not keys.requires_grad


def test_several_keys_stay_with_their_queries() -> None:
    moco, key_lq = small_moco().eval(), torch.rand(4, 3, 3, 9, 9)
    _, keys = moco(torch.rand(4, DIM), key_lq)
    for view in range(3):
        _, alone = moco(torch.rand(4, DIM), key_lq[:, view])
        assert torch.allclose(keys[:, view], alone, atol=1e-6)


def test_gradient_goes_to_encoder_and_query_head_alone() -> None:
    moco, encoder = small_moco(), small_encoder()
    query, keys = moco(encoder(torch.rand(4, 3, 12, 12)), torch.rand(4, 3, 12, 12))
    InfoNCELoss()(query, keys, moco.queue).backward()
    for name, parameter in [*encoder.named_parameters(), *moco.projection_q.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moco.projection_q.parameters())
    trained = {name for name, p in moco.named_parameters() if p.requires_grad}
    assert trained == {f"projection_q.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert all(p.grad is None for p in moco.key_encoder.parameters())


def test_forward_under_autocast_gives_unit_vectors_in_float32() -> None:
    moco, encoder = small_moco(), small_encoder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        query, keys = moco(encoder(torch.rand(2, 3, 12, 12)), torch.rand(2, 3, 12, 12))
    assert query.dtype == keys.dtype == torch.float32
    assert torch.allclose(query.norm(dim=-1), torch.ones(2), atol=1e-6)
    assert torch.allclose(keys.norm(dim=-1), torch.ones(2), atol=1e-6)


def test_start_from_copies_parameters_and_buffers() -> None:
    moco, encoder = small_moco(), small_encoder()
    encoder(torch.rand(4, 3, 12, 12))  # moves the running statistics
    torch.nn.init.ones_(moco.get_parameter("projection_q.0.weight"))
    moco.start_from(encoder)
    for name, value in encoder.state_dict().items():
        assert torch.equal(moco.key_encoder.state_dict()[name], value), name
    for name, value in moco.projection_q.state_dict().items():
        assert torch.equal(moco.projection_k.state_dict()[name], value), name
    with torch.no_grad():
        encoder.get_parameter("features.0.weight").add_(1)
    key_weight = moco.key_encoder.get_parameter("features.0.weight")
    assert not torch.equal(key_weight, encoder.get_parameter("features.0.weight"))


@pytest.mark.parametrize("momentum", [0, 0.25, 0.999, 1])
def test_momentum_update_is_the_weighted_mean_of_the_parameters(momentum: float) -> None:
    moco, encoder = small_moco(momentum=momentum).double(), small_encoder().double()
    torch.nn.init.constant_(moco.get_parameter("projection_q.2.bias"), 3.0)
    encoder(torch.rand(4, 3, 12, 12).double())
    before = {name: value.clone() for name, value in moco.state_dict().items()}
    moco.update_key_encoder(encoder)
    after = moco.state_dict()
    for key_side, net in (("key_encoder", encoder), ("projection_k", moco.projection_q)):
        for name, trained in net.named_parameters():
            expected = momentum * before[f"{key_side}.{name}"] + (1 - momentum) * trained
            assert torch.allclose(after[f"{key_side}.{name}"], expected, rtol=1e-12, atol=1e-14), name
    for name in after:
        if "running" in name or "tracked" in name or "queue" in name or "projection_q" in name:
            assert torch.equal(after[name], before[name]), name


def test_key_statistics_come_from_key_passes_in_training_mode() -> None:
    moco = small_moco()
    running = moco.key_encoder.get_buffer("features.1.running_mean")
    moco.eval()(torch.rand(2, DIM), torch.rand(2, 3, 9, 9))
    assert torch.equal(running, torch.zeros(2))
    moco.train()(torch.rand(2, DIM), torch.rand(2, 3, 9, 9))
    assert running.abs().sum() > 0


@pytest.mark.parametrize("method", ["start_from", "update_key_encoder"])
def test_another_encoder_than_the_key_encoder_is_refused(method: str) -> None:
    other = ContrastiveEncoder(num_feat=3)
    with pytest.raises(BSRError, match=r"^encoder: .*expected the same"):
        getattr(small_moco(), method)(other)


def test_the_queue_starts_with_the_same_unit_vectors_and_leaves_the_global_generator_alone() -> None:
    first, second = seeded(MoCo, 1, queue_size=50), seeded(MoCo, 2, queue_size=50)
    assert torch.equal(first.queue, second.queue)
    assert torch.allclose(first.queue.norm(dim=0), torch.ones(50))
    assert first.queue.std(dim=1).min() > 0
    assert (int(first.queue_ptr), int(first.queue_filled)) == (0, 0)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        MoCo(encoder=ENCODER, dim=DIM, queue_size=50)
        small = torch.rand(1)
        torch.manual_seed(5)
        MoCo(encoder=ENCODER, dim=DIM, queue_size=500)
        assert torch.equal(small, torch.rand(1))


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 9), batches=st.lists(st.integers(1, 9), max_size=6))
def test_the_queue_holds_the_newest_keys(size: int, batches: list[int]) -> None:
    moco = small_moco(queue_size=size)
    newest: deque[Tensor] = deque(maxlen=size)
    for step, count in enumerate(min(batch, size) for batch in batches):
        keys = random_units(count, DIM, seed=step)
        moco.enqueue(keys)
        newest.extend(keys)
    pointer, filled = int(moco.queue_ptr), int(moco.queue_filled)
    assert filled == len(newest)
    columns = [(pointer - len(newest) + place) % size for place in range(len(newest))]  # oldest first
    for column, key in zip(columns, newest, strict=True):
        assert torch.equal(moco.queue[:, column], key)
    untouched = [column for column in range(size) if column not in columns]
    assert torch.equal(moco.queue[:, untouched], small_moco(queue_size=size).queue[:, untouched])


def test_several_keys_of_a_query_go_in_next_to_each_other() -> None:
    keys = random_units(2, 3, DIM)
    moco = filled_moco(keys, queue_size=10)
    assert torch.equal(moco.queue[:, :6].T, keys.reshape(6, DIM))
    assert int(moco.queue_filled) == 6


def test_more_keys_than_places_are_refused_and_nothing_is_written() -> None:
    moco = small_moco()
    before = {name: value.clone() for name, value in moco.state_dict().items()}
    with pytest.raises(BSRError, match=r"^queue_size: 7, expected at least 8"):
        moco.enqueue(random_units(8, DIM))
    expected = r"^network_moco\.queue_size: 7, expected at least 8, the keys of one step$"
    with pytest.raises(OptionError, match=expected), placed("network_moco"):
        moco.enqueue(random_units(8, DIM))
    assert all(torch.equal(value, before[name]) for name, value in moco.state_dict().items())


def test_keys_that_fill_the_queue_exactly() -> None:
    moco = filled_moco(random_units(7, DIM), queue_size=7)
    assert (int(moco.queue_ptr), int(moco.queue_filled)) == (0, 7)


def test_backward_works_when_the_queue_moves_on_afterwards() -> None:
    moco, encoder = small_moco(), small_encoder()
    optimizer = torch.optim.SGD([*encoder.parameters(), *moco.projection_q.parameters()], 0.1)
    moco.start_from(encoder)
    for _ in range(3):
        query, keys = moco(encoder(torch.rand(4, 3, 12, 12)), torch.rand(4, 3, 12, 12))
        loss = InfoNCELoss()(query, keys, moco.queue)
        moco.queue_accuracy(query, keys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moco.update_key_encoder(encoder)
        moco.enqueue(keys)
    assert int(moco.queue_filled) == 7
    assert int(moco.queue_ptr) == 12 % 7


def plain_accuracy(query: Tensor, keys: Tensor, real: Tensor) -> float:
    hits = []
    for q, positives in zip(query.double(), keys.double(), strict=True):
        for positive in positives:
            hits.append(all(float(q @ positive) > float(q @ entry) for entry in real.double()))
    return sum(hits) / len(hits)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 1000))
def test_accuracy_agrees_with_counting(batch: int, positives: int, filled: int, seed: int) -> None:
    real = random_units(filled, DIM, seed=seed)
    query = random_units(batch, DIM, seed=seed + 1)
    keys = random_units(batch, positives, DIM, seed=seed + 2)
    accuracy = filled_moco(real, queue_size=7).queue_accuracy(query, keys)
    assert accuracy.shape == ()
    assert float(accuracy) == pytest.approx(plain_accuracy(query, keys, real))


def test_accuracy_ends() -> None:
    query = random_units(5, DIM)
    assert float(filled_moco(-query, 7).queue_accuracy(query, query)) == 1
    assert float(filled_moco(query, 7).queue_accuracy(query, -query)) == 0
    assert float(filled_moco(query, 7).queue_accuracy(query, query)) == 0  # a tie is no win
    assert float(small_moco().queue_accuracy(query, query)) == 0  # no keys yet


def test_accuracy_does_not_count_the_random_start() -> None:
    moco = small_moco(queue_size=7)
    query = moco.queue[:, 5:6].T.clone()  # the random vector in place 5 equals the query
    moco.enqueue(-query)
    assert float(moco.queue_accuracy(query, query)) == 1
    assert float(moco.queue_accuracy(query, 0.5 * query)) == 1


def test_accuracy_of_unrelated_vectors_is_chance() -> None:
    moco = filled_moco(random_units(4, DIM, seed=1), queue_size=4)
    hits = [
        float(moco.queue_accuracy(random_units(500, DIM, seed=seed), random_units(500, DIM, seed=seed + 99)))
        for seed in range(4)
    ]
    assert sum(hits) / len(hits) == pytest.approx(1 / 5, abs=0.06)


def test_accuracy_is_the_same_under_autocast() -> None:
    query = random_units(1, DIM)
    moco = filled_moco(0.9999 * query, 7)  # nearer than bfloat16 can tell
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(moco.queue_accuracy(query, query)) == 1


def test_everything_is_in_the_state_dict() -> None:
    moco, encoder = small_moco(), small_encoder()
    moco.start_from(encoder)
    moco(torch.rand(2, DIM), torch.rand(2, 3, 9, 9))
    moco.enqueue(random_units(5, DIM))
    other = seeded(MoCo, 9, encoder=ENCODER, dim=DIM, queue_size=7)
    other.load_state_dict(moco.state_dict(), strict=True)
    for net in (moco, other):
        net.enqueue(random_units(4, DIM, seed=8))
        net.update_key_encoder(encoder)
    ours, theirs = moco.state_dict(), other.state_dict()
    assert {name.split(".")[0] for name in ours} == {
        *("projection_q", "projection_k", "key_encoder"),
        *("queue", "queue_ptr", "queue_filled"),
    }
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"dim": 0}, r"^dim: 0, expected"),
    ({"dim": 9}, r"^dim: 9, expected 8"),
    ({"queue_size": 0}, r"^queue_size: 0, expected"),
    ({"queue_size": 10**9}, r"^queue_size: 1000000000, expected a whole number in \[1, 16777216\]$"),
    ({"queue_size": 2.5}, r"^queue_size: 2\.5, expected"),
    ({"momentum": 1.1}, r"^momentum: 1\.1, expected"),
    ({"momentum": -0.1}, r"^momentum: -0\.1, expected"),
    ({"momentum": "0.9"}, r"^momentum: '0\.9', expected"),
    ({"encoder": {"type": "ContrastivEncoder"}}, r"^encoder\.type: .*did you mean 'ContrastiveEnc"),
    ({"encoder": {**ENCODER, "num_fea": 3}}, r"^encoder\.num_fea: .*did you mean 'num_feat'"),
    ({"encoder": {"num_feat": 2}}, r"^encoder: the key 'type' is missing"),
    ({"encoder": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3}}, r"^encoder\.type: 'EDSR' is no"),
    ({"encoder": "ContrastiveEncoder"}, r"^encoder: expected a block"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_named_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        small_moco(**options)
    assert "\n" not in str(error.value)


def test_an_encoder_for_another_range_is_refused() -> None:
    moco = small_moco(encoder={**ENCODER, "img_range": 255.0})
    fitting: ContrastiveEncoder = seeded(ContrastiveEncoder, num_feat=2, img_range=255.0)
    moco.update_key_encoder(fitting)
    expected = r"^encoder\.img_range: 255\.0, expected 1\.0, as in the encoder that is trained$"
    for use in (moco.start_from, moco.update_key_encoder):
        with pytest.raises(BSRError, match=expected):
            use(small_encoder())
    lq = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    moco.start_from(fitting)
    assert torch.equal(moco.key_encoder.eval()(lq), fitting.eval()(lq))
