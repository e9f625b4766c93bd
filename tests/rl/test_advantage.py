"""Advantages against their closed forms; what happens to groups that are broken or say nothing."""

import dataclasses
import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tabular import make_sample

from fivefold.config import validate
from fivefold.errors import ConfigError
from fivefold.rl import preset
from fivefold.rl.advantage import (
    assign_advantages,
    group_advantages,
    overlong_penalty,
    repair_group,
)
from fivefold.rl.config import AdvantageConfig, AlgorithmConfig, OverlongConfig
from fivefold.rl.sample import Group, SampleError, group_samples

REWARDS = st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=2, max_size=9)


def algorithm(**advantage: object) -> AlgorithmConfig:
    return AlgorithmConfig(advantage=validate(AdvantageConfig, advantage, where="advantage"))


def make_group(rewards: list[float], wanted: int | None = None) -> Group:
    samples = [make_sample(n, reward=r, advantages=None) for n, r in enumerate(rewards)]
    return Group("g", tuple(samples), wanted or len(samples))


def assigned_values(group: Group, config: AlgorithmConfig) -> list[float]:
    """Return each sample's one advantage, which masked tokens do not have."""
    values = []
    for sample in assign_advantages([group], config).samples:
        assert sample.advantages is not None
        assert (sample.advantages[~sample.loss_mask] == 0).all()
        (value,) = set(sample.advantages[sample.loss_mask].tolist())
        values.append(value)
    return values


@given(REWARDS)
def test_advantages_equal_closed_forms(rewards: list[float]) -> None:
    assume(max(rewards) > min(rewards))
    mean = statistics.fmean(rewards)
    for std, deviation in (("sample", statistics.stdev), ("population", statistics.pstdev)):
        config = AdvantageConfig(std=std)  # pyright: ignore[reportArgumentType]
        expected = [(r - mean) / (deviation(rewards) + 1e-6) for r in rewards]
        assert group_advantages(rewards, config) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    centred = group_advantages(rewards, AdvantageConfig(method="mean"))
    assert centred == pytest.approx([r - mean for r in rewards], abs=1e-12)
    others = [statistics.fmean(rewards[:i] + rewards[i + 1 :]) for i in range(len(rewards))]
    leave_one_out = group_advantages(rewards, AdvantageConfig(method="rloo"))
    assert leave_one_out == pytest.approx(
        [r - other for r, other in zip(rewards, others, strict=True)], abs=1e-9
    )


@given(REWARDS, st.floats(0.1, 10), st.floats(-5, 5))
def test_grpo_does_not_see_scale_and_offset(rewards: list[float], scale: float, by: float) -> None:
    assume(max(rewards) - min(rewards) > 0.01)
    config = AdvantageConfig(std_epsilon=0.0)
    moved = group_advantages([scale * r + by for r in rewards], config)
    assert moved == pytest.approx(group_advantages(rewards, config), abs=1e-7)


def test_std_of_two_correct_among_eight_is_as_chosen() -> None:
    rewards = [1.0] * 2 + [0.0] * 6
    for std, first in (("population", 1.7320), ("sample", 1.6202)):
        config = AdvantageConfig(std=std)  # pyright: ignore[reportArgumentType]
        assert group_advantages(rewards, config)[0] == pytest.approx(first, abs=1e-4)


def test_group_of_one_is_refused_by_config_and_by_function() -> None:
    with pytest.raises(ConfigError, match="group_size"):
        validate(AdvantageConfig, {"group_size": 1}, where="advantage")
    with pytest.raises(ConfigError, match="at least 2 rewards"):
        group_advantages([1.0], AdvantageConfig())


@pytest.mark.parametrize("reward", [0.1, 0.0, 1.0, -0.7])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_group_without_variance_follows_the_policy(reward: float, size: int) -> None:
    group = make_group([reward] * size)
    dropped = assign_advantages([group], algorithm(zero_variance="drop"))
    assert dropped.samples == []
    assert dropped.counts["dropped_no_variance"] == 1
    assert not dropped.has_signal
    zeroed = assign_advantages([group], algorithm(zero_variance="zero"))
    assert len(zeroed.samples) == size
    assert zeroed.counts["no_variance"] == 1
    assert assigned_values(group, algorithm(zero_variance="zero")) == [0.0] * size
    assert not zeroed.has_signal
    for epsilon in (1e-6, 0.0):
        kept = algorithm(zero_variance="keep", std_epsilon=epsilon)
        assert assigned_values(group, kept) == [0.0] * size


@pytest.mark.parametrize("method", ["grpo", "mean", "rloo"])
def test_rewards_that_differ_by_rounding_alone_are_equal(method: str) -> None:
    rewards = [0.3 - 0.2, 0.1, 0.1]
    assert max(rewards) > min(rewards)
    for scale in (1e-9, 1.0, 1e9):
        group = make_group([scale * reward for reward in rewards])
        kept = algorithm(method=method, zero_variance="keep", std_epsilon=0.0)
        assert assigned_values(group, kept) == [0.0] * 3
        dropped = assign_advantages([group], algorithm(method=method))
        assert dropped.counts["dropped_no_variance"] == 1
    # A difference that is small and none of rounding is scaled up as any other.
    assert group_advantages(
        [0.1 + 1e-9, 0.1], AdvantageConfig(std="population", std_epsilon=0.0)
    ) == pytest.approx([1.0, -1.0])


@pytest.mark.parametrize("reward", [1.1e18, -1.7e308, math.inf, math.nan])
def test_rewards_too_large_to_calculate_with_are_refused(reward: float) -> None:
    with pytest.raises(SampleError, match=r"at most 1e\+18"):
        make_group([reward, 1.0, reward])
    group = make_group([1e18, -1e18])
    assert assigned_values(group, algorithm(method="mean")) == [1e18, -1e18]
    # What trains is fp32, and a gradient's norm sums squares.
    for method in ("grpo", "mean", "rloo"):
        values = np.array(assigned_values(group, algorithm(method=method)), np.float32)
        assert np.isfinite(np.square(values)).all()


