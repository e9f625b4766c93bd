"""Collecting: what fails is counted and never a zero; what says nothing is made up for."""

import asyncio
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import ToySource, run_toy, supply_of, toy_config

from fivefold.config import validate
from fivefold.errors import ConfigError, MismatchError
from fivefold.metrics import read_metrics
from fivefold.rl import preset
from fivefold.rl.collect import Collected, Collector
from fivefold.rl.config import AdvantageConfig
from fivefold.rl.loop_config import LoopConfig, SamplingConfig
from fivefold.rl.progress import (
    NoSignalError,
    Progress,
    batch_line,
    note_no_signal,
    sampling_metrics,
)
from fivefold.rl.prompt import Judgement, Prompt, PromptStream, judge_safely
from fivefold.rl.reason import UnjudgedError
from fivefold.rl.rollout import Ask, seed_of
from fivefold.serve.request import TokenLogprob, VersionSpan
from fivefold.serve.worker import Completion


class ScriptedCompleter:
    """Answers request n of a run with what a function makes of it."""

    def __init__(self, answer: Callable[[int, Ask], dict[str, Any]] = lambda n, ask: {}) -> None:
        self.asked: list[Ask] = []
        self._answer = answer

    async def complete(self, asks: Sequence[Ask]) -> list[Completion]:
        return [self._complete(ask) for ask in asks]

    async def push(self, version: int) -> None:
        raise AssertionError("nobody trains here")

    async def version(self) -> int:
        return 0

    def _complete(self, ask: Ask) -> Completion:
        ids = [len(self.asked) % 5, 2]
        fields: dict[str, Any] = {
            "ids": ids,
            "logprobs": [TokenLogprob(-0.5, -0.7), TokenLogprob(-1.5, -1.7)],
            "finish": "stop",
            "versions": [VersionSpan(0, 2, 0)],
            "cached_tokens": 0,
            "prompt_logprobs": [],
            "routing": None,
            "drafted": 0,
            "accepted": 0,
        }
        self.asked.append(ask)
        return Completion(**(fields | self._answer(len(self.asked) - 1, ask)))


def sampling(**fields: object) -> SamplingConfig:
    return toy_config().sampling.model_copy(update=fields)


def collect(
    source: ToySource,
    config: LoopConfig | None = None,
    completer: ScriptedCompleter | None = None,
    **arguments: Any,
) -> Collected:
    config = config or toy_config(sampling=sampling(refill_rounds=0))
    stream = PromptStream([source], [1.0])
    collector = Collector(completer or ScriptedCompleter(), stream, config, 0, **arguments)
    return asyncio.run(collector.collect(0))


def taking_turns(*rewards: float | Exception | None) -> ToySource:
    """Return a source whose judge gives these, one after the other."""
    number = iter(range(10**6))

    def reward(ids: Sequence[int]) -> float | None:
        value = rewards[next(number) % len(rewards)]
        if isinstance(value, Exception):
            raise value
        return value

    return ToySource(reward)


