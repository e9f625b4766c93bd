"""A tiny random model and engines for the tests of this folder."""

from functools import cache
from typing import Any

import torch
from tiny_model import build
from torch import Tensor

from fivefold.models.config import ModelConfig
from fivefold.models.preset import preset
from fivefold.models.stable import stable_forward, stable_logprobs
from fivefold.models.transformer import Transformer
from fivefold.serve.config import EngineConfig
from fivefold.serve.engine import Engine
from fivefold.serve.request import Request, SamplingParams

GREEDY = SamplingParams(temperature=0, max_new_tokens=8)


def tiny_config(**fields: Any) -> ModelConfig:
    small = {"num_hidden_layers": 2, "vocab_size": 61, "index_topk": 16, "hidden_size": 64}
    return preset("nano").model_copy(update={**small, **fields})


@cache
def tiny_model(**fields: Any) -> Transformer:
    return build(tiny_config(**fields))


def tiny_engine(model: Transformer | None = None, **fields: Any) -> Engine:
    sizes = {"block_tokens": 4, "pool_tokens": 512, "step_tokens": 32, "most_running": 4}
    return Engine(model or tiny_model(), EngineConfig(**{**sizes, **fields}))


def prompt_of(tokens: int, seed: int = 0, vocab_size: int = 61) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + tokens)
    return torch.randint(0, vocab_size, (tokens,), generator=generator).tolist()


@torch.no_grad()
def expected_logprobs(model: Transformer, tokens: list[int]) -> Tensor:
    """Return the log-probability of each token but the first, by one forward over all of them."""
    ids = torch.tensor([tokens])
    return stable_logprobs(model, stable_forward(model, ids).hidden_BTD, ids)[0]


def found_logprobs(request: Request) -> Tensor:
    return torch.tensor([logprob.raw for logprob in request.logprobs])


def naive_greedy(model: Transformer, prompt: list[int], new_tokens: int) -> list[int]:
    """Continue by a whole forward a token, in the deterministic mode."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(new_tokens):
            hidden = stable_forward(model, torch.tensor([tokens])).hidden_BTD
            tokens.append(int(model.logits(hidden[:, -1]).argmax()))
    return tokens[len(prompt) :]


def assert_idle(engine: Engine) -> None:
    """Nothing runs, nothing leaks: blocks are free or kept as prefixes, and then all free."""
    engine.check()
    load = engine.load()
    assert load["running_requests"] == load["waiting_requests"] == load["used_blocks"] == 0
    assert engine.flush_cache()
    assert engine.scheduler.pool.free == engine.scheduler.pool.total
    engine.check()
