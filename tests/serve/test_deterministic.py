"""The headline: the engine's log-probabilities are the trainer's, to the last bit."""

from typing import Any

import pytest
import torch
from tiny_engine import expected_logprobs, found_logprobs, prompt_of, tiny_engine
from tiny_model import build, ids_of

from fivefold.models.preset import preset
from fivefold.models.stable import stable_forward, stable_logprobs
from fivefold.serve.request import SamplingParams

SHAPES = [
    {},
    {"indexer_types": ("full", "shared", "full", "shared")},
    {"index_n_heads": None},
    {"rope_interleave": False, "vocab_size": 97, "n_routed_experts": 12, "hidden_size": 72},
]


@pytest.mark.numerics
@pytest.mark.parametrize("fields", SHAPES, ids=str)
def test_mismatch_of_engine_and_trainer_is_exactly_zero(
    fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = preset("nano").model_copy(update={"vocab_size": 300, **fields})
    model = build(config)
    engine = tiny_engine(model, deterministic=True, block_tokens=16, step_tokens=48)
    lengths = [3, 17, 60, 90]
    requests = [
        engine.add(
            prompt_of(length, 5, config.vocab_size),
            SamplingParams(max_new_tokens=24, seed=length, prompt_logprobs_begin=0),
        )
        for length in lengths
    ]
    engine.run_until_idle()
    worst = 0.0
    for request in requests:
        expected = expected_logprobs(model, request.tokens)
        found = torch.cat([torch.tensor(request.prompt_scores()[1:]), found_logprobs(request)])
        worst = max(worst, float((found - expected).abs().max()))
        sampled = torch.tensor([logprob.sampled for logprob in request.logprobs])
        assert torch.equal(sampled, found_logprobs(request))
    with capsys.disabled():
        print(f"\nlargest |engine - trainer| log-probability: {worst}")
    assert worst == 0.0


def test_training_gradients_do_not_change_the_numbers() -> None:
    model = build(preset("nano").model_copy(update={"num_hidden_layers": 2, "vocab_size": 64}))
    ids = ids_of(model.config, 2, 60)
    output = stable_forward(model, ids)
    logprobs = stable_logprobs(model, output.hidden_BTD, ids)
    logprobs.sum().backward()
    with torch.no_grad():
        again = stable_logprobs(model, stable_forward(model, ids).hidden_BTD, ids)
    assert torch.equal(logprobs, again)
    stable = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    hidden = model(ids).hidden_BTD
    plain = model.logits(hidden[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])
    plain.sum().backward()
    torch.testing.assert_close(plain[..., 0], logprobs, rtol=0, atol=1e-4)
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert name not in stable or not stable[name].any(), name
            continue
        scale = float(parameter.grad.abs().max()) or 1.0
        # Gradients are sums over 120 tokens in another order.
        torch.testing.assert_close(stable[name], parameter.grad, rtol=0, atol=1e-3 * scale)


def test_packed_documents_have_the_numbers_of_documents_alone() -> None:
    model = build(preset("nano").model_copy(update={"num_hidden_layers": 2, "vocab_size": 64}))
    lengths = [13, 50, 37]
    ids = ids_of(model.config, 1, sum(lengths) + 4)
    documents = torch.repeat_interleave(torch.tensor([0, 1, 2, -1]), torch.tensor([*lengths, 4]))
    positions = torch.cat([torch.arange(length) for length in [*lengths, 4]])
    with torch.no_grad():
        packed = stable_forward(
            model, ids, positions_BT=positions[None], documents_BT=documents[None]
        ).hidden_BTD
        begin = 0
        for length in lengths:
            alone = stable_forward(model, ids[:, begin : begin + length]).hidden_BTD
            assert torch.equal(packed[:, begin : begin + length], alone)
            begin += length
