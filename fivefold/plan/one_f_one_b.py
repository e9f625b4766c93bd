"""1F1B and its interleaved form, both with fused backward passes (Megatron-LM, SC21 section 2.2).

After a warm-up of forwards each rank alternates one forward and one backward, so that rank r never
holds more than `ranks - r` microbatches. Interleaving gives each rank several chunks of the model
and divides the bubble by their number, for more memory and more messages.
"""

from fivefold.plan.schedule import Action, Kind, Schedule, loop_placement


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """Return plain 1F1B: bubble (ranks - 1) x (F + B), at most `ranks` microbatches in flight."""
    rows = []
    for rank in range(ranks):
        forwards = [Action(rank, "F", microbatch) for microbatch in range(microbatches)]
        backwards = [Action(rank, "B", microbatch) for microbatch in range(microbatches)]
        rows.append(_alternate(forwards, backwards, warmup=ranks - 1 - rank))
    return Schedule("1f1b", microbatches, loop_placement(ranks), tuple(rows))


def interleaved(ranks: int, chunks: int, microbatches: int) -> Schedule:
    """Return interleaved 1F1B with `chunks` stages a rank, microbatches in groups of `ranks`.

    The bubble is (ranks - 1) x (F + B) / chunks. A last group that is not whole is ordered as if it
    were and its missing microbatches are left out.
    """
    placement = loop_placement(ranks, chunks)
    whole = -(-microbatches // ranks) * ranks
    rows = []
    for rank in range(ranks):
        down = [rank + chunk * ranks for chunk in range(chunks)]
        forwards = _grouped("F", down, ranks, whole)
        backwards = _grouped("B", down[::-1], ranks, whole)
        warmup = 2 * (ranks - 1 - rank) + (chunks - 1) * ranks
        if chunks == 1:
            warmup = ranks - 1 - rank
        row = _alternate(forwards, backwards, warmup=warmup)
        rows.append(tuple(action for action in row if action.microbatch < microbatches))
    return Schedule(f"interleaved x{chunks}", microbatches, placement, tuple(rows))


def _grouped(kind: Kind, stages: list[int], group: int, microbatches: int) -> list[Action]:
    """Order the actions by group of microbatches, within it by stage, within that by microbatch."""
    return [
        Action(stage, kind, microbatch)
        for first in range(0, microbatches, group)
        for stage in stages
        for microbatch in range(first, first + group)
    ]


def _alternate(
    forwards: list[Action], backwards: list[Action], *, warmup: int
) -> tuple[Action, ...]:
    """Do `warmup` forwards, then forward and backward in turn, then the backwards that are left."""
    warmup = min(warmup, len(forwards))
    row = forwards[:warmup]
    for forward, backward in zip(forwards[warmup:], backwards, strict=False):
        row += [forward, backward]
    return (*row, *backwards[len(forwards) - warmup :])
