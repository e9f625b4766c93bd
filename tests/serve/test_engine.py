"""Requests in the engine: bad input, ends, prefixes, pauses, weights, what is reported."""

import copy
from typing import Any

import pytest
import torch
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

from fivefold.errors import ConfigError, FivefoldError, MismatchError
from fivefold.models.generate import Sampling, generate
from fivefold.models.transformer import Transformer
from fivefold.serve.config import EngineConfig
from fivefold.serve.engine import Engine
from fivefold.serve.request import QueueFullError, Request, RequestError, SamplingParams


def finished(engine: Engine, prompt: list[int], params: SamplingParams, **more: Any) -> Request:
    request = engine.add(prompt, params, **more)
    engine.run_until_idle()
    return request


def test_greedy_output_is_that_of_the_plain_loop() -> None:
    prompt = prompt_of(30)
    request = finished(tiny_engine(), prompt, SamplingParams(temperature=0, max_new_tokens=20))
    expected = generate(tiny_model(), torch.tensor([prompt]), 20, Sampling(temperature=0))
    assert request.output == expected[0]
    assert request.finish == "length"


@pytest.mark.parametrize(
    "prompt",
    [[], [1, 61], [-1], [2, True], [1.0], ["1"], prompt_of(512), prompt_of(600)],
    ids=["empty", "too high", "negative", "bool", "float", "text", "full", "too long"],
)
def test_bad_prompts_are_refused_and_leave_nothing(prompt: list[Any]) -> None:
    engine = tiny_engine()
    with pytest.raises(RequestError, match="Expected") as caught:
        engine.add(prompt)
    assert isinstance(caught.value, FivefoldError)
    assert_idle(engine)


def test_a_prompt_that_fills_the_context_can_be_scored_but_not_continued() -> None:
    engine = tiny_engine(deterministic=True)
    prompt = prompt_of(512)
    request = finished(engine, prompt, SamplingParams(max_new_tokens=0, prompt_logprobs_begin=500))
    expected = expected_logprobs(tiny_model(), prompt)[499:]
    assert torch.equal(torch.tensor(request.prompt_scores()), expected)
    assert request.finish == "length"
    assert request.output == []
    with pytest.raises(RequestError, match="511"):
        engine.add(prompt, SamplingParams(max_new_tokens=1))


def test_output_ends_where_the_context_does() -> None:
    request = finished(tiny_engine(), prompt_of(508), SamplingParams(max_new_tokens=100))
    assert (len(request.output), request.finish) == (4, "length")


def test_a_full_queue_refuses_one_more() -> None:
    engine = tiny_engine(most_waiting=3)
    for _ in range(3):
        engine.add(prompt_of(5), GREEDY)
    with pytest.raises(QueueFullError, match="at most 3"):
        engine.add(prompt_of(5), GREEDY)
    engine.run_until_idle()
    assert_idle(engine)


def test_a_name_in_use_is_refused_and_free_again_afterwards() -> None:
    engine = tiny_engine()
    engine.add(prompt_of(5), GREEDY, rid="a")
    with pytest.raises(RequestError, match="'a'"):
        engine.add(prompt_of(5), GREEDY, rid="a")
    engine.run_until_idle()
    assert engine.add(prompt_of(5), GREEDY, rid="a").rid == "a"


def test_two_thousand_requests_leave_nothing_behind() -> None:
    engine = tiny_engine(step_tokens=256, most_running=64, pool_tokens=2048)
    requests = [
        engine.add(prompt_of(3, seed=i % 50), SamplingParams(temperature=0, max_new_tokens=1))
        for i in range(2000)
    ]
    engine.run_until_idle()
    assert all(request.finish == "length" for request in requests)
    assert_idle(engine)


def test_stop_ids_end_the_output_with_the_id_itself() -> None:
    free = finished(tiny_engine(), prompt_of(9), SamplingParams(temperature=0, max_new_tokens=12))
    stop = free.output[5]
    first = free.output.index(stop)
    params = SamplingParams(temperature=0, max_new_tokens=12, stop_ids=(stop,))
    stopped = finished(tiny_engine(), prompt_of(9), params)
    assert stopped.output == free.output[: first + 1]
    assert (stopped.finish, stopped.stopped_by) == ("stop", stop)


