"""Drawing prompts, and means with errors."""

import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_collect import ScriptedCompleter
from toy import ToySource, toy_config

from fivefold.errors import MismatchError
from fivefold.rl.examine import Examiner, mean_of_groups
from fivefold.rl.loop_config import EvaluationConfig
from fivefold.rl.prompt import Judgement, Prompt, PromptStream
from fivefold.rl.reason import UnjudgedError

WEIGHTS = st.lists(st.floats(0.1, 10), min_size=1, max_size=5)


def stream_of(weights: Sequence[float]) -> PromptStream:
    return PromptStream([ToySource(name=f"s{n}") for n in range(len(weights))], weights)


@given(WEIGHTS, st.integers(1, 60))
def test_sources_keep_to_their_shares_at_every_moment(weights: list[float], count: int) -> None:
    stream = stream_of(weights)
    for drawn in range(1, count + 1):
        stream.draw(1)
        for name, share in zip(stream.drawn, weights, strict=True):
            # Never far ahead; the furthest behind is always next (quota method).
            assert stream.drawn[name] < share / sum(weights) * drawn + 1
    assert sum(stream.drawn.values()) == count


@given(WEIGHTS, st.integers(0, 30), st.integers(1, 30))
def test_stream_goes_on_where_another_stood(weights: list[float], before: int, after: int) -> None:
    whole = [prompt.group for prompt in stream_of(weights).draw(before + after)]
    assert len(set(whole)) == before + after
    first = stream_of(weights)
    first.draw(before)
    second = stream_of(weights)
    second.seek(first.drawn)
    assert [prompt.group for prompt in second.draw(after)] == whole[before:]


def test_state_of_other_sources_is_refused() -> None:
    with pytest.raises(MismatchError, match="s0, s1; found s0"):
        stream_of([1, 1]).seek({"s0": 3})


@given(st.lists(st.lists(st.floats(-2, 2), max_size=4), max_size=8))
def test_error_is_that_of_the_prompts_means(groups: list[list[float]]) -> None:
    means = [statistics.fmean(group) for group in groups if group]
    found = mean_of_groups(groups)
    assert math.isnan(found.value) == (not means)
    if means:
        assert found.value == pytest.approx(statistics.fmean(means), abs=1e-12)
    assert math.isnan(found.error) == (len(means) < 2)
    if len(means) >= 2:
        expected = statistics.stdev(means) / math.sqrt(len(means))
        assert found.error == pytest.approx(expected, abs=1e-12)


def test_examination_asks_the_same_each_time_and_tells_sources_apart() -> None:
    evaluation = EvaluationConfig(prompts=2, rollouts=3, temperature=1.0)
    config = toy_config(evaluation=evaluation)
    number = iter(range(100))

    def fails_at_first(ids: Sequence[int]) -> float | None:
        return None if next(number) == 0 else 1.0

    sources = [ToySource(lambda ids: 0.5, "low"), ToySource(fails_at_first, "high")]
    prompts = [source.prompt(n) for source in sources for n in range(2)]
    completer = ScriptedCompleter()
    examiner = Examiner(completer, prompts, config, seed=4)
    found = asyncio.run(examiner.examine())
    metrics = found.metrics
    assert metrics["rl/eval_reward_mean"] == 0.75
    assert metrics["rl/eval_pass_rate"] == 0.5
    assert metrics["rl/eval_reward_mean_low"] == 0.5
    assert metrics["rl/eval_pass_rate_low"] == 0.0
    assert metrics["rl/eval_pass_rate_high"] == 1.0
    assert (metrics["rl/eval_failed_rollouts"], metrics["rl/eval_rollouts"]) == (1, 12)
    assert metrics["rl/eval_pass_error"] == pytest.approx(statistics.stdev([0, 0, 1, 1]) / 2)
    assert len(found.shown) == config.record.shown_rollouts
    first = list(completer.asked)
    assert len({ask.params.seed for ask in first}) == 12
    asyncio.run(examiner.examine())
    assert completer.asked[12:] == first