def test_only_keep_lets_a_length_penalty_speak_in_a_group_of_equal_outcomes() -> None:
    samples = [
        make_sample(n, tokens, reward=1.0, advantages=None) for n, tokens in enumerate([4, 12])
    ]
    group = Group("g", tuple(samples), 2)
    overlong = OverlongConfig(limit_tokens=10, ramp_tokens=5)
    for policy, expected in (("keep", [0.5, -0.5]), ("zero", [0.0, 0.0])):
        config = algorithm(method="mean", zero_variance=policy)
        config = config.model_copy(update={"overlong": overlong})
        assert assigned_values(group, config) == expected


def test_penalty_of_length_is_the_ramp_of_dapo() -> None:
    config = OverlongConfig()
    table = {0: 0.0, 16_384: 0.0, 17_408: -0.25, 18_432: -0.5, 20_480: -1.0, 30_000: -1.0}
    assert {tokens: overlong_penalty(tokens, config) for tokens in table} == table


def test_truncated_samples_train_nothing_but_count_in_the_baseline() -> None:
    whole, cut = make_group([1.0, 0.0]).samples
    group = Group("g", (whole, dataclasses.replace(cut, is_truncated=True)), 2)
    config = AlgorithmConfig(advantage=AdvantageConfig(method="mean"), masks_truncated=True)
    assigned = assign_advantages([group], config)
    assert [sample.loss_tokens for sample in assigned.samples] == [4, 0]
    assert assigned.samples[0].advantages is not None
    assert assigned.samples[0].advantages[-1] == 0.5
    assert assigned.counts["truncated_masked"] == 1


@pytest.mark.parametrize("wanted", [2, 5, 8])
def test_group_of_v_valid_is_repeated_or_dropped(wanted: int) -> None:
    for valid in range(wanted + 1):
        group = make_group([float(n) for n in range(valid)], wanted)
        repaired = repair_group(group, "repeat")
        shrunk = repair_group(group, "shrink")
        if valid <= wanted / 2:
            assert repaired == shrunk == []
            counts = assign_advantages([group], algorithm()).counts
            assert counts["dropped_invalid"] == 1
            assert counts["kept"] == 0
            continue
        # As if the list of valid samples were cycled until the group is full.
        cycled = [group.samples[n % valid] for n in range(wanted)]
        assert [s.copies for s in repaired] == [cycled.count(s) for s in group.samples]
        assert sum(sample.copies for sample in repaired) == wanted
        assert shrunk == list(group.samples)
        assert len(group.samples) >= 2
        assigned = assign_advantages([group], algorithm(method="rloo"))
        expected = group_advantages(
            [float(n) for n in range(valid)], AdvantageConfig(method="rloo")
        )
        assert [s.advantages[-1] for s in assigned.samples if s.advantages is not None] == expected
        assert assigned.counts["kept"] == 1
        assert assigned.counts["repaired"] == (valid < wanted)


def test_groups_in_any_order_get_the_same_advantages() -> None:
    rewards = {"a": [1.0, 0.0, 0.5], "b": [0.0, 0.0, 1.0]}
    samples = [
        make_sample(n, group=name, reward=reward, advantages=None)
        for name, values in rewards.items()
        for n, reward in enumerate(values)
    ]
    shuffled = [samples[n] for n in np.random.default_rng(0).permutation(len(samples))]
    by_reward = []
    for order in (samples, shuffled):
        assigned = assign_advantages(group_samples(order, 3), algorithm()).samples
        by_reward.append(
            sorted(
                (s.group, s.reward, s.advantages[-1]) for s in assigned if s.advantages is not None
            )
        )
    assert by_reward[0] == by_reward[1]


def test_teacher_alone_needs_neither_group_nor_reward() -> None:
    group = Group("g", (make_sample(reward=None, advantages=None),), 1)
    assigned = assign_advantages([group], preset.distil())
    assert assigned.counts["kept"] == 1
    assert assigned.samples[0].advantages is not None
    assert not assigned.samples[0].advantages.any()


def test_sample_without_a_reward_is_refused_where_rewards_judge() -> None:
    samples = [make_sample(0), make_sample(1, reward=None)]
    with pytest.raises(SampleError, match="Leave failed rollouts out"):
        assign_advantages(group_samples(samples, 2), algorithm())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"advantage": None}, "neither"),
        ({"loss": {"kind": "gspo"}, "reduction": {"kind": "token_mean"}}, "sequence_mean"),
        ({"reduction": {"kind": "fixed"}}, "fixed_tokens"),
        ({"reduction": {"fixed_tokens": 3}}, "fixed_tokens"),
        ({"advantage": None, "distillation": {}, "overlong": {}}, "overlong"),
        ({"loss": {"kind": "tis", "weight_low": 3.0}}, "weight_high"),
        ({"loss": {"kind": "cispo", "ratio_low": 9.0}}, "ratio_high"),
        ({"overlong": {"limit_tokens": 5, "ramp_tokens": 6}}, "ramp"),
    ],
)
def test_impossible_algorithm_is_refused(document: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(AlgorithmConfig, document, where="algorithm")


def test_presets_survive_json() -> None:
    configs = [make() for make in (preset.icepop, preset.agentic, preset.distil, preset.grpo)]
    configs += [preset.dapo(), preset.rloo(), preset.gspo(), preset.cispo(), preset.tis()]
    configs.append(preset.dr_grpo(100))
    for config in configs:
        assert AlgorithmConfig.model_validate_json(config.model_dump_json()) == config
