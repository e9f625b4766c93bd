"""What becomes of each layer's activations under a bound on bytes: a small knapsack.

A layer is kept; or computed again from its input, which costs its forward; or moved to the host,
which costs whatever of the copies compute does not hide; or computed again from an input that was
moved. A copy has the time of `window` block runs on either side, so that moved layers stand so far
apart and each has the link to itself: seconds add up over layers. Beside what the choice leaves on
the device there are a few moved runs on their way and one layer that is being computed again; both
are bounded by trying every size that they can have.

The choice is exact: dynamic programming over fronts of (bytes, seconds), thinned only where a front
grows beyond what a rank of equal layers can make.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fivefold.errors import ConfigError

_WIDEST = 4
"""Most block runs that a copy is given: beyond it too few layers can move to matter."""
_MOST_STATES = 512
"""States of a front before, of each share of the bytes, the fastest alone is followed."""


class ActivationBoundError(ConfigError):
    """No treatment of the layers keeps their activations under the bound."""


class LayerCost(NamedTuple):
    """One layer of a rank; bytes and seconds of one run."""

    kept_bytes: float
    """What its backward wants."""
    input_bytes: float
    """What computing it again wants."""
    forward: float
    backward: float
    runs: int = 1
    """Runs a microbatch, one after the other: depths of the MTP layer."""
    in_flight: int = 1
    """Most microbatches between its forward and backward."""
    staying_bytes: float = 0.0
    """Of `kept_bytes`, what no copy takes."""
    staying_input_bytes: float = 0.0
    """Of `input_bytes`, what no copy takes."""
    deferred_bytes: float = 0.0
    """What weight gradients that are put off want, not counted among the layers'."""

    def left_bytes(self, recompute: bool) -> float:
        """Return what a run leaves between forward and backward."""
        return self.input_bytes if recompute else self.kept_bytes

    def staying(self, recompute: bool) -> float:
        """Return what stays of it where the rest moves."""
        return self.staying_input_bytes if recompute else self.staying_bytes

    def moving(self, recompute: bool) -> float:
        """Return what moves of it."""
        return self.left_bytes(recompute) - self.staying(recompute)


class Treatment(NamedTuple):
    """What becomes of one layer's activations."""

    recompute: bool
    """All but the input is computed again."""
    move: bool
    """What is left waits on the host."""


KEEP, RECOMPUTE = Treatment(False, False), Treatment(True, False)
TREATMENTS = (KEEP, Treatment(False, True), RECOMPUTE, Treatment(True, True))
"""The dearer in bytes before the cheaper; of equal choices the first is taken."""
TREATMENT_NAMES = ("kept", "moved to the host", "recomputed", "recomputed from moved inputs")


@dataclass(frozen=True)
class ActivationChoice:
    """A treatment for each layer and what it amounts to."""

    treatments: tuple[Treatment, ...]
    window: int
    """Block runs that a copy takes at most."""
    held_bytes: float
    """Most on the device."""
    host_bytes: float
    """Most on the host."""
    added_seconds: tuple[float, ...]
    """Added to one microbatch, by layer."""

    @property
    def seconds(self) -> float:
        """Added to one microbatch."""
        return sum(self.added_seconds)

    def summary(self) -> str:
        """Say what becomes of how many layers."""
        count = Counter(self.treatments)
        names = dict(zip(TREATMENTS, TREATMENT_NAMES, strict=True))
        return ", ".join(f"{count[each]} {names[each]}" for each in TREATMENTS if count[each])