def test_judge_that_raises_is_infra_and_never_a_zero() -> None:
    collected = collect(taking_turns(1.0, ZeroDivisionError("oops"), 0.0, 1.0))
    assert collected.counts["infra"] == 4
    assert collected.counts["kept"] == collected.counts["repaired"] == 4
    assert len(collected.rollouts) == 12
    for n in range(4):
        rewards = [r.reward for r in collected.rollouts if r.group == f"toy#{n}"]
        assert rewards == [1.0, 0.0, 1.0]
    # The baseline is that of the three: a swallowed error as 0 would have made it 1/2.
    best = [s for s in collected.samples if s.reward == 1.0]
    assert best[0].advantages is not None
    assert best[0].advantages[-1] == pytest.approx(1 / 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_reward_that_is_no_number_is_invalid(value: float) -> None:
    collected = collect(taking_turns(value, 0.0, 1.0, 1.0))
    assert collected.counts["invalid"] == 4
    assert len(collected.rollouts) == 12


def test_mistake_of_a_user_is_raised() -> None:
    error = ConfigError(expected="a function", found="none", fix="Name it")
    with pytest.raises(ConfigError, match="a function"):
        collect(taking_turns(1.0, error))


def test_value_beside_a_failure_is_dropped() -> None:
    async def judge(response: Sequence[int]) -> Judgement:
        return Judgement(0.0, "infra", "timed out")

    found = asyncio.run(judge_safely(Prompt((1,), "g", "s", judge), [1]))
    assert found == Judgement(None, "infra", "timed out")


class HangingSource(ToySource):
    """Each judgement takes until it is given up; those after the first few take for ever."""

    def __init__(self, ends_after: int) -> None:
        super().__init__()
        self.left = ends_after

    async def _judge(self, response: Sequence[int]) -> Judgement:
        self.left -= 1
        if self.left < 0:
            await asyncio.Event().wait()
        return Judgement(None, "infra", "timed_out: no result within 5 s")


def test_judge_that_hangs_is_told_at_once_and_ends_the_batch_before_all_have_hung(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = toy_config(sampling=sampling(unjudged_limit=6))
    with pytest.raises(UnjudgedError) as refusal:
        collect(HangingSource(ends_after=6), config)
    message = str(refusal.value)
    assert "6 of the first 6 that cannot; 6 times infra: timed_out: no result" in message
    assert "`verifier.limit_seconds`" in message
    assert "`sampling.unjudged_limit`" in message
    assert "a rollout of `toy#0` is left out, infra: timed_out" in caplog.text


def test_failures_end_the_batch_where_they_are_most_and_many() -> None:
    # Of 16, 9 fail; of the first 14, as many as do not.
    mostly = [1.0, None] * 7 + [None, None]
    for limit, rewards in ((9, mostly), (8, mostly), (1, [None])):
        config = toy_config(sampling=sampling(unjudged_limit=limit, refill_rounds=0))
        with pytest.raises(UnjudgedError):
            collect(taking_turns(*rewards), config)
    for limit, rewards in ((10, mostly), (1, [1.0, None])):
        config = toy_config(sampling=sampling(unjudged_limit=limit, refill_rounds=0))
        assert collect(taking_turns(*rewards), config).counts["infra"] >= 8


def test_failures_end_no_batch_that_rewards_do_not_judge(caplog: pytest.LogCaptureFixture) -> None:
    # Rollouts without a reward stay for a teacher, whose algorithm has no advantage.
    config = toy_config(algorithm=preset.distil(), sampling=sampling(refill_rounds=0))
    collected = collect(ToySource(lambda ids: None), config, needs_rewards=False)
    assert collected.counts["infra"] == len(collected.rollouts) == 4
    assert "a rollout of `toy#0` is not judged, infra" in caplog.text
    assert "left out" not in caplog.text
    clocks = {"rl/sample_seconds": 1.0, "rl/train_seconds": 0.5, "rl/no_signal": False}
    values = sampling_metrics(collected, config) | clocks
    assert "4 rollouts not judged" in batch_line(Progress(), config, values)
    assert "left out" not in batch_line(Progress(), config, values)
    values |= {"rl/rollouts_broken": 2}
    assert "2 rollouts left out  4 rollouts not judged" in batch_line(Progress(), config, values)


@pytest.mark.parametrize("hangs", [False, True])
def test_judges_that_nothing_depends_on_are_asked_no_more_once_they_mostly_fail(
    hangs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    limit = sampling(unjudged_limit=6, batch_prompts=8, refill_rounds=0)
    config = toy_config(algorithm=preset.distil(), sampling=limit)
    source = HangingSource(ends_after=6 if hangs else 10**6)
    stream = PromptStream([source], [1.0])
    collector = Collector(ScriptedCompleter(), stream, config, 0, needs_rewards=False)
    first, second = (asyncio.run(collector.collect(0)) for _ in range(2))
    assert len(first.rollouts) == len(second.rollouts) == 8
    # Where they do not hang, all of the batch may have been judged by then.
    assert 6 <= first.counts["infra"] == first.reasons.total() <= (6 if hangs else 8)
    assert second.counts["infra"] == 0
    assert not second.reasons
    assert caplog.text.count("judges are asked no more") == 1


def test_answer_without_a_token_is_broken() -> None:
    def answer(n: int, ask: Ask) -> dict[str, Any]:
        return {} if n % 4 else {"ids": [], "logprobs": [], "versions": []}

    collected = collect(taking_turns(1.0, 0.0), completer=ScriptedCompleter(answer))
    assert collected.counts["broken"] == 4
    assert len(collected.rollouts) == 12
    ((kind, times),) = collected.reasons.items()
    assert times == 4
    assert "at least one sampled token in a rollout; found none" in collected.examples[kind]


def test_group_with_too_few_judged_is_dropped_and_made_up_for() -> None:
    # 4 x (x . . .), then all are judged: 12 of 16 fail in round 1.
    first = [1.0, None, None, None] * 4
    source = taking_turns(*first, *([0.0, 1.0] * 8))
    collected = collect(source, toy_config(sampling=sampling(refill_rounds=1)))
    counts = collected.counts
    assert counts["infra"] == 12
    assert counts["dropped_invalid"] == 4
    assert (counts["rounds"], counts["drawn"], counts["kept"]) == (2, 8, 4)
    assert {sample.group for sample in collected.samples} == {f"toy#{n}" for n in range(4, 8)}


def test_refill_is_bounded_and_draws_what_is_missing() -> None:
    # Groups 0, 2, 4 ... say nothing: rounds of 4, 2, 1 and 1 groups.
    number = iter(range(10**6))

    def reward(ids: Sequence[int]) -> float:
        place = next(number)
        return float(place % 2) if (place // 4) % 2 else 1.0

    completer = ScriptedCompleter()
    config = toy_config(sampling=sampling(refill_rounds=2))
    collected = collect(ToySource(reward), config, completer)
    assert collected.counts["kept"] == 3
    assert collected.counts["drawn"] == 7
    assert len(completer.asked) == 28
    assert collected.has_signal
    assert len(collected.samples) == 12
    assert len(collected.rollouts) == 28


def test_log_probability_that_is_no_number_breaks_its_rollout_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(n: int, ask: Ask) -> dict[str, Any]:
        if n % 4:
            return {}
        return {"logprobs": [TokenLogprob(math.nan, -0.7), TokenLogprob(-1.5, -1.7)]}

    collected = collect(taking_turns(1.0, 0.0), completer=ScriptedCompleter(answer))
    assert collected.counts["broken"] == 4
    assert len(collected.rollouts) == 12
    assert all(np.isfinite(r.rollout_logprobs).all() for r in collected.rollouts)
    # One kind of reason for all groups, told once.
    ((kind, times),) = collected.reasons.items()
    assert (times, len(caplog.records)) == (4, 1)
    assert "a rollout of `toy#0` is left out" in caplog.text
    assert "found nan at token 2" in collected.examples[kind]


def test_tokens_of_two_versions_are_refused() -> None:
    def answer(n: int, ask: Ask) -> dict[str, Any]:
        return {"versions": [VersionSpan(0, 1, 0), VersionSpan(1, 2, 1)]} if n == 9 else {}

    with pytest.raises(MismatchError, match=r"version 0 alone .* versions \[0, 1\]"):
        collect(taking_turns(1.0, 0.0), completer=ScriptedCompleter(answer))


def test_sample_holds_what_the_engine_said() -> None:
    completer = ScriptedCompleter(lambda n, ask: {"finish": "length"} if n == 1 else {})
    collected = collect(taking_turns(1.0, 0.0), completer=completer)
    rollout = collected.rollouts[1]
    assert rollout.ids.tolist() == [0, 1, 1, 2]
    assert rollout.loss_mask.tolist() == [False, False, True, True]
    assert rollout.versions.tolist() == [-1, -1, 0, 0]
    assert rollout.rollout_logprobs.tolist() == [0.0, 0.0, -0.5, -1.5]
    assert rollout.is_truncated
    assert not collected.rollouts[0].is_truncated
    assert completer.asked[1].params.seed == seed_of(0, "toy#0", 1)
    assert len({ask.params.seed for ask in completer.asked}) == 16


def test_batch_of_equal_rewards_has_no_signal_whatever_the_policy() -> None:
    for policy in ("drop", "zero", "keep"):
        advantage = AdvantageConfig(group_size=4, zero_variance=policy)
        algorithm = toy_config().algorithm.model_copy(update={"advantage": advantage})
        config = toy_config(algorithm=algorithm, sampling=sampling(refill_rounds=0))
        assert not collect(taking_turns(1.0), config).has_signal
        assert collect(taking_turns(1.0, 0.0), config).has_signal


def test_batches_without_signal_are_left_out_and_then_end_the_run(tmp_path: Path) -> None:
    config = toy_config(9, sampling=sampling(no_signal_limit=3, refill_rounds=1))
    with pytest.raises(NoSignalError, match=r"of 8 groups 8 with equal rewards.*mean reward 1"):
        run_toy(tmp_path, config, supply_of(ToySource(lambda ids: 1.0)))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["rl/no_signal"] for record in records] == [1, 1, 1]
    assert {record["rl/policy_version"] for record in records} == {0}


def test_signal_in_between_resets_the_count() -> None:
    progress, config = Progress(), toy_config(sampling=sampling(no_signal_limit=2))
    nothing = collect(taking_turns(1.0))
    note_no_signal(progress, nothing, config)
    progress.no_signal_in_row = 0
    note_no_signal(progress, nothing, config)
    with pytest.raises(NoSignalError):
        note_no_signal(progress, nothing, config)


def test_verifier_that_always_fails_is_named_when_the_run_ends(tmp_path: Path) -> None:
    config = toy_config(9, sampling=sampling(no_signal_limit=1, refill_rounds=0))
    with pytest.raises(NoSignalError, match="no reward at all; 16 rollouts infra"):
        run_toy(tmp_path, config, supply_of(ToySource(lambda ids: None)))


def test_group_of_one_is_refused_with_grpo() -> None:
    document = {"method": "grpo", "group_size": 1}
    with pytest.raises(ConfigError, match="group_size"):
        validate(AdvantageConfig, document, where="advantage")


def overlong(**fields: int) -> dict[str, Any]:
    return {"algorithm": {"overlong": fields}}


def test_length_penalty_may_begin_before_the_longest_response() -> None:
    validate(LoopConfig, overlong(limit_tokens=200, ramp_tokens=73), where="rl")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"engine": {"deterministic": True}, "sampling": {"replays_routing": True}}, "both"),
        ({"engine": {"draft_tokens": 2}}, "draft_tokens"),
        ({"update": {"updates_per_batch": 33}}, "33 updates on 32 groups"),
        ({"sampling": {"max_new_tokens": 1025}}, "rows of 1024 and responses of up to 1025"),
        (overlong(limit_tokens=200, ramp_tokens=72), "beyond 128 tokens, which no response has"),
        (overlong(), "beyond 16384 tokens"),
    ],
)
def test_configs_that_cannot_work_are_refused(fields: dict, match: str) -> None:
    document = {"algorithm": toy_config().algorithm.model_dump(), **fields}
    with pytest.raises(ConfigError, match=match):
        validate(LoopConfig, document, where="rl")


def test_rollouts_are_kept_by_the_functions_that_replace_samples() -> None:
    collected = collect(taking_turns(1.0, 0.0))
    sample = dataclasses.replace(collected.samples[0], weights=np.ones(4))
    assert type(sample) is type(collected.rollouts[0])
