"""The knapsack over layers against every combination, tried one by one."""

import itertools
import random

import pytest

from fivefold.plan.activation_choice import (
    KEEP,
    TREATMENTS,
    ActivationBoundError,
    LayerCost,
    Treatment,
    can_move,
    choose_treatments,
    hidden_seconds,
)

BANDWIDTH = 10.0


def evaluate(
    layers: list[LayerCost], treatments: tuple[Treatment, ...], window: int, on_the_way: int
) -> tuple[float, float] | None:
    """Return bytes and seconds of one combination, None if copies would share the link."""
    held = seconds = 0.0
    largest, again = 0.0, 0.0
    last = None
    for index, (layer, treatment) in enumerate(zip(layers, treatments, strict=True)):
        left = layer.input_bytes if treatment.recompute else layer.kept_bytes
        if treatment.recompute:
            seconds += layer.runs * layer.forward
            again = max(again, layer.kept_bytes)
        if not treatment.move:
            held += layer.in_flight * layer.runs * left
            continue
        between = sum(each.runs for each in layers[(last or 0) + 1 : index])
        if (last is not None and between + 1 < window) or not can_move(layers, index, window):
            return None
        last, largest = index, max(largest, left)
        for hidden in hidden_seconds(layers, index, window):
            seconds += layer.runs * max(0.0, left / BANDWIDTH - hidden)
    return held + on_the_way * largest + again, seconds


def random_layers(seed: int, count: int) -> list[LayerCost]:
    generator = random.Random(seed)
    kinds = [(generator.uniform(1, 20), generator.uniform(0.2, 2)) for _ in range(3)]
    layers = []
    for _ in range(count):
        kept, forward = generator.choice(kinds)
        layers.append(
            LayerCost(kept, 0.1 * kept, forward, 2 * forward, in_flight=generator.choice((1, 3)))
        )
    return [*layers, LayerCost(5.0, 0.5, 0.5, 1.0, runs=3)]


@pytest.mark.parametrize("seed", range(12))
def test_choice_is_the_best_of_all_combinations(seed: int) -> None:
    layers = random_layers(seed, 4)
    everything = sum(layer.in_flight * layer.runs * layer.kept_bytes for layer in layers)
    bound = random.Random(seed).uniform(0.2, 0.9) * everything
    found = [
        result
        for combination in itertools.product(TREATMENTS, repeat=len(layers))
        for window in range(1, 5)
        if (result := evaluate(layers, combination, window, 2)) is not None
    ]
    fitting = [seconds for held, seconds in found if held <= bound]
    if not fitting:
        least = min(held for held, _ in found)
        with pytest.raises(ActivationBoundError, match=f"{least:,.0f} bytes"):
            choose_treatments(layers, bound, host_bandwidth=BANDWIDTH)
        return
    choice = choose_treatments(layers, bound, host_bandwidth=BANDWIDTH)
    assert choice.seconds == pytest.approx(min(fitting))
    again = evaluate(layers, choice.treatments, choice.window, 2)
    assert again is not None
    assert (choice.held_bytes, choice.seconds) == pytest.approx(again)
    assert choice.held_bytes <= bound


def test_enough_room_keeps_everything() -> None:
    layers = random_layers(0, 5)
    choice = choose_treatments(layers, 10**6, host_bandwidth=BANDWIDTH)
    assert set(choice.treatments) == {KEEP}
    assert (choice.seconds, choice.host_bytes) == (0, 0)


def test_a_fast_link_hides_all_and_a_slow_one_recomputes() -> None:
    layers = [LayerCost(10.0, 1.0, 1.0, 2.0) for _ in range(12)]
    fast = choose_treatments(layers, 60.0, host_bandwidth=10.0)
    assert fast.seconds == 0
    assert not any(treatment.recompute for treatment in fast.treatments)
    slow = choose_treatments(layers, 60.0, host_bandwidth=0.5)
    none = choose_treatments(layers, 60.0)
    assert 0 < slow.seconds <= none.seconds
    assert none.summary() == "5 kept, 7 recomputed" or none.seconds == 8


def test_wider_windows_move_every_other_layer_for_nothing() -> None:
    # Two forwards hide one copy.
    layers = [LayerCost(20.0, 1.0, 1.0, 2.0) for _ in range(12)]
    choice = choose_treatments(layers, 12 * 20 - 3 * 20 + 40, host_bandwidth=10.0)
    assert choice.window >= 2
    assert choice.seconds == 0
    moved = [index for index, treatment in enumerate(choice.treatments) if treatment.move]
    assert min(b - a for a, b in itertools.pairwise(moved)) >= choice.window


def test_large_problems_stay_near_the_relaxed_optimum() -> None:
    # Without a link only recomputation is left: fractions of layers bound it from below.
    generator = random.Random(5)
    layers = [
        LayerCost(size := generator.uniform(5, 20), 0.1 * size, generator.uniform(1, 2), 3.0)
        for _ in range(24)
    ]
    bound = 0.5 * sum(layer.kept_bytes for layer in layers)
    choice = choose_treatments(layers, bound)
    assert choice.held_bytes <= bound
    to_save = sum(layer.kept_bytes for layer in layers) - bound
    relaxed = 0.0
    for layer in sorted(layers, key=lambda each: each.forward / each.kept_bytes):
        share = min(1.0, to_save / (0.9 * layer.kept_bytes))
        to_save -= share * 0.9 * layer.kept_bytes
        relaxed += share * layer.forward
    assert relaxed <= choice.seconds <= relaxed + 6
