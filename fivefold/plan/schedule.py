"""Pipeline schedules as tables: for each rank, the order of its actions.

A stage is a contiguous piece of the model; a rank holds one or more of them. A microbatch passes
every stage forward (F) and back, either with one fused backward (B) or with two halves, the
gradient of the stage's input (I), which the stage before waits for, and the gradient of its
weights (W), which nothing waits for. The letters are those of torch's pipelining runtime, which
can run these tables.

Only the order is fixed here; times follow from costs (`simulate`). `find_faults` is the definition
of a valid table.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["F", "B", "I", "W"]


class Action(NamedTuple):
    """One piece of work on one rank."""

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


@dataclass(frozen=True)
class Schedule:
    """A table of actions.

    `rank_of_stage[s]` is where stage s lives; `actions[r]` is what rank r does, in order.
    """

    name: str
    microbatches: int
    rank_of_stage: tuple[int, ...]
    actions: tuple[tuple[Action, ...], ...]

    @property
    def stages(self) -> int:
        """Number of stages, over all ranks."""
        return len(self.rank_of_stage)

    @property
    def ranks(self) -> int:
        """Number of pipeline ranks."""
        return len(self.actions)


def loop_placement(ranks: int, chunks: int = 1) -> tuple[int, ...]:
    """Place stages round and round: stage s on rank s modulo `ranks` (1F1B, interleaved)."""
    return tuple(stage % ranks for stage in range(ranks * chunks))


def v_placement(ranks: int) -> tuple[int, ...]:
    """Place two stages a rank, down and back up: the first and the last meet on rank 0 (ZB-V)."""
    return (*range(ranks), *reversed(range(ranks)))


def inputs_of(action: Action, stages: int) -> list[tuple[Action, ...]]:
    """Return what has to end before the action may start; of each tuple one alternative exists.

    A forward waits for the stage before; a backward for its own forward and for the stage after,
    whose backward may be fused or split; a weight gradient for its own input gradient.
    """
    stage, kind, microbatch = action
    if kind == "F":
        return [(Action(stage - 1, "F", microbatch),)] if stage else []
    if kind == "W":
        return [(Action(stage, "I", microbatch),)]
    needs: list[tuple[Action, ...]] = [(Action(stage, "F", microbatch),)]
    if stage < stages - 1:
        after = stage + 1
        needs.append((Action(after, "I", microbatch), Action(after, "B", microbatch)))
    return needs


def find_faults(schedule: Schedule) -> list[str]:
    """Describe everything that is wrong with a table; an empty list means that it can run.

    Checks that every stage does F and either B or I and W exactly once for each microbatch, on its
    own rank, and that executing the ranks' orders never deadlocks.
    """
    faults = []
    for rank, row in enumerate(schedule.actions):
        strays = [str(action) for action in row if schedule.rank_of_stage[action.stage] != rank]
        if strays:
            faults.append(f"rank {rank} runs stages of other ranks: {', '.join(strays[:4])}")
    row_of_all = [action for row in schedule.actions for action in row]
    seen = set(row_of_all)
    if len(seen) != len(row_of_all):
        faults.append("some action stands twice")
    for stage in range(schedule.stages):
        for microbatch in range(schedule.microbatches):
            kinds = {kind for kind in ("F", "B", "I", "W") if (stage, kind, microbatch) in seen}
            if kinds not in ({"F", "B"}, {"F", "I", "W"}):
                found = ", ".join(sorted(kinds)) or "nothing"
                faults.append(f"stage {stage}, microbatch {microbatch} does {found}")
    if any(not 0 <= action.microbatch < schedule.microbatches for action in row_of_all):
        faults.append("some action names a microbatch that does not exist")
    return faults or _find_deadlock(schedule)


def _find_deadlock(schedule: Schedule) -> list[str]:
    """Run the table without times; report where every rank stands when none can go on."""
    done: set[Action] = set()
    places = [0] * schedule.ranks
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(schedule.actions):
            while places[rank] < len(row) and _is_ready(row[places[rank]], done, schedule.stages):
                done.add(row[places[rank]])
                places[rank] += 1
                moved = True
    stuck = [
        f"rank {rank} before {row[place]}"
        for rank, (row, place) in enumerate(zip(schedule.actions, places, strict=True))
        if place < len(row)
    ]
    return [f"deadlock: {'; '.join(stuck)}"] if stuck else []


def _is_ready(action: Action, done: set[Action], stages: int) -> bool:
    return all(any(option in done for option in options) for options in inputs_of(action, stages))


def schedule_to_csv(schedule: Schedule) -> str:
    """Write the table in the `compute_only` form of torch's pipelining runtime: a rank a line."""
    return "\n".join(",".join(map(str, row)) for row in schedule.actions) + "\n"
