"""When a send may be waited for without a deadlock, read off the table.

gloo reports a send as done only to who waits for it, and waiting too early hangs: the receiver may
itself wait for us before it asks. A send to rank q is safe to wait for once a message has come from
q that q sent after it had asked for ours; then nothing is missing but the transfer.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from fivefold.plan.schedule import Action, Kind, Schedule

_DIRECTION = {"SEND_F": 1, "SEND_B": -1}


class Step(NamedTuple):
    """One entry of a lowered row."""

    stage: int
    kind: str
    """F, B, I or W; SEND_F, RECV_F, SEND_B or RECV_B; REDUCE_GRAD."""
    microbatch: int | None
    """None for REDUCE_GRAD."""


def find_safe_waits(
    lowered: Mapping[int, Sequence[Step]], rank: int, schedule: Schedule
) -> dict[Action, list[Action]]:
    """Return which sends of a rank may be waited for at which of its actions.

    A send goes to the first action after it that uses a message of the kind described above; the
    last of a step go nowhere. Sends are named by the stage and direction (F or B) they come from.
    """
    homes = schedule.rank_of_stage
    place: dict[Step, int] = {}
    for row in lowered.values():
        place.update((step, index) for index, step in enumerate(row))
    found: dict[Action, list[Action]] = {}
    for index, (stage, kind, microbatch) in enumerate(lowered[rank]):
        if kind not in _DIRECTION:
            continue
        assert microbatch is not None, "a message belongs to a microbatch"
        target = stage + _DIRECTION[kind]
        asked = place[Step(target, kind.replace("SEND", "RECV"), microbatch)]
        for step in lowered[rank][index + 1 :]:
            source = _message_used(step, schedule.stages)
            is_theirs = source is not None and homes[source.stage] == homes[target]
            if source is not None and is_theirs and place[source] > asked:
                assert step.microbatch is not None, "an action belongs to a microbatch"
                user = Action(step.stage, cast(Kind, step.kind), step.microbatch)
                sent = Action(stage, "F" if kind == "SEND_F" else "B", microbatch)
                found.setdefault(user, []).append(sent)
                break
    return found


def _message_used(step: Step, stages: int) -> Step | None:
    """Return the send whose message an action uses, None if it uses none; it may be local."""
    if step.kind == "F" and step.stage > 0:
        return Step(step.stage - 1, "SEND_F", step.microbatch)
    if step.kind in ("B", "I") and step.stage < stages - 1:
        return Step(step.stage + 1, "SEND_B", step.microbatch)
    return None
