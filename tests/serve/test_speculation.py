"""Drafts by the MTP layer: the same output with and without, and the chain by its definition."""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, given, settings
from tiny_engine import assert_idle, prompt_of, tiny_config, tiny_engine, tiny_model
from tiny_model import build
from torch import Tensor

from fivefold.models.transformer import Transformer
from fivefold.serve.batch import Batch
from fivefold.serve.engine import Engine
from fivefold.serve.execute import Outcome
from fivefold.serve.request import Request, SamplingParams


def outputs(engine: Engine, wanted: list[tuple[list[int], SamplingParams]]) -> list[Request]:
    requests = [engine.add(prompt, params) for prompt, params in wanted]
    engine.run_until_idle()
    return requests


@settings(max_examples=12, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 14), st.sampled_from([0.0, 0.3, 1.0])),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 4),
    st.sampled_from([96, 512]),
)
def test_output_and_logprobs_are_those_without_drafts(
    shapes: list[tuple[int, int, float]], drafts: int, pool_tokens: int
) -> None:
    wanted = [
        (prompt_of(length, i), SamplingParams(max_new_tokens=new, temperature=heat, seed=i))
        for i, (length, new, heat) in enumerate(shapes)
    ]
    model = nearly_perfect_model()
    sizes = {"pool_tokens": pool_tokens, "deterministic": True}
    plain = outputs(tiny_engine(model, **sizes), wanted)
    engine = tiny_engine(model, draft_tokens=drafts, adapts_drafts=False, **sizes)
    drafted = outputs(engine, wanted)
    assert [request.tokens for request in drafted] == [request.tokens for request in plain]
    assert [request.logprobs for request in drafted] == [request.logprobs for request in plain]
    assert_idle(engine)


def perfect_model() -> Transformer:
    """Make a model whose next token depends on the last alone, and whose MTP layer knows it."""
    model = build(tiny_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "down")):
                parameter.zero_()
        assert model.mtp is not None
        width = model.config.hidden_size
        model.mtp.eh_proj.weight.copy_(torch.eye(width, 2 * width))
    return model


def nearly_perfect_model() -> Transformer:
    """Make one whose drafts are sometimes right."""
    model = perfect_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.006 * torch.randn(parameter.shape, generator=generator))
    return model


def test_the_model_of_these_tests_accepts_and_rejects() -> None:
    engine = tiny_engine(nearly_perfect_model(), draft_tokens=3, adapts_drafts=False)
    outputs(engine, [(prompt_of(20), SamplingParams(temperature=0, max_new_tokens=100))])
    assert {1, 4} <= set(engine.statistics.accept_lengths)


@pytest.mark.parametrize("drafts", [1, 3])
def test_perfect_drafts_are_all_accepted(drafts: int) -> None:
    engine = tiny_engine(perfect_model(), draft_tokens=drafts)
    params = SamplingParams(temperature=0, max_new_tokens=1 + 4 * (drafts + 1))
    (request,) = outputs(engine, [(prompt_of(20), params)])
    statistics = engine.statistics
    assert statistics.accept_lengths == {drafts + 1: 4}
    assert statistics.mean_accept_length == drafts + 1
    assert request.accepted == request.drafted == 4 * drafts
    # One step for the prompt, then one for every `drafts + 1` tokens.
    assert statistics.steps == 5


def test_useless_drafts_are_given_up() -> None:
    engine = tiny_engine(copy.deepcopy(tiny_model()), draft_tokens=4)
    params = SamplingParams(temperature=1.0, max_new_tokens=200, seed=1)
    (request,) = outputs(engine, [(prompt_of(5), params)])
    assert request.draft_limit == 0
    assert request.drafted < 60


def test_drafts_follow_the_chain_of_the_mtp_layer() -> None:
    """Depth g reads the normalised state of depth g - 1 and the draft before, one place on."""
    model = nearly_perfect_model()
    engine = tiny_engine(model, draft_tokens=3, adapts_drafts=False)
    seen: list[tuple[list[int], list[int]]] = []
    run = engine._executor.run

    def record(batch: Batch) -> Outcome:
        known = [list(part.request.tokens) for part in batch.parts]
        outcome = run(batch)
        seen.extend(zip(known, outcome.drafts, strict=True))
        return outcome

    engine._executor.run = record  # pyright: ignore[reportAttributeAccessIssue]
    outputs(engine, [(prompt_of(20), SamplingParams(temperature=0, max_new_tokens=12))])
    verified = [(tokens, drafts) for tokens, drafts in seen if drafts]
    assert len(verified) >= 3
    for tokens, drafts in verified:
        assert drafts == chain(model, tokens, len(drafts))


@torch.inference_mode()
def chain(model: Transformer, tokens: list[int], drafts: int) -> list[int]:
    """Draft by running the whole MTP layer over the whole sequence at every depth."""
    assert model.mtp is not None
    state_BTD = model(torch.tensor([tokens[:-1]])).hidden_BTD
    following, found = list(tokens[1:]), []
    for _ in range(drafts):
        ahead_BTD = model.embed_tokens(torch.tensor([following]))
        positions = torch.arange(len(following))[None]
        new_BTD: Tensor = model.mtp(state_BTD, ahead_BTD, model.surroundings(positions)).state_BTD
        found.append(int(model.logits(new_BTD[:, -1]).argmax()))
        following.append(found[-1])
        state_BTD = torch.cat([state_BTD, new_BTD[:, -1:]], 1)
    return found