@pytest.mark.parametrize("overlaps", [False, True])
def test_the_models_own_stop_ids_count_unless_ignored(overlaps: bool) -> None:
    free = finished(tiny_engine(), prompt_of(9), SamplingParams(temperature=0, max_new_tokens=12))
    stop = free.output[3]
    model = copy.copy(tiny_model())
    model.config = tiny_config(eos_token_id=stop)
    engine = tiny_engine(model)
    stopped = engine.add(prompt_of(9), SamplingParams(temperature=0, max_new_tokens=12))
    ignoring = engine.add(
        prompt_of(9), SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
    )
    engine.run_until_idle(overlaps=overlaps)
    engine.close()
    assert stopped.output == free.output[: free.output.index(stop) + 1]
    assert stopped.finish == "stop"
    assert ignoring.output == free.output
    assert_idle(engine)


def test_a_predicate_over_the_output_stops_it() -> None:
    request = finished(tiny_engine(), prompt_of(9), GREEDY, stops=lambda ids: len(ids) == 3)
    assert (len(request.output), request.finish, request.stopped_by) == (3, "stop", None)


def test_callers_hear_of_every_token_in_order_and_once_of_the_end() -> None:
    heard: list[int] = []
    ends: list[Request] = []
    request = finished(
        tiny_engine(),
        prompt_of(9),
        GREEDY,
        on_token=lambda _, token: heard.append(token),
        on_finish=ends.append,
    )
    assert heard == request.output
    assert ends == [request]


def test_abort_ends_waiting_and_running_requests_with_what_they_have() -> None:
    engine = tiny_engine(most_running=1)
    running, waiting, other = (engine.add(prompt_of(9), GREEDY, rid=name) for name in "abc")
    engine.step()
    engine.step()
    assert engine.abort("a") == engine.abort("b") == 1
    assert engine.abort("a") == 0
    engine.run_until_idle()
    assert (running.finish, waiting.finish, other.finish) == ("abort", "abort", "length")
    assert len(running.output) == 2
    assert waiting.output == []
    assert_idle(engine)


def test_a_finished_prompt_is_not_computed_again() -> None:
    engine = tiny_engine(deterministic=True)
    first = finished(engine, prompt_of(40), GREEDY)
    before = engine.statistics.computed_tokens
    turn = first.tokens + prompt_of(5)
    second = finished(engine, turn, GREEDY)
    # The last output token was never computed; blocks of 4 are whole up to 44 of 48.
    assert second.cached_tokens == 44
    assert engine.statistics.computed_tokens - before == len(turn) - 44 + 7
    assert second.output == naive_greedy(tiny_model(), turn, 8)


def test_a_group_computes_its_prompt_once() -> None:
    engine = tiny_engine(most_running=4)
    group = [
        engine.add(prompt_of(30), SamplingParams(max_new_tokens=6, seed=seed)) for seed in range(4)
    ]
    engine.run_until_idle()
    assert sorted(request.cached_tokens for request in group) == [0, 28, 28, 28]
    assert len({tuple(request.output) for request in group}) > 1
    assert_idle(engine)


def test_requests_of_another_salt_share_nothing() -> None:
    engine = tiny_engine()
    finished(engine, prompt_of(30), GREEDY, salt="a")
    assert finished(engine, prompt_of(30), GREEDY, salt="b").cached_tokens == 0
    assert finished(engine, prompt_of(30), GREEDY, salt="a").cached_tokens == 28


