"""What must not change a model's answer: form of attention, cache, packing, batch order, replay."""

import pytest
import torch
from tiny_model import build, ids_of
from torch import Tensor

from fivefold.models.cache import LatentCache
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer

NANO = preset("nano")
SHARED = preset("nano", indexer_types=("full", "shared", "shared", "full"))
K = NANO.index_topk
EXACT = 1e-10
"""fp64 rounding through four layers; the fp32 rotary angles are the same on both sides."""


def run(model: Transformer, ids: Tensor, **options: object) -> Tensor:
    with torch.no_grad():
        return model(ids, **options).hidden_BTD


@pytest.mark.parametrize("tokens", [1, 2, K - 1, K, K + 1, 80])
def test_absorbed_attention_equals_expanded(tokens: int) -> None:
    model = build(NANO).double()
    ids = ids_of(NANO, 2, tokens)
    gap = run(model, ids, absorbed=True) - run(model, ids, absorbed=False)
    assert gap.abs().max() < EXACT


@pytest.mark.parametrize("config", [NANO, SHARED], ids=["full", "shared"])
@pytest.mark.parametrize("prefill", [1, K - 2, K, K + 5])
def test_cached_decode_equals_full_forward_around_index_topk(config, prefill: int) -> None:
    model = build(config).double()
    ids = ids_of(config, 2, K + 12)
    whole = run(model, ids)
    cache = LatentCache(config, rows=2, capacity_tokens=K + 12, dtype=torch.float64)
    parts = [run(model, ids[:, :prefill], cache=cache)]
    parts += [run(model, ids[:, t : t + 1], cache=cache) for t in range(prefill, K + 12)]
    assert (torch.cat(parts, 1) - whole).abs().max() < EXACT


def test_chunked_prefill_and_rollback_equal_full_forward() -> None:
    model = build(NANO).double()
    ids = ids_of(NANO, 2, 70)
    whole = run(model, ids)
    cache = LatentCache(NANO, rows=2, capacity_tokens=90, dtype=torch.float64)
    run(model, ids[:, :40], cache=cache)
    run(model, ids_of(NANO, 2, 20, seed=5), cache=cache)
    cache.truncate(40)
    rest = run(model, ids[:, 40:], cache=cache)
    assert (rest - whole[:, 40:]).abs().max() < EXACT


@pytest.mark.parametrize("lengths", [(5, 20, 3), (40, 40), (1, 1, 60)])
def test_packed_documents_equal_separate_ones(lengths: tuple[int, ...]) -> None:
    model = build(NANO).double()
    ids = ids_of(NANO, 1, sum(lengths))
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = run(model, ids, documents_BT=documents, positions_BT=positions)
    alone = torch.cat([run(model, part) for part in ids.split(lengths, dim=1)], dim=1)
    assert (packed - alone).abs().max() < EXACT
    mixed = run(model, ids)
    assert (mixed - alone).abs().max() > 1e-3


def test_batch_order_changes_nothing() -> None:
    model = build(NANO).double()
    ids = ids_of(NANO, 4, 50)
    order = torch.tensor([2, 0, 3, 1])
    assert (run(model, ids[order]) - run(model, ids)[order]).abs().max() < EXACT


def test_later_tokens_change_nothing_before_them() -> None:
    model = build(NANO).double()
    ids = ids_of(NANO, 1, 60)
    other = ids.clone()
    other[:, 45:] = ids_of(NANO, 1, 15, seed=9)
    gap = (run(model, ids) - run(model, other)).abs().amax(-1)[0]
    assert gap[:45].max() < EXACT
    assert gap[45:].min() > 1e-3


def test_forced_routing_reproduces_free_routing_bit_for_bit() -> None:
    model = build(NANO)
    ids = ids_of(NANO, 2, 30)
    with torch.no_grad():
        free = model(ids)
        replay = [routing.chosen_TA for routing in free.routing]
        forced = model(ids, forced_routing=replay)
        shifted = model(ids, forced_routing=[(chosen + 1) % 16 for chosen in replay])
    assert len(replay) == 3
    assert torch.equal(free.hidden_BTD, forced.hidden_BTD)
    assert not torch.equal(free.hidden_BTD, shifted.hidden_BTD)


def test_language_model_gradient_never_reaches_the_indexer() -> None:
    model = build(NANO)
    model(ids_of(NANO, 1, 60)).hidden_BTD.square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any(".indexer." in name for name in reached)
    assert "layers.0.self_attn.q_b_proj.weight" in reached


def test_cache_refuses_more_than_the_context() -> None:
    with pytest.raises(ValueError, match="1024 tokens of context"):
        LatentCache(NANO, rows=1, capacity_tokens=1025)
