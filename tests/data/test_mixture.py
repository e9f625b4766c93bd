from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fivefold.config import validate
from fivefold.data.config import MixtureConfig, WeightPoint
from fivefold.data.mixture import Mixture
from fivefold.errors import ConfigError


def constant(**weights: float) -> MixtureConfig:
    return MixtureConfig(
        weights={name: (WeightPoint(weight=weight),) for name, weight in weights.items()}
    )


@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_counts_stay_near_the_shares_at_every_moment(weights):
    names = [f"s{n}" for n in range(len(weights))]
    mixture = Mixture(
        constant(**dict(zip(names, weights, strict=True))), dict.fromkeys(names, 1), 8
    )
    share = np.array(weights) / sum(weights)
    counts = np.zeros(len(weights))
    for row in range(1, 300):
        counts[mixture.choose(1)[0]] += 1
        deficit = share * row - counts
        assert deficit.min() > -1
        # The largest deficit of k sources served in turn is below the harmonic number of k.
        assert deficit.max() < sum(1 / k for k in range(1, len(weights) + 1)) + 1e-9


def test_weights_change_with_tokens_seen():
    config = MixtureConfig(
        weights={
            "a": (WeightPoint(weight=1), WeightPoint(from_tokens=800, weight=0)),
            "b": (WeightPoint(from_tokens=800, weight=1),),
        }
    )
    chosen = Mixture(config, {"a": 1, "b": 1}, context_tokens=8).choose(200)
    assert chosen.tolist() == [0] * 100 + [1] * 100


def test_empty_weights_mix_in_proportion_to_tokens():
    chosen = Mixture(MixtureConfig(), {"a": 300, "b": 100}, 8).choose(400)
    assert np.bincount(chosen).tolist() == [300, 100]


def test_choices_in_pieces_equal_choices_at_once():
    tokens = {"a": 5, "b": 3, "c": 9}
    whole = Mixture(MixtureConfig(), tokens, 8).choose(100)
    pieces = Mixture(MixtureConfig(), tokens, 8)
    assert np.array_equal(np.concatenate([pieces.choose(n) for n in (1, 0, 42, 57)]), whole)


def test_unknown_source_and_zero_weights_are_refused():
    with pytest.raises(ConfigError, match="webb"):
        Mixture(constant(webb=1), {"web": 1}, 8)
    with pytest.raises(ConfigError, match="above zero"):
        Mixture(constant(web=0), {"web": 1}, 8)


LONG = {"a.long": "long", "b.long": "long", "planted": "planted"}


def test_shares_take_their_part_and_leave_the_rest_as_it_was():
    config = MixtureConfig(shares={"long": 0.3, "planted": 0.1})
    tokens = {"a": 300, "b": 100, "a.long": 30, "b.long": 10, "planted": 7}
    weights = Mixture(config, tokens, 8, groups=LONG).weights_at(0)
    assert weights == pytest.approx([0.45, 0.225, 0.15, 0.075, 0.1])


def test_shares_hold_while_weights_change():
    config = MixtureConfig(
        weights={
            "a": (WeightPoint(weight=5), WeightPoint(from_tokens=800, weight=0)),
            "b": (WeightPoint(weight=0), WeightPoint(from_tokens=800, weight=2)),
        },
        shares={"planted": 0.25, "long": 0},
    )
    tokens = {"a": 1, "b": 1, "planted": 9}
    mixture = Mixture(config, tokens, 8, groups={"planted": "planted"})
    assert mixture.weights_at(0) == pytest.approx([0.75, 0, 0.25])
    assert mixture.weights_at(800) == pytest.approx([0, 0.75, 0.25])


def test_mixture_of_shares_alone_leaves_the_corpus_out():
    config = MixtureConfig(shares={"planted": 1})
    mixture = Mixture(config, {"a": 10, "planted": 3}, 8, groups={"planted": "planted"})
    assert set(mixture.choose(20)) == {1}


def test_keys_of_source_and_tier_divide_their_weight_by_tokens():
    tokens = {"code": 50, "web@high": 300, "web@low": 100, "wiki@high": 10}
    config = constant(**{"web": 6, "@high": 2, "code": 2})
    # The most precise key that fits: both tiers of the web by `web`, the other by `@high`.
    assert Mixture(config, tokens, 8).weights_at(0) == pytest.approx([0.2, 0.45, 0.15, 0.2])
    config = constant(**{"web@low": 3, "web": 1})
    assert Mixture(config, tokens, 8).weights_at(0) == pytest.approx([0, 0.25, 0.75, 0])
    with pytest.raises(ConfigError, match="@mid"):
        Mixture(constant(**{"@mid": 1}), tokens, 8)


def test_lines_run_from_point_to_point():
    config = MixtureConfig(
        weights={
            "a": (WeightPoint(from_tokens=80, weight=4), WeightPoint(from_tokens=240, weight=0)),
            "b": (WeightPoint(weight=4),),
        },
        between="lines",
    )
    mixture = Mixture(config, {"a": 1, "b": 1}, 8)
    first = [float(mixture.weights_at(tokens)[0]) for tokens in (0, 80, 120, 160, 240, 999)]
    assert first == pytest.approx([0.5, 0.5, 0.375, 0.25, 0, 0])