def test_prompt_scores_reach_back_before_kept_prefixes() -> None:
    engine = tiny_engine(deterministic=True)
    prompt = prompt_of(40)
    finished(engine, prompt, GREEDY)
    params = SamplingParams(max_new_tokens=2, temperature=0, prompt_logprobs_begin=20)
    request = finished(engine, prompt, params)
    assert request.cached_tokens == 16
    expected = expected_logprobs(tiny_model(), prompt)
    assert torch.equal(torch.tensor(request.prompt_scores()), expected[19:])
    whole = finished(engine, prompt, SamplingParams(max_new_tokens=0, prompt_logprobs_begin=0))
    assert whole.prompt_scores()[0] is None
    assert torch.equal(torch.tensor(whole.prompt_scores()[1:]), expected)


def test_higher_priority_leaves_the_queue_first() -> None:
    engine = tiny_engine(most_running=1)
    order: list[str] = []
    for rid, priority in (("low", 0), ("high", 2), ("middle", 1)):
        engine.add(
            prompt_of(5),
            GREEDY,
            rid=rid,
            priority=priority,
            on_finish=lambda request: order.append(request.rid),
        )
    engine.run_until_idle()
    assert order == ["high", "middle", "low"]


def test_decoding_goes_on_while_a_long_prompt_is_computed() -> None:
    engine = tiny_engine(step_tokens=16)
    short = engine.add(prompt_of(5), SamplingParams(temperature=0, max_new_tokens=40))
    engine.step()
    long = engine.add(prompt_of(200), GREEDY)
    for _ in range(8):
        before = len(short.output)
        engine.step()
        assert len(short.output) == before + 1
    assert 0 < long.computed < 200
    engine.run_until_idle()
    assert_idle(engine)


def test_routing_of_every_computed_token_is_reported() -> None:
    engine = tiny_engine(deterministic=True)
    params = SamplingParams(temperature=0, max_new_tokens=8, returns_routing=True)
    request = finished(engine, prompt_of(40), params)
    again = finished(engine, prompt_of(40), params)
    assert request.routing is not None
    assert again.routing is not None
    from fivefold.models.stable import stable_forward

    with torch.no_grad():
        routing = stable_forward(tiny_model(), torch.tensor([request.tokens[:-1]])).routing
    expected = torch.stack([routed.chosen_TA for routed in routing], 1)
    assert torch.equal(request.routing[:-1], expected.to(torch.int16))
    assert (request.routing[-1] == -1).all()
    assert (again.routing[: again.cached_tokens] == -1).all()
    computed = slice(again.cached_tokens, -1)
    assert torch.equal(again.routing[computed], expected[computed.start :].to(torch.int16))


def scaled_weights(model: Transformer, factor: float) -> dict[str, torch.Tensor]:
    return {name: tensor * factor for name, tensor in model.state_dict().items()}


def own_engine(**fields: Any) -> Engine:
    return tiny_engine(copy.deepcopy(tiny_model()), **fields)


def test_new_weights_serve_and_old_prefixes_are_forgotten() -> None:
    engine = own_engine(deterministic=True)
    finished(engine, prompt_of(30), GREEDY)
    assert engine.update_weights(scaled_weights(engine.model, 1.2)) == 1
    request = finished(engine, prompt_of(30), GREEDY)
    assert request.cached_tokens == 0
    assert request.output == naive_greedy(engine.model, prompt_of(30), 8)
    assert request.versions == [(0, 8, 1)]
    assert_idle(engine)


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_a_push_in_mid_air_shows_in_the_version_spans(mode: Any) -> None:
    engine = own_engine(deterministic=True)
    request = engine.add(prompt_of(30), GREEDY)
    for _ in range(4):
        engine.step()
    engine.pause(mode)
    assert engine.is_paused
    assert not engine.step()
    engine.update_weights(scaled_weights(engine.model, 1.2), version=5)
    engine.proceed()
    engine.run_until_idle()
    assert request.versions == [(0, 4, 0), (4, 8, 5)]
    assert request.preemptions == (mode == "retract")
    expected = expected_logprobs(engine.model, request.tokens)[-4:]
    # Kept keys are those of the old weights; retracted requests compute theirs anew.
    assert torch.equal(found_logprobs(request)[4:], expected) == (mode == "retract")
    if mode == "in_place":
        again = finished(engine, request.tokens, GREEDY)
        assert again.cached_tokens == 0
    assert_idle(engine)


