"""The fused runner against the model, over paged and shuffled blocks, chunks and decoded rows."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_engine import tiny_config, tiny_model
from tiny_model import build, ids_of

from fivefold.models.transformer import Transformer
from fivefold.serve.batch import Part, map_keys
from fivefold.serve.config import EngineConfig
from fivefold.serve.pool import CachePool
from fivefold.serve.request import Request, SamplingParams
from fivefold.serve.runner import FusedRunner

BLOCK = 8
SHAPES = [
    {},
    {"index_n_heads": None},
    {"index_n_heads": None, "q_lora_rank": None},
    {"rope_interleave": False, "indexer_rope_interleave": False},
    {"indexer_rope_interleave": False},
    {"indexer_types": ("full", "shared")},
    {"n_shared_experts": 0},
    {"attention_bias": True},
    {"kv_lora_rank": 24, "qk_nope_head_dim": 20, "v_head_dim": 28},
]
STEPS = [
    [(0, 20), (0, 50)],
    [(20, 21), (50, 70)],
    [(21, 60), (70, 71)],
    [(60, 61), (71, 72)],
    [(61, 64), (72, 75)],
    [(64, 75)],
]


def hidden_in_steps(model: Transformer, ids: torch.Tensor, runner: FusedRunner) -> torch.Tensor:
    """Run two sequences of equal length by the steps above, in scattered blocks."""
    order = np.random.default_rng(0).permutation(np.arange(1, 21))
    table = np.zeros((2, 10), dtype=np.int64)
    table[0], table[1] = order[:10], order[10:]
    request = Request("", (), SamplingParams())
    hidden = torch.zeros(*ids.shape, model.config.hidden_size, dtype=model.lm_head.weight.dtype)
    for spans in STEPS:
        parts: list[Part] = []
        for row, (begin, end) in enumerate(spans):
            at = parts[-1].at + parts[-1].size if parts else 0
            parts.append(Part(request, begin, end, at, row))
        keys = map_keys(parts, table, BLOCK, runner.most_decoded)
        flat = torch.cat([ids[part.row, part.begin : part.end] for part in parts])
        found = runner.forward(flat, keys).hidden_TD
        for part in parts:
            hidden[part.row, part.begin : part.end] = found[part.at : part.at + part.size]
    return hidden


def runner_of(model: Transformer, *, draft_tokens: int = 0) -> FusedRunner:
    dtype, device = model.lm_head.weight.dtype, torch.device("cpu")
    sizes = EngineConfig(block_tokens=BLOCK, pool_tokens=20 * BLOCK, draft_tokens=draft_tokens)
    pool = CachePool(model.config, sizes, dtype, device)
    return FusedRunner(model, pool)


@pytest.mark.parametrize("fields", SHAPES, ids=str)
def test_paged_steps_equal_one_forward(fields: dict[str, Any]) -> None:
    config = tiny_config(**fields)
    model = build(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.1, generator=torch.Generator().manual_seed(2))
    ids = ids_of(config, 2, 75)
    with torch.inference_mode():
        expected = model(ids).hidden_BTD
    found = hidden_in_steps(model, ids, runner_of(model))
    seen = [(0, slice(0, 75)), (1, slice(0, 75))]
    for row, places in seen:
        # Two orders of summation in fp32, three orders of magnitude above its resolution.
        torch.testing.assert_close(found[row, places], expected[row, places], rtol=0, atol=1e-4)


def test_refresh_takes_over_new_weights() -> None:
    model = build(tiny_config())
    ids = ids_of(model.config, 2, 75)
    runner = runner_of(model)
    before = hidden_in_steps(model, ids, runner)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    runner.refresh()
    with torch.inference_mode():
        expected = model(ids).hidden_BTD
    found = hidden_in_steps(model, ids, runner)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found - before).abs().max() > 0.01


def test_bf16_stays_near_fp32() -> None:
    """Selections and routings flip at close calls, so that only most positions can agree."""
    model = build(tiny_config(index_topk=128, num_experts_per_tok=16))
    ids = ids_of(model.config, 2, 75)
    with torch.inference_mode():
        expected = model(ids).hidden_BTD
    model = model.bfloat16()
    found = hidden_in_steps(model, ids, runner_of(model)).float()
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_routing_is_the_routers_own() -> None:
    model = tiny_model()
    ids = ids_of(model.config, 1, 12)
    with torch.inference_mode():
        expected = [routed.chosen_TA for routed in model(ids).routing]
    table = np.arange(1, 11)[None]
    part = Part(Request("", (), SamplingParams()), 0, 12, 0, 0)
    keys = map_keys([part], table, BLOCK, 4)
    found = runner_of(model).forward(ids[0], keys).routing
    assert [chosen.tolist() for chosen in found] == [chosen.tolist() for chosen in expected]
