"""ZB-H1 and ZB-H2: 1F1B with the weight gradient taken off the critical path.

The backward pass is split (arXiv 2401.10241, section 2): the input gradient I goes at once, the
weight gradient W waits until nothing else can run. Rank r delays its W by a number of microbatches
that grows with r, so that every rank holds as much as rank 0. ZB-H1 keeps the memory of 1F1B and
leaves a third of its bubble at equal costs; ZB-H2 admits up to 2 x ranks - 1 microbatches and
leaves none between first and last action.
"""

from fivefold.plan.schedule import Action, Schedule, loop_placement


def zb_h1(ranks: int, microbatches: int) -> Schedule:
    """Return ZB-H1: bubble (ranks - 1) x (F + I - W), at most `ranks` microbatches held."""
    return _handmade("zb_h1", ranks, microbatches, early=1)


def zb_h2(ranks: int, microbatches: int) -> Schedule:
    """Return ZB-H2: bubble (ranks - 1) x (F + I - 2 W), at most 2 x ranks - 1 microbatches held."""
    return _handmade("zb_h2", ranks, microbatches, early=2)


def _handmade(name: str, ranks: int, microbatches: int, *, early: int) -> Schedule:
    """Warm up with `early x (ranks - r) - early + 1` forwards, delay W by `early x r`."""
    rows = [
        _row(rank, microbatches, warmup=early * (ranks - 1 - rank) + 1, delay=early * rank)
        for rank in range(ranks)
    ]
    return Schedule(name, microbatches, loop_placement(ranks), tuple(rows))


def _row(stage: int, microbatches: int, *, warmup: int, delay: int) -> tuple[Action, ...]:
    warmup = min(warmup, microbatches)
    row = [Action(stage, "F", microbatch) for microbatch in range(warmup)]
    written = 0
    for microbatch in range(microbatches):
        row.append(Action(stage, "I", microbatch))
        if microbatch >= delay:
            row.append(Action(stage, "W", written))
            written += 1
        if warmup + microbatch < microbatches:
            row.append(Action(stage, "F", warmup + microbatch))
    return (*row, *(Action(stage, "W", microbatch) for microbatch in range(written, microbatches)))