def test_pause_by_abort_returns_what_there_is() -> None:
    engine = tiny_engine()
    request = engine.add(prompt_of(30), GREEDY)
    engine.step()
    engine.pause("abort")
    assert request.finish == "abort"
    later = engine.add(prompt_of(9), GREEDY)
    assert not engine.step()
    engine.proceed()
    engine.run_until_idle()
    assert later.finish == "length"
    assert_idle(engine)


def test_weights_that_the_caller_changed_in_place_are_taken_over() -> None:
    engine = own_engine()
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.mul_(1.1)
    engine.update_weights(None)
    request = finished(engine, prompt_of(30), GREEDY)
    expected = generate(engine.model, torch.tensor([prompt_of(30)]), 8, Sampling(temperature=0))
    assert request.output == expected[0]


def missing(weights: dict[str, torch.Tensor]) -> None:
    del weights["norm.weight"]


def unknown(weights: dict[str, torch.Tensor]) -> None:
    weights["more"] = torch.zeros(1)


def misshapen(weights: dict[str, torch.Tensor]) -> None:
    weights["norm.weight"] = torch.zeros(3)


def whole_numbers(weights: dict[str, torch.Tensor]) -> None:
    weights["norm.weight"] = weights["norm.weight"].long()


@pytest.mark.parametrize("spoil", [missing, unknown, misshapen, whole_numbers])
def test_wrong_weights_are_refused_and_the_old_ones_go_on(spoil: Any) -> None:
    engine = own_engine(deterministic=True)
    request = engine.add(prompt_of(30), GREEDY)
    engine.step()
    before = copy.deepcopy(engine.model.state_dict())
    weights = scaled_weights(engine.model, 3.0)
    spoil(weights)
    with pytest.raises(MismatchError, match="old weights go on serving"):
        engine.update_weights(weights)
    after = engine.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    engine.run_until_idle()
    assert request.output == naive_greedy(tiny_model(), prompt_of(30), 8)
    assert request.versions == [(0, 8, 0)]


def test_versions_count_upwards() -> None:
    engine = own_engine()
    engine.update_weights(None, version=7)
    with pytest.raises(ConfigError, match="above 7"):
        engine.update_weights(None, version=7)


def test_flush_waits_for_running_requests() -> None:
    engine = tiny_engine()
    finished(engine, prompt_of(30), GREEDY)
    engine.add(prompt_of(9), GREEDY)
    engine.step()
    assert not engine.flush_cache()
    engine.run_until_idle()
    assert engine.flush_cache()
    assert finished(engine, prompt_of(30), GREEDY).cached_tokens == 0


def test_statistics_add_up() -> None:
    engine = tiny_engine()
    for seed in range(3):
        engine.add(prompt_of(10, seed), GREEDY)
    engine.run_until_idle()
    statistics = engine.statistics
    assert statistics.finished == {"length": 3}
    assert statistics.prompt_tokens == 30
    assert statistics.output_tokens == 24
    # The last token of each output is never computed.
    assert statistics.computed_tokens == 30 + 24 - 3 - statistics.cached_tokens


@pytest.mark.parametrize(
    "fields", [{"step_tokens": 3}, {"pool_tokens": 3}, {"block_tokens": 0}, {"unknown": 1}]
)
def test_impossible_configs_are_refused(fields: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {
        "block_tokens": 4,
        "pool_tokens": 64,
        "step_tokens": 8,
        "most_running": 4,
    }
    with pytest.raises(ValueError, match=r"Expected|Extra|greater"):
        EngineConfig(**{**sizes, **fields})


def test_speculation_needs_the_mtp_layer() -> None:
    from tiny_model import build

    model = build(tiny_config(num_nextn_predict_layers=0))
    with pytest.raises(ConfigError, match="MTP"):
        tiny_engine(model, draft_tokens=2)
