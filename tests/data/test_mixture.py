import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.config import validate
from fivefold.data.config import MixtureConfig, WeightPoint
from fivefold.data.mixture import Mixture, divide_shares
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


def test_shares_take_their_part_and_leave_the_rest_as_it_was():
    config = MixtureConfig(shares={"long": 0.3, "planted": 0.1})
    tokens = {"a": 300, "b": 100}
    members = {"long": {"a.long": 30, "b.long": 10}, "planted": {"planted": 7}}
    divided = divide_shares(config, tokens, members)
    everything = {**tokens, "a.long": 1, "b.long": 1, "planted": 1}
    weights = Mixture(divided, everything, 8).weights_at(0)
    assert weights == pytest.approx([0.45, 0.225, 0.15, 0.075, 0.1])


def test_shares_hold_while_weights_change():
    config = MixtureConfig(
        weights={
            "a": (WeightPoint(weight=5), WeightPoint(from_tokens=800, weight=0)),
            "b": (WeightPoint(weight=0), WeightPoint(from_tokens=800, weight=2)),
        },
        shares={"planted": 0.25, "long": 0},
        max_epochs=3,
    )
    divided = divide_shares(config, {"a": 1, "b": 1}, {"planted": {"planted": 9}})
    assert divided.max_epochs == 3
    mixture = Mixture(divided, {"a": 1, "b": 1, "planted": 1}, 8)
    assert mixture.weights_at(0) == pytest.approx([0.75, 0, 0.25])
    assert mixture.weights_at(800) == pytest.approx([0, 0.75, 0.25])


def test_mixture_of_shares_alone_leaves_the_corpus_out():
    divided = divide_shares(
        MixtureConfig(shares={"planted": 1}), {"a": 10}, {"planted": {"planted": 3}}
    )
    assert set(Mixture(divided, {"a": 10, "planted": 3}, 8).choose(20)) == {1}


@pytest.mark.parametrize("shares", [{"long": 0.8, "planted": 0.3}, {"long": -0.1}, {"web": 0.1}])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ConfigError, match="shares"):
        validate(MixtureConfig, {"shares": shares}, where="mixture")
