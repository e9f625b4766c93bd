"""Choosing attempts against brute force; a verifier's failure is never a zero."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.config import validate
from fivefold.data.attempts import (
    TOO_EASY,
    TOO_HARD,
    UNSCORED,
    Attempt,
    PassCount,
    accept_passing,
    best_of,
    count_passes,
    filter_by_difficulty,
    read_pass_counts,
    write_pass_counts,
)
from fivefold.data.conversation_config import DifficultyConfig
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError

rewards = st.none() | st.sampled_from([-1.0, 0.0, 0.5, 1.0])
attempt_lists = st.lists(st.builds(Attempt, st.sampled_from("abcd"), rewards), max_size=8)
counts = st.integers(0, 8).flatmap(lambda n: st.builds(PassCount, st.integers(0, n), st.just(n)))


@given(attempt_lists, st.integers(0, 8))
def test_passes_of_parts_add_up_and_failures_of_verifiers_count_nowhere(
    attempts: list[Attempt[str]], cut: int
) -> None:
    whole = count_passes(attempts, 0.5)
    assert whole == count_passes(attempts[:cut], 0.5).plus(count_passes(attempts[cut:], 0.5))
    assert whole == count_passes([*attempts, Attempt("e", None)], 0.5)
    assert whole.n + sum(attempt.reward is None for attempt in attempts) == len(attempts)


@given(attempt_lists, st.sampled_from([-1.0, 0.0, 0.5]))
def test_rejection_sampling_keeps_passing_answers_once(
    attempts: list[Attempt[str]], threshold: float
) -> None:
    every = accept_passing(attempts, threshold)
    assert every == [a for a in attempts if a.reward is not None and a.reward >= threshold]
    distinct = accept_passing(attempts, threshold, identity=str)
    assert [a.answer for a in distinct] == list(dict.fromkeys(a.answer for a in every))


@given(attempt_lists)
def test_best_of_n_is_the_first_maximum(attempts: list[Attempt[str]]) -> None:
    found = best_of(attempts)
    scored = [a for a in attempts if a.reward is not None]
    if not scored:
        assert found is None
    else:
        top = max(a.reward for a in scored if a.reward is not None)
        assert found is next(a for a in scored if a.reward == top)


def test_best_of_negative_rewards_is_the_least_bad() -> None:
    worse, better = Attempt("a", -3.0), Attempt("b", -2.0)
    assert best_of([worse, Attempt("c", None), better]) is better


@given(st.dictionaries(st.text(max_size=3), counts), st.integers(0, 10), st.integers(0, 10))
def test_difficulty_window_equals_its_definition(
    table: dict[str, PassCount], first: int, second: int
) -> None:
    low, high = sorted((first, second))
    config = DifficultyConfig(lowest=low / 10, highest=high / 10, needs_pass=False, least_scored=2)
    found = filter_by_difficulty(table, config)
    assert set(found.kept) | set(found.dropped) == set(table)
    for key, (k, n) in table.items():
        if n < 2:
            assert found.dropped[key] == UNSCORED
        elif low * n > 10 * k:
            assert found.dropped[key] == TOO_HARD
        elif high * n < 10 * k:
            assert found.dropped[key] == TOO_EASY
        else:
            assert key in found.kept


@pytest.mark.parametrize("k", range(11))
def test_rate_on_the_edge_of_the_window_stays(k: int) -> None:
    config = DifficultyConfig(lowest=k / 10, highest=k / 10, needs_pass=False)
    assert filter_by_difficulty({"a": PassCount(k, 10)}, config).kept == ["a"]


def test_never_solved_is_dropped_unless_wanted() -> None:
    table = {"never": PassCount(0, 8), "once": PassCount(1, 8), "unscored": PassCount(0, 0)}
    found = filter_by_difficulty(table, DifficultyConfig())
    assert found.kept == ["once"]
    assert found.reasons == {TOO_HARD: 1, UNSCORED: 1}
    hard = filter_by_difficulty(table, DifficultyConfig(needs_pass=False))
    assert hard.kept == ["never", "once"]


def test_always_solved_is_dropped_where_a_miss_is_needed() -> None:
    table = {"all": PassCount(8, 8), "most": PassCount(7, 8), "never": PassCount(0, 8)}
    found = filter_by_difficulty(table, DifficultyConfig(needs_miss=True))
    assert found.kept == ["most"]
    assert found.dropped == {"all": TOO_EASY, "never": TOO_HARD}
    assert filter_by_difficulty(table, DifficultyConfig()).kept == ["all", "most"]


def test_impossible_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="`lowest`"):
        validate(DifficultyConfig, {"lowest": 0.8, "highest": 0.2}, where="difficulty")


@given(st.dictionaries(st.text(), counts), st.dictionaries(st.text(), counts))
def test_stored_counts_of_two_runs_add_up(
    tmp_path_factory: pytest.TempPathFactory, one: dict, two: dict
) -> None:
    path = tmp_path_factory.mktemp("counts") / "counts.jsonl"
    write_pass_counts(path, one)
    first = path.read_bytes()
    assert read_pass_counts(path) == one
    write_pass_counts(path, two)
    path.write_bytes(first + path.read_bytes())
    zero = PassCount(0, 0)
    expected = {key: one.get(key, zero).plus(two.get(key, zero)) for key in {**one, **two}}
    assert read_pass_counts(path) == expected


@pytest.mark.parametrize(
    "line",
    ['{"key": "a", "k": 3, "n": 2}', '{"key": "a", "k": 1}', "{", "[]", '{"key":1,"k":1,"n":1}'],
)
def test_line_that_is_no_count_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "counts.jsonl"
    path.write_text('{"key": "a", "k": 1, "n": 2}\n' + line + "\n")
    with pytest.raises(CorruptFileError, match="line 2"):
        read_pass_counts(path)
    with pytest.raises(MissingFileError, match="gone"):
        read_pass_counts(tmp_path / "gone")


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_reward_that_compares_with_nothing_is_refused(reward: float) -> None:
    with pytest.raises(ConfigError, match="finite reward"):
        Attempt("a", reward)
