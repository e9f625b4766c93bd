"""Times, bubbles and memory of a schedule under given costs.

Each rank runs its actions in order, each as early as its inputs have arrived. A message between
ranks takes the edge's seconds and a link carries one message at a time, in the order of sending;
compute does not wait for it. Activations of a microbatch live on a rank from the end of admission
(the start of its forward) to the end of its last backward piece; between I and W a part of them
stays.

The bubble rate is the zero-bubble paper's (arXiv 2401.10241, section 5.3): one minus the work of a
rank over the longest time from a rank's first start to its last end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fivefold.plan.schedule import Action, Schedule, inputs_of


@dataclass(frozen=True)
class StageCosts:
    """Costs of one microbatch, one entry a stage; times in seconds, memory in any one unit.

    `edge[s]` is the time of a message between stages s and s + 1, in either direction; it costs
    nothing where both live on one rank. `memory[s]` is held from F to the last backward piece, of
    which `weight_memory[s]` stays between I and W.
    """

    forward: tuple[float, ...]
    input_gradient: tuple[float, ...]
    weight_gradient: tuple[float, ...]
    edge: tuple[float, ...]
    memory: tuple[float, ...]
    weight_memory: tuple[float, ...]

    def seconds(self, action: Action) -> float:
        """Return the duration of an action; a fused backward takes both halves."""
        stage = action.stage
        if action.kind == "F":
            return self.forward[stage]
        if action.kind == "I":
            return self.input_gradient[stage]
        if action.kind == "W":
            return self.weight_gradient[stage]
        return self.input_gradient[stage] + self.weight_gradient[stage]


def even_costs(
    stages: int,
    forward: float = 1.0,
    input_gradient: float = 1.0,
    weight_gradient: float = 1.0,
    edge: float = 0.0,
    memory: float = 1.0,
    weight_memory: float = 1.0,
) -> StageCosts:
    """Return the same costs for every stage."""
    return StageCosts(
        forward=(forward,) * stages,
        input_gradient=(input_gradient,) * stages,
        weight_gradient=(weight_gradient,) * stages,
        edge=(edge,) * (stages - 1),
        memory=(memory,) * stages,
        weight_memory=(weight_memory,) * stages,
    )


@dataclass(frozen=True)
class Timeline:
    """When every action runs; `spans[r]` lists (action, start, end) of rank r in order."""

    schedule: Schedule
    spans: tuple[tuple[tuple[Action, float, float], ...], ...]
    peak_memory: tuple[float, ...]

    @property
    def makespan(self) -> float:
        """Seconds from the start of the step to the end of its last action."""
        return max(row[-1][2] for row in self.spans)

    @property
    def longest_span(self) -> float:
        """Seconds from first start to last end on the rank where that is longest."""
        return max(row[-1][2] - row[0][1] for row in self.spans)

    @property
    def work(self) -> tuple[float, ...]:
        """Busy seconds of each rank."""
        return tuple(sum(end - start for _, start, end in row) for row in self.spans)

    @property
    def bubble_rate(self) -> float:
        """Idle share of the average rank over the longest span."""
        return 1 - sum(self.work) / len(self.work) / self.longest_span


def simulate(schedule: Schedule, costs: StageCosts) -> Timeline:
    """Run a valid table under these costs.

    Raises:
        AssertionError: the table deadlocks; `find_faults` says where.
    """
    ends: dict[Action, float] = {}
    arrivals: dict[Action, float] = {}
    links: dict[tuple[int, int], float] = {}
    spans: list[list[tuple[Action, float, float]]] = [[] for _ in range(schedule.ranks)]
    places = [0] * schedule.ranks
    pending = set(range(schedule.ranks))
    while pending:
        moved = False
        for rank in sorted(pending):
            row, spans_of_rank = schedule.actions[rank], spans[rank]
            while places[rank] < len(row):
                action = row[places[rank]]
                ready = _ready_time(action, schedule, ends, arrivals)
                if ready is None:
                    break
                start = max(ready, spans_of_rank[-1][2] if spans_of_rank else 0.0)
                end = ends[action] = start + costs.seconds(action)
                spans_of_rank.append((action, start, end))
                _send(action, end, schedule, costs, links, arrivals)
                places[rank] += 1
                moved = True
            if places[rank] == len(row):
                pending.discard(rank)
        assert moved or not pending, f"schedule {schedule.name} deadlocks"
    peaks = tuple(peak_memory([span[0] for span in row], costs) for row in spans)
    return Timeline(schedule, tuple(map(tuple, spans)), peaks)


def _ready_time(
    action: Action,
    schedule: Schedule,
    ends: dict[Action, float],
    arrivals: dict[Action, float],
) -> float | None:
    """Return when the action's inputs are on its rank, None while some are not known."""
    ready = 0.0
    for options in inputs_of(action, schedule.stages):
        known = ends if options[0].stage == action.stage else arrivals
        time = next((known[option] for option in options if option in known), None)
        if time is None:
            return None
        ready = max(ready, time)
    return ready


def _send(
    action: Action,
    end: float,
    schedule: Schedule,
    costs: StageCosts,
    links: dict[tuple[int, int], float],
    arrivals: dict[Action, float],
) -> None:
    """Record when the action's result reaches the neighbour stage that waits for it."""
    if action.kind == "W":
        return
    target = action.stage + (1 if action.kind == "F" else -1)
    if not 0 <= target < schedule.stages:
        return
    link = schedule.rank_of_stage[action.stage], schedule.rank_of_stage[target]
    arrivals[action] = end
    if link[0] != link[1]:
        arrivals[action] = max(end, links.get(link, 0.0)) + costs.edge[min(action.stage, target)]
        links[link] = arrivals[action]


def peak_memory(row: Sequence[Action], costs: StageCosts) -> float:
    """Return the most that a rank holds at once; the order of its actions alone decides."""
    held = peak = 0.0
    for action in row:
        held += {
            "F": costs.memory[action.stage],
            "I": costs.weight_memory[action.stage] - costs.memory[action.stage],
            "W": -costs.weight_memory[action.stage],
            "B": -costs.memory[action.stage],
        }[action.kind]
        peak = max(peak, held)
    return peak