def choose_treatments(
    layers: Sequence[LayerCost],
    bound_bytes: float,
    *,
    host_bandwidth: float | None = None,
    on_the_way: int = 2,
    reserved_bytes: float = 0.0,
) -> ActivationChoice:
    """Return the treatments that cost least time and hold at most `bound_bytes`.

    `host_bandwidth` is in bytes a second each way; None: nothing moves. `on_the_way` moved runs are
    on the device at once: 2 where a backward follows its forward, 3 in a pipeline.
    `reserved_bytes` of the bound are taken whatever becomes of the layers.

    Raises:
        ActivationBoundError: there are none.
    """
    kept = sum(layer.in_flight * layer.runs * layer.kept_bytes for layer in layers)
    room = bound_bytes - reserved_bytes
    if kept <= room:
        return ActivationChoice((KEEP,) * len(layers), 1, kept, 0.0, (0.0,) * len(layers))
    best: ActivationChoice | None = None
    for knapsack in _knapsacks(layers, host_bandwidth, on_the_way):
        choice = knapsack.solve(room - knapsack.extra_bytes)
        if choice is not None and (best is None or _rank(choice) < _rank(best)):
            best = choice
        if best is not None and best.seconds == 0:
            break
    if best is None:
        least = min(sack.least_bytes() for sack in _knapsacks(layers, host_bandwidth, on_the_way))
        raise ActivationBoundError(
            expected=f"room for {least + reserved_bytes:,.0f} bytes of activations at least",
            found=f"a bound of {bound_bytes:,.0f} bytes",
            fix="Raise the bound, or shorten the rows of a microbatch",
        )
    return best


def hidden_seconds(layers: Sequence[LayerCost], layer: int, window: int) -> tuple[float, float]:
    """Return the forwards after a layer's and the backwards before it, `window` runs of each.

    Behind the last layer a rank goes on with the first, of another microbatch.
    """
    forward = backward = 0.0
    left = window
    for step in range(1, window + 1):
        other = layers[(layer + step) % len(layers)]
        runs = min(other.runs, left)
        forward, backward = forward + runs * other.forward, backward + runs * other.backward
        left -= runs
    return forward, backward


def can_move(layers: Sequence[LayerCost], layer: int, window: int) -> bool:
    """Is a layer away for some time, and are its own runs far enough apart?"""
    behind = sum(other.runs for other in layers[layer + 1 :])
    leaves = layers[layer].in_flight > 1 or behind > window
    return leaves and (window == 1 or layers[layer].runs == 1)


def added_seconds(
    layers: Sequence[LayerCost],
    layer: int,
    treatment: Treatment,
    window: int,
    host_bandwidth: float | None,
) -> float:
    """Return what a treatment adds to one microbatch: the forward again, copies in the open."""
    cost = layers[layer]
    seconds = cost.forward * treatment.recompute
    if treatment.move:
        assert host_bandwidth is not None, "there is a link to move by"
        copy = cost.moving(treatment.recompute) / host_bandwidth
        hidden = hidden_seconds(layers, layer, window)
        seconds += sum(max(0.0, copy - each) for each in hidden)
    return cost.runs * seconds


def _rank(choice: ActivationChoice) -> tuple[float, float, float]:
    return choice.seconds, choice.host_bytes, choice.window


def _knapsacks(
    layers: Sequence[LayerCost], host_bandwidth: float | None, on_the_way: int
) -> "Iterator[_Knapsack]":
    """Generate the problems with the largest moved run and the largest recomputed layer fixed."""
    again = sorted({0.0, *(layer.kept_bytes for layer in layers)})
    moved = sorted({layer.moving(recompute) for layer in layers for recompute in (False, True)})
    for most_again in again:
        yield _Knapsack(layers, None, on_the_way, 1, 0.0, most_again)
        if host_bandwidth is not None:
            for window, most_moved in itertools.product(range(1, _WIDEST + 1), moved):
                yield _Knapsack(layers, host_bandwidth, on_the_way, window, most_moved, most_again)


class _State(NamedTuple):
    """Some layers treated; a chain of such states is a choice."""

    held_bytes: float
    seconds: float
    treatment: Treatment
    before: "_State | None"


