"""The engine under random scheduling against one forward a request: tokens, bits, blocks."""

import copy
from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from hypothesis import Phase, given, settings
from tiny_engine import (
    assert_idle,
    expected_logprobs,
    found_logprobs,
    naive_greedy,
    prompt_of,
    tiny_engine,
    tiny_model,
)

from fivefold.models.generate import Sampling, generate
from fivefold.models.transformer import Transformer
from fivefold.serve.engine import Engine
from fivefold.serve.request import Request, SamplingParams


@dataclass(frozen=True)
class Arrival:
    prompt: tuple[int, ...]
    params: SamplingParams
    priority: int


@st.composite
def arrivals(draw: st.DrawFn) -> Arrival:
    """Draw a request; half of the prompts begin with one of two common beginnings."""
    shared = prompt_of(40, seed=draw(st.integers(0, 1)))
    own = prompt_of(40, seed=draw(st.integers(2, 6)))
    prompt = shared[: draw(st.integers(0, 40))] + own[: draw(st.integers(1, 25))]
    params = SamplingParams(
        max_new_tokens=draw(st.integers(0, 12)),
        temperature=draw(st.sampled_from([0.0, 1.0, 0.7])),
        top_k=draw(st.sampled_from([0, 5])),
        top_p=draw(st.sampled_from([1.0, 0.9])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.1])),
        logit_bias=draw(st.sampled_from([(), (), ((7, 1.5),)])),
        seed=draw(st.integers(0, 3)),
        prompt_logprobs_begin=draw(st.sampled_from([None, None, 0, 9])),
        returns_routing=draw(st.booleans()),
    )
    return Arrival(tuple(prompt), params, draw(st.integers(0, 1)))


# Shrinking repeats whole engine runs for minutes; the failing case is printed as it was found.
QUICK = settings(derandomize=True, phases=[Phase.explicit, Phase.generate])

EVENTS = st.one_of(
    arrivals(),
    arrivals(),
    st.just("step"),
    st.just("step"),
    st.just("abort"),
    st.sampled_from(["in_place", "retract", "push"]),
)


def other_weights(model: Transformer, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }


def drive(engine: Engine, events: list, pick: st.DataObject, *, overlaps: bool) -> list[Request]:
    """Carry out the events; a push retracts, so that all keys come from one version."""
    requests: list[Request] = []
    step = engine.step_overlapped if overlaps else engine.step
    for number, event in enumerate(events):
        if isinstance(event, Arrival):
            requests.append(engine.add(event.prompt, event.params, priority=event.priority))
        elif event == "abort" and requests:
            engine.abort(requests[pick.draw(st.integers(0, len(requests) - 1))].rid)
        elif event in ("in_place", "retract"):
            engine.pause(event)
            assert not engine.step()
            engine.proceed()
        elif event == "push":
            engine.pause("retract")
            engine.update_weights(other_weights(engine.model, number))
            engine.proceed()
        step()
        if not overlaps:
            engine.check()
    engine.run_until_idle(overlaps=overlaps)
    engine.close()
    return requests


@settings(QUICK, max_examples=25)
@given(st.lists(EVENTS, min_size=3, max_size=14), st.data(), st.booleans(), st.sampled_from([0, 2]))
def test_random_scheduling_equals_one_forward_bit_for_bit(
    events: list, pick: st.DataObject, overlaps: bool, drafts: int
) -> None:
    model = copy.deepcopy(tiny_model())
    engine = tiny_engine(
        model, pool_tokens=112, deterministic=True, draft_tokens=drafts, step_tokens=16
    )
    weights = {0: copy.deepcopy(model.state_dict())}
    update = engine.update_weights

    def push(state: dict[str, torch.Tensor]) -> int:
        version = update(state)
        weights[version] = copy.deepcopy(model.state_dict())
        return version

    engine.update_weights = push  # pyright: ignore[reportAttributeAccessIssue]
    requests = drive(engine, events, pick, overlaps=overlaps)
    assert_idle(engine)
    oracle = copy.deepcopy(model)
    for request in requests:
        assert request.finish in ("length", "abort")
        if request.finish == "length":
            assert len(request.output) == request.params.max_new_tokens
        for begin, end, version in request.versions:
            oracle.load_state_dict(weights[version])
            first = len(request.prompt) + begin
            last = len(request.prompt) + end
            expected = expected_logprobs(oracle, request.tokens[:last])[first - 1 :]
            assert torch.equal(found_logprobs(request)[begin:end], expected)
        if len(weights) == 1 and request.scores_prompt and request.finish == "length":
            begin = max(request.params.prompt_logprobs_begin or 0, 1)
            expected = expected_logprobs(model, list(request.prompt))[begin - 1 :]
            scores = [score for score in request.prompt_scores() if score is not None]
            assert torch.equal(torch.tensor(scores), expected)
    check_spans(requests)


def check_spans(requests: list[Request]) -> None:
    for request in requests:
        ends = [0, *(span.end for span in request.versions)]
        assert [span.begin for span in request.versions] == ends[:-1]
        assert ends[-1] == len(request.output)
        versions = [span.version for span in request.versions]
        assert versions == sorted(set(versions))


@settings(QUICK, max_examples=15)
@given(st.lists(arrivals(), min_size=1, max_size=6), st.integers(16, 40), st.booleans())
def test_a_sampled_token_does_not_depend_on_company(
    wanted: list[Arrival], step_tokens: int, overlaps: bool
) -> None:
    together = tiny_engine(deterministic=True, step_tokens=step_tokens)
    requests = [together.add(each.prompt, each.params) for each in wanted]
    together.run_until_idle(overlaps=overlaps)
    together.close()
    for each, request in zip(wanted, requests, strict=True):
        alone = tiny_engine(deterministic=True, shares_prefixes=False, most_running=1)
        lonely = alone.add(each.prompt, each.params)
        alone.run_until_idle()
        assert lonely.output == request.output
        assert lonely.logprobs == request.logprobs
        assert lonely.prompt_logprobs == request.prompt_logprobs


@settings(QUICK, max_examples=15)
@given(st.lists(arrivals(), min_size=1, max_size=8), st.booleans())
def test_fast_mode_is_greedy_as_the_plain_loop(wanted: list[Arrival], overlaps: bool) -> None:
    engine = tiny_engine(pool_tokens=112)
    greedy = [
        (each.prompt, SamplingParams(temperature=0, max_new_tokens=each.params.max_new_tokens))
        for each in wanted
    ]
    requests = [engine.add(prompt, params) for prompt, params in greedy]
    engine.run_until_idle(overlaps=overlaps)
    engine.close()
    for (prompt, params), request in zip(greedy, requests, strict=True):
        found = generate(
            tiny_model(), torch.tensor([prompt]), params.max_new_tokens, Sampling(temperature=0)
        )
        assert request.output == found[0]
    assert_idle(engine)


def test_a_pool_for_one_request_serves_many_by_preemption() -> None:
    engine = tiny_engine(deterministic=True, pool_tokens=40, shares_prefixes=True)
    params = SamplingParams(temperature=0, max_new_tokens=24)
    prompts = [prompt_of(9, seed=seed) for seed in range(4)]
    requests = [engine.add(prompt, params) for prompt in prompts]
    engine.run_until_idle()
    assert engine.load()["preemptions"] > 0
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.output == naive_greedy(tiny_model(), prompt, 24)
    assert_idle(engine)
