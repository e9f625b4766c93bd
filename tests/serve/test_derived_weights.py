"""Weights that the engine derives: laid out for oneDNN, and made again after every update."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from test_runner import BLOCK, runner_of
from tiny_engine import (
    GREEDY,
    assert_idle,
    expected_logprobs,
    found_logprobs,
    naive_greedy,
    prompt_of,
    tiny_config,
    tiny_engine,
    tiny_model,
)
from tiny_model import build

from fivefold.models.transformer import Transformer
from fivefold.ops import product as product_module
from fivefold.ops.product import Packed
from fivefold.serve.batch import Part, map_keys
from fivefold.serve.engine import Engine
from fivefold.serve.request import Request, SamplingParams
from fivefold.serve.runner import FusedRunner

WIDE = {
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "kv_lora_rank": 128,
    "q_lora_rank": 256,
    "intermediate_size": 1024,
    "vocab_size": 1031,
}
"""Every weight but the first of a layer has the 2^18 numbers from which one row is worth oneDNN."""
LENGTHS = [1, 3, 40, 70]
"""Prompts for a row alone, a few rows, all experts at once, and experts sorted by token."""


def parts_of(held: object) -> Iterator[Packed]:
    """Yield all packed weights of a runner."""
    if isinstance(held, Packed):
        yield held
    elif isinstance(held, list | tuple):
        for each in held:
            yield from parts_of(each)
    elif type(held).__module__.startswith("fivefold.serve"):
        yield from parts_of(list(vars(held).values()))


@torch.no_grad()
def change(model: Transformer) -> None:
    """Change every parameter in place."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logprobs_of(engine: Engine, seed: int) -> list[torch.Tensor]:
    """Return the scores of prompts of every length, and of what is decoded after them."""
    params = SamplingParams(temperature=0, max_new_tokens=2, prompt_logprobs_begin=0)
    requests = []
    for tokens in LENGTHS:
        requests.append(engine.add(prompt_of(tokens, seed), params))
        engine.run_until_idle()
    return [
        torch.tensor([*request.prompt_scores()[1:], *found_logprobs(request).tolist()])
        for request in requests
    ]


def difference(model: Transformer, engine: Engine, seed: int = 0) -> float:
    """Return how far the engine's log-probabilities are from the model's, at most."""
    worst = 0.0
    for tokens, found in zip(LENGTHS, logprobs_of(engine, seed), strict=True):
        prompt = prompt_of(tokens, seed)
        expected = expected_logprobs(model, [*prompt, *naive_greedy(model, prompt, 2)])
        worst = max(worst, float((found - expected).abs().max()))
    return worst


def test_weights_without_a_plain_copy_serve_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tiny_config(**WIDE))
    engine = tiny_engine(model, step_tokens=128)
    assert isinstance(engine.runner, FusedRunner)
    packed = list(parts_of(engine.runner))
    alone = [each for each in packed if each._weight_YX is None]
    # Of each layer: queries and the way out; the dense feed-forward or all experts; the head.
    assert len(alone) >= 2 * 2 + 2 + 2 + 1
    assert len(alone) < len(packed)
    used: set[int] = set()
    multiply = product_module._multiply
    monkeypatch.setattr(
        product_module,
        "_multiply",
        lambda x, weight, bias=None: used.add(id(weight)) or multiply(x, weight, bias),
    )
    for tokens in (1, 3, 40):
        prompt = prompt_of(tokens, vocab_size=WIDE["vocab_size"])
        request = engine.add(prompt, SamplingParams(temperature=0, max_new_tokens=3))
        engine.run_until_idle()
        assert request.output == naive_greedy(model, prompt, 3)
        expected = expected_logprobs(model, request.tokens)[-3:]
        torch.testing.assert_close(found_logprobs(request), expected, rtol=0, atol=1e-4)
    # The MTP layer is not run without speculation.
    mtp = {id(each._packed) for each in parts_of(engine.runner._layers[-1])}
    assert {id(each._packed) for each in alone} - mtp <= used
    assert_idle(engine)


def test_refresh_leaves_nothing_old() -> None:
    model = copy.deepcopy(tiny_model())
    ids = torch.tensor(prompt_of(12))
    keys = map_keys([Part(Request("", (), GREEDY), 0, 12, 0, 0)], np.arange(1, 11)[None], BLOCK, 4)

    def outputs(runner: FusedRunner) -> list[torch.Tensor]:
        hidden = runner.forward(ids, keys).hidden_TD
        return [hidden, runner.draft(hidden, ids, keys), runner.logits(hidden)]

    runner = runner_of(model, draft_tokens=1)
    before = outputs(runner)
    change(model)
    runner.refresh()
    anew = outputs(runner_of(model, draft_tokens=1))
    for old, mine, expected in zip(before, outputs(runner), anew, strict=True):
        assert torch.equal(mine, expected)
        assert (mine - old).abs().max() > 0.1


def test_a_forgotten_push_shows_and_a_push_mends_it() -> None:
    model = copy.deepcopy(tiny_model())
    engine = tiny_engine(model, step_tokens=128, shares_prefixes=False)
    assert difference(model, engine) < 1e-4
    change(model)
    assert difference(model, engine) > 0.01
    engine.update_weights(None)
    assert difference(model, engine) < 1e-4