def test_a_source_at_its_cap_gives_way_to_the_others():
    config = MixtureConfig(max_epochs=2, epoch_caps={"b": 1, "@low": 0.5})
    tokens = {"a": 10, "b": 80, "c@low": 10}
    rows = {"a": 100, "b": 20, "c@low": 10}
    mixture = Mixture(config, tokens, 8, pass_rows=rows)
    assert np.bincount(mixture.choose(225)).tolist() == [200, 20, 5]
    with pytest.raises(ConfigError, match="a after 200 rows"):
        mixture.choose(1)


Steps = list[tuple[int, Fraction]]


def literal_credits(weights: list[Steps], caps: list[int], history: list[int]) -> list[Fraction]:
    """Return what each source stands at before the next row, by the law, from the whole history.

    A source that is closed now, or has no weight now, stands at minus a million.
    """
    stand = [Fraction(0)] * len(caps)
    able: list[Fraction] = []
    for row in range(len(history) + 1):
        before = history[:row]
        now = [max((at, w) for at, w in steps if at <= 8 * row)[1] for steps in weights]
        able = [w if before.count(k) < caps[k] else Fraction(0) for k, w in enumerate(now)]
        if sum(able):
            stand = [c + w / sum(able) for c, w in zip(stand, able, strict=True)]
        if row < len(history):
            stand[history[row]] -= 1
    return [c if w else Fraction(-(10**6)) for c, w in zip(stand, able, strict=True)]


@settings(max_examples=60)
@given(data=st.data())
def test_choices_follow_the_law_to_the_row(data):
    count = data.draw(st.integers(1, 4))
    names = [f"s{k}" for k in range(count)]
    later = st.lists(
        st.tuples(st.sampled_from([8, 24, 40, 80]), st.integers(0, 9)),
        max_size=2,
        unique_by=lambda point: point[0],
    )
    weights: list[Steps] = [
        [(at, Fraction(w)) for at, w in [(0, data.draw(st.integers(1, 9))), *data.draw(later)]]
        for _ in names
    ]
    starts = {at for steps in weights for at, _ in steps}
    assume(all(sum(max(p for p in one if p[0] <= at)[1] for one in weights) for at in starts))
    caps = [data.draw(st.integers(0, 12)) for _ in names]
    config = MixtureConfig(
        weights={
            name: tuple(WeightPoint(from_tokens=at, weight=float(w)) for at, w in steps)
            for name, steps in zip(names, weights, strict=True)
        },
        max_epochs=1,
    )
    rows = dict(zip(names, caps, strict=True))
    mixture = Mixture(config, dict.fromkeys(names, 1), 8, pass_rows=rows)
    history: list[int] = []
    for _ in range(sum(caps) + 1):
        exact = literal_credits(weights, caps, history)
        best = max(exact)
        if best == -(10**6):
            with pytest.raises(ConfigError, match="caps"):
                mixture.choose(1)
            return
        choice = int(mixture.choose(1)[0])
        # Thirds are not exact in binary: where sources are level, rounding may choose among them.
        assert best - exact[choice] < Fraction(1, 10**9)
        history.append(choice)
    raise AssertionError("more rows than all caps together")


def test_level_sources_take_turns_by_name():
    assert Mixture(constant(b=1, a=1), {"a": 1, "b": 1}, 8).choose(6).tolist() == [0, 1] * 3


def test_caps_share_out_what_is_left_in_proportion():
    """Filling of vessels: rates are equal to weights until a vessel is full."""
    names, weights, caps = ["a", "b", "c"], [5.0, 3.0, 2.0], [100, 200, 10_000]
    rows = dict(zip(names, caps, strict=True))
    config = MixtureConfig(
        weights={n: (WeightPoint(weight=w),) for n, w in zip(names, weights, strict=True)},
        max_epochs=1,
    )
    counts = np.bincount(
        Mixture(config, dict.fromkeys(names, 1), 8, pass_rows=rows).choose(600), minlength=3
    )
    # a is full after 200 rows (60 of b, 40 of c), b after 140/0.6 more; then c is alone.
    until_b = 200 + 140 / 0.6
    expected = np.array([100, 200, 40 + 0.4 * 140 / 0.6 + 600 - until_b])
    assert np.abs(counts - expected).max() <= 2


def test_resumed_choices_are_those_of_one_run_with_caps():
    config = MixtureConfig(max_epochs=1.5)
    tokens, rows = {"a": 5, "b": 3, "c": 9}, {"a": 10, "b": 30, "c": 60}
    whole = Mixture(config, tokens, 8, pass_rows=rows).choose(140)
    first, second = (Mixture(config, tokens, 8, pass_rows=rows) for _ in range(2))
    begin = first.choose(37)
    second.credits, second.given = first.credits.copy(), first.given.copy()
    assert np.array_equal(np.concatenate([begin, second.choose(103)]), whole)


@pytest.mark.parametrize("shares", [{"long": 0.8, "planted": 0.3}, {"long": -0.1}, {"web": 0.1}])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ConfigError, match="shares"):
        validate(MixtureConfig, {"shares": shares}, where="mixture")
