"""The engine on a GPU says what it says on a CPU, token for token, in every mode of it."""

import copy
from typing import Any

import pytest
import torch
from tiny_engine import assert_idle, prompt_of, tiny_engine, tiny_model
from tiny_model import build

from fivefold.models.generate import Sampling, generate
from fivefold.models.preset import preset
from fivefold.models.stable import stable_forward, stable_logprobs
from fivefold.models.transformer import Transformer
from fivefold.serve.config import EngineConfig
from fivefold.serve.engine import Engine
from fivefold.serve.request import Request, SamplingParams

pytestmark = pytest.mark.gpu

LENGTHS = (3, 9, 30, 47, 70, 101)
"""Shorter and longer than the 16 keys that are selected, a chunk, and a step's budget."""


def on(device: str, **fields: Any) -> Transformer:
    return copy.deepcopy(tiny_model(**fields)).to(device)


def answers(model: Transformer, params: SamplingParams, overlaps: bool, **fields: Any) -> list[Any]:
    engine = tiny_engine(model, **fields)
    requests: list[Request] = []
    for place, length in enumerate(LENGTHS):
        requests.append(engine.add(prompt_of(length), params))
        if place == 2:
            engine.step()
    engine.run_until_idle(overlaps=overlaps)
    engine.close()
    assert_idle(engine)
    return requests


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, max_new_tokens=20),
        SamplingParams(temperature=0.7, top_p=0.9, top_k=20, max_new_tokens=20, seed=5),
    ],
    ids=["greedy", "sampled"],
)
@pytest.mark.parametrize(
    ("overlaps", "fields"),
    [
        (False, {}),
        (True, {}),
        (False, {"deterministic": True}),
        (False, {"draft_tokens": 3}),
    ],
    ids=["plain", "overlapped", "deterministic", "drafting"],
)
def test_tokens_are_those_of_a_cpu(
    params: SamplingParams, overlaps: bool, fields: dict[str, Any]
) -> None:
    found = answers(on("cuda"), params, overlaps, **fields)
    wanted = answers(on("cpu"), params, overlaps, **fields)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.output == theirs.output
        pairs = zip(mine.logprobs, theirs.logprobs, strict=True)
        assert all(a.raw == pytest.approx(b.raw, abs=1e-4) for a, b in pairs)


def test_plain_generation_says_what_the_engine_says() -> None:
    model = on("cuda")
    prompt = prompt_of(30)
    params = SamplingParams(temperature=0, max_new_tokens=20)
    engine = tiny_engine(model)
    request = engine.add(prompt, params)
    engine.run_until_idle()
    ids = torch.tensor([prompt], device="cuda")
    assert generate(model, ids, 20, Sampling(temperature=0)) == [request.output]


def test_deterministic_numbers_do_not_depend_on_the_batch() -> None:
    params = SamplingParams(temperature=0, max_new_tokens=12)
    together = answers(on("cuda"), params, False, deterministic=True)
    for length, one in zip(LENGTHS, together, strict=True):
        engine = tiny_engine(on("cuda"), deterministic=True)
        alone = engine.add(prompt_of(length), params)
        engine.run_until_idle()
        assert [a.raw for a in alone.logprobs] == [a.raw for a in one.logprobs]


def test_deterministic_numbers_are_the_trainers_bit_for_bit() -> None:
    model = on("cuda")
    params = SamplingParams(temperature=0, max_new_tokens=12)
    for request in answers(model, params, False, deterministic=True):
        ids = torch.tensor([request.tokens], device="cuda")
        with torch.no_grad():
            hidden = stable_forward(model, ids).hidden_BTD
        wanted = stable_logprobs(model, hidden, ids)[0, -12:].tolist()
        assert [logprob.raw for logprob in request.logprobs] == wanted


@pytest.mark.parametrize("draft_tokens", [0, 2])
def test_a_wider_model_in_bf16_answers_nearly_as_in_fp32(draft_tokens: int) -> None:
    shape = preset("small", vocab_size=512, num_hidden_layers=3, n_routed_experts=8, index_topk=64)
    exact = build(shape, deviation=0.02).to("cuda")
    config = EngineConfig(pool_tokens=2048, step_tokens=256, draft_tokens=draft_tokens)
    found = []
    for model in (exact, copy.deepcopy(exact).bfloat16()):
        engine = Engine(model, config)
        prompt = prompt_of(200, vocab_size=512)
        params = SamplingParams(temperature=0, max_new_tokens=4, prompt_logprobs_begin=1)
        request = engine.add(prompt, params)
        engine.run_until_idle()
        found.append(torch.tensor(request.prompt_scores()))
    assert float((found[0] - found[1]).abs().mean()) < 0.05


def test_new_weights_replace_the_old_ones() -> None:
    model, other = on("cuda"), on("cpu")
    engine = tiny_engine(model)
    weights = {name: value * 0.9 for name, value in other.state_dict().items()}
    engine.update_weights(weights)
    other.load_state_dict(weights)
    params = SamplingParams(temperature=0, max_new_tokens=8)
    request = engine.add(prompt_of(40), params)
    engine.run_until_idle()
    theirs = tiny_engine(other)
    wanted = theirs.add(prompt_of(40), params)
    theirs.run_until_idle()
    assert request.output == wanted.output