@dataclass(frozen=True)
class _Knapsack:
    """The problem with bounds on single runs in the place of their maxima."""

    layers: Sequence[LayerCost]
    host_bandwidth: float | None
    on_the_way: int
    window: int
    most_moved: float
    most_again: float

    @property
    def extra_bytes(self) -> float:
        """Bytes on the way and of the layer that is being computed again."""
        return self.on_the_way * self.most_moved + self.most_again

    def solve(self, room: float) -> ActivationChoice | None:
        """Return the fastest choice within `room` bytes, None if there is none."""
        last = min(self._front(room, 1.0), key=lambda state: state.seconds, default=None)
        if last is None:
            return None
        chain: list[Treatment] = []
        state: _State | None = last
        while state is not None:
            chain.append(state.treatment)
            state = state.before
        treatments = tuple(reversed(chain))
        pairs = list(zip(self.layers, treatments, strict=True))
        host = sum(
            layer.in_flight * layer.runs * layer.moving(treatment.recompute)
            for layer, treatment in pairs
            if treatment.move
        )
        moved = [layer.moving(treatment.recompute) for layer, treatment in pairs if treatment.move]
        again = [layer.kept_bytes for layer, treatment in pairs if treatment.recompute]
        held = last.held_bytes + self.on_the_way * max(moved, default=0.0)
        held += max(again, default=0.0)
        seconds = [
            added_seconds(self.layers, index, treatment, self.window, self.host_bandwidth)
            for index, treatment in enumerate(treatments)
        ]
        return ActivationChoice(treatments, self.window, held, host, tuple(seconds))

    def least_bytes(self) -> float:
        """Return the fewest bytes that any choice holds."""
        return self.extra_bytes + min(state.held_bytes for state in self._front(math.inf, 0.0))

    def _front(self, room: float, weight: float) -> list[_State]:
        """Return what no other choice beats in bytes and in `weight` times seconds."""
        # By the runs since the last one that moved; from `window` on the next may.
        fronts: dict[int, list[_State]] = {self.window: []}
        for index, layer in enumerate(self.layers):
            grown: dict[int, list[_State]] = {}
            for since, states in fronts.items():
                for treatment, held, seconds in self._options(index, since):
                    after = 1 if treatment.move else min(since + layer.runs, self.window)
                    bucket = grown.setdefault(after, [])
                    for before in states if index else [None]:
                        base = (0.0, 0.0) if before is None else before[:2]
                        if base[0] + held <= room:
                            added = base[0] + held, base[1] + weight * seconds
                            bucket.append(_State(*added, treatment, before))
            fronts = {since: _undominated(states) for since, states in grown.items()}
        return [state for states in fronts.values() for state in states]

    def _options(self, index: int, since: int) -> Iterator[tuple[Treatment, float, float]]:
        """Generate treatments of a layer with the bytes that stay and the seconds added."""
        layer = self.layers[index]
        for treatment in TREATMENTS:
            if treatment.recompute and layer.kept_bytes > self.most_again:
                continue
            left = layer.left_bytes(treatment.recompute)
            if treatment.move:
                is_apart = since >= self.window and can_move(self.layers, index, self.window)
                fits = layer.moving(treatment.recompute) <= self.most_moved
                if self.host_bandwidth is None or not (is_apart and fits):
                    continue
                left = layer.staying(treatment.recompute)
            held = layer.in_flight * layer.runs * left
            cost = self.layers, index, treatment, self.window, self.host_bandwidth
            yield treatment, held, added_seconds(*cost)


def _undominated(states: list[_State]) -> list[_State]:
    """Return the states that are faster than all with fewer bytes, fewest bytes first."""
    front: list[_State] = []
    for state in sorted(states, key=lambda state: state[:2]):
        if not front or state.seconds < front[-1].seconds:
            front.append(state)
    if len(front) > _MOST_STATES:
        low, high = front[0].held_bytes, front[-1].held_bytes
        shares = (int(_MOST_STATES * (s.held_bytes - low) / (high - low)) for s in front)
        front = list(dict(zip(shares, front, strict=True)).values())
    return front
