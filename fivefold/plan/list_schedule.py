"""One pass of list scheduling: play time forward and decide whenever a rank is free.

A free rank starts the most urgent action that is ready and that its memory admits. Input gradients
come first, for the rank before waits for them, then forwards; weight gradients fill time that
would be idle, or make room. The order of forwards and input gradients can also be given, and then
only the weight gradients are placed.

Why no cap deadlocks a free order: a forward is admitted only if everything that the same
microbatch still has to put on this rank would fit too. Stages take microbatches in order, so the
oldest unfinished microbatch always finds room for its next forward.
"""

import heapq
from dataclasses import dataclass

from fivefold.plan.schedule import Action, Kind
from fivefold.plan.simulate import StageCosts


@dataclass(frozen=True)
class Policy:
    """How ties between good reasons are broken.

    `patience` is the share of a weight gradient's duration by which it may delay an action whose
    arrival is known. `ahead` bounds the microbatches that wait between forward and backward on a
    rank's first stage: one, and this many for each rank that follows; None leaves it to memory.
    """

    patience: float = 0.0
    ahead: float | None = None


class ListScheduler:
    """The state of one pass; `run` returns the table's rows."""

    def __init__(
        self,
        placement: tuple[int, ...],
        microbatches: int,
        costs: StageCosts,
        caps: tuple[float, ...],
        policy: Policy,
        orders: list[list[Action]] | None = None,
    ) -> None:
        """Set every rank to time zero; `orders[r]` fixes rank r's forwards and input gradients."""
        self.placement, self.microbatches, self.costs = placement, microbatches, costs
        self.caps, self.policy, self.orders = caps, policy, orders
        ranks, stages = len(caps), len(placement)
        self.local = [[s for s in range(stages) if placement[s] == rank] for rank in range(ranks)]
        self.counts: dict[Kind, list[int]] = {kind: [0] * stages for kind in ("F", "I", "W")}
        self.arrivals: dict[tuple[int, Kind], list[float]] = {
            (stage, kind): [] for stage in range(stages) for kind in ("F", "I")
        }
        self.arrivals[0, "F"] = [0.0] * microbatches
        self.placed = [0] * ranks
        self.held = [0.0] * ranks
        self.free = [0.0] * ranks
        self.rows: list[list[Action]] = [[] for _ in range(ranks)]
        self.wakes: list[tuple[float, int]] = [(0.0, rank) for rank in range(ranks)]

    def run(self) -> tuple[tuple[Action, ...], ...]:
        """Play until no rank has anything left to do."""
        while self.wakes:
            now, rank = heapq.heappop(self.wakes)
            if now < self.free[rank]:
                continue
            action, wake = self._decide(rank, now)
            if action is not None:
                self._start(rank, action, now)
            elif wake is not None:
                heapq.heappush(self.wakes, (wake, rank))
        missing = 3 * self.microbatches * len(self.placement) - sum(map(len, self.rows))
        assert missing == 0, f"list scheduling stopped {missing} actions short"
        return tuple(map(tuple, self.rows))

    def _decide(self, rank: int, now: float) -> tuple[Action | None, float | None]:
        """Return what to start now, or when a known arrival makes it worth asking again."""
        ready: list[Action] = []
        soonest: float | None = None
        blocked = False
        for action in self._candidates(rank):
            time = self._ready_time(action)
            if time is None:
                continue
            if action.kind == "F" and not self._admits(rank, action.stage):
                blocked = True
            elif time <= now:
                ready.append(action)
            else:
                soonest = time if soonest is None else min(soonest, time)
        if ready:
            return min(ready, key=lambda action: (action.kind == "F", -action.stage)), None
        weight = self._oldest_weight_gradient(rank)
        if weight is None:
            return None, soonest
        seconds = self.costs.weight_gradient[weight.stage]
        late = 0.0 if soonest is None else now + seconds - soonest
        if blocked or late <= self.policy.patience * seconds:
            return weight, None
        return None, soonest

    def _candidates(self, rank: int) -> list[Action]:
        """Return the next action of each kind and stage, or the one that the given order names."""
        if self.orders is None:
            return [
                Action(stage, kind, self.counts[kind][stage])
                for stage in self.local[rank]
                for kind in ("I", "F")
            ]
        place = self.placed[rank]
        return self.orders[rank][place : place + 1]

    def _ready_time(self, action: Action) -> float | None:
        """Return when the action may start, None if that is not known yet."""
        stage, kind, microbatch = action
        if kind == "I" and microbatch >= self.counts["F"][stage]:
            return None
        arrivals = self.arrivals[stage, kind]
        return arrivals[microbatch] if microbatch < len(arrivals) else None

    def _admits(self, rank: int, stage: int) -> bool:
        """May the rank hold one more microbatch of this stage, and of its later ones after it?"""
        needed = self.costs.memory[stage]
        if self.orders is None:
            needed = sum(self.costs.memory[other] for other in self.local[rank] if other >= stage)
        if self.held[rank] + needed > self.caps[rank] * (1 + 1e-9):
            return False
        if self.policy.ahead is None or stage != self.local[rank][0]:
            return True
        waiting = self.counts["F"][stage] - self.counts["I"][stage]
        return waiting < self.policy.ahead * (len(self.caps) - 1 - rank) + 1

    def _oldest_weight_gradient(self, rank: int) -> Action | None:
        pending = [
            Action(stage, "W", self.counts["W"][stage])
            for stage in self.local[rank]
            if self.counts["W"][stage] < self.counts["I"][stage]
        ]
        return min(pending, key=lambda action: (action.microbatch, -action.stage), default=None)

    def _start(self, rank: int, action: Action, now: float) -> None:
        """Run the action and tell the rank that waits for its result."""
        stage, kind, _ = action
        end = self.free[rank] = now + self.costs.seconds(action)
        self.rows[rank].append(action)
        self.counts[kind][stage] += 1
        self.placed[rank] += kind != "W"
        heapq.heappush(self.wakes, (end, rank))
        kept, memory = self.costs.weight_memory[stage], self.costs.memory[stage]
        self.held[rank] += {"F": memory, "I": kept - memory, "W": -kept}[kind]
        last = len(self.placement) - 1
        if kind == "F" and stage == last:
            self.arrivals[stage, "I"].append(end)
        target = stage + (1 if kind == "F" else -1)
        if kind != "W" and 0 <= target <= last:
            home = self.placement[target]
            travel = self.costs.edge[min(stage, target)] if home != rank else 0.0
            self.arrivals[target, kind].append(end + travel)
            heapq.heappush(self.wakes, (end + travel, home))