def test_held_out_answers_are_judged_together() -> None:
    """Each judgement ends once all have begun."""
    begun, all_begun = list[Prompt](), asyncio.Event()

    async def judge(prompt: Prompt) -> Judgement:
        begun.append(prompt)
        if len(begun) == 6:
            all_begun.set()
        await asyncio.wait_for(all_begun.wait(), 5)
        return Judgement(float(prompt.group[-1]), "scored")

    prompts = list[Prompt]()
    for plain in (ToySource().prompt(n) for n in range(3)):
        prompts.append(replace(plain, judge=lambda ids, plain=plain: judge(plain)))
    config = toy_config(evaluation=EvaluationConfig(prompts=3, rollouts=2))
    found = asyncio.run(Examiner(ScriptedCompleter(), prompts, config, seed=4).examine())
    assert found.metrics["rl/eval_failed_rollouts"] == 0
    assert all(reward == float(prompt.group[-1]) for prompt, _, reward in found.shown)


def test_examination_whose_judge_hangs_ends_before_all_have_hung() -> None:
    """Three judgements are given up as hanging, the others never end."""
    left = iter([True] * 3)

    async def judge(ids: Sequence[int]) -> Judgement:
        if not next(left, False):
            await asyncio.Event().wait()
        return Judgement(None, "infra", "timeout: no result within 5 s")

    prompts = [replace(ToySource().prompt(n), judge=judge) for n in range(8)]
    config = toy_config(evaluation=EvaluationConfig(prompts=8))
    sampling = config.sampling.model_copy(update={"unjudged_limit": 3})
    config = config.model_copy(update={"sampling": sampling})
    with pytest.raises(UnjudgedError, match="3 of the first 3 that cannot; 3 times infra: timeout"):
        asyncio.run(Examiner(ScriptedCompleter(), prompts, config, seed=4).examine())


def test_each_examination_counts_its_own_failures_and_keeps_their_reasons() -> None:
    number = iter(range(100))
    source = ToySource(lambda ids: 1.0 if next(number) % 8 < 3 else None)
    prompts = [source.prompt(n) for n in range(8)]
    config = toy_config(evaluation=EvaluationConfig(prompts=8))
    sampling = config.sampling.model_copy(update={"unjudged_limit": 6})
    config = config.model_copy(update={"sampling": sampling})
    examiner = Examiner(ScriptedCompleter(), prompts, config, seed=4)
    for _ in range(3):
        metrics = asyncio.run(examiner.examine()).metrics
        assert metrics["rl/eval_failed_rollouts"] == 5
        assert examiner.reasons.take()[0].total() == 5


def test_sources_that_do_not_train_have_no_part_in_the_numbers_of_all() -> None:
    sources = [ToySource(lambda ids: 0.5, "own"), ToySource(lambda ids: 1.0, "other")]
    prompts = [source.prompt(n) for source in sources for n in range(2)]
    config = toy_config(evaluation=EvaluationConfig(prompts=2))
    examiner = Examiner(ScriptedCompleter(), prompts, config, seed=4, beside={"other"})
    metrics = asyncio.run(examiner.examine()).metrics
    assert (metrics["rl/eval_pass_rate"], metrics["rl/eval_reward_mean"]) == (0.0, 0.5)
    assert metrics["rl/eval_pass_rate_other"] == 1.0
    assert metrics["rl/eval_rollouts"] == 4


def test_answer_that_the_engine_gave_up_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    judged = list[Sequence[int]]()

    def reward(ids: Sequence[int]) -> float:
        judged.append(ids)
        return 1.0

    prompts = [ToySource(reward).prompt(n) for n in range(4)]
    completer = ScriptedCompleter(lambda n, ask: {"finish": "abort"} if n in (1, 2) else {})
    config = toy_config(evaluation=EvaluationConfig(prompts=4))
    found = asyncio.run(Examiner(completer, prompts, config, seed=4).examine())
    assert len(judged) == 2
    assert found.metrics["rl/eval_pass_rate_toy"] == 1.0
    assert found.metrics["rl/eval_failed_rollouts"] == 2
    assert [reward for _, _, reward in found.shown] == [1.0, None]
    assert caplog.text.count("a held-out answer of `toy#1` is left out, infra: the engine") == 1
    assert "toy#2" not in caplog.text
