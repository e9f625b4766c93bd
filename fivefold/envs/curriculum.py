"""Levels in a growing mix: each joins those before it, none is left behind.

Phase k (from 0) has `problems_per_level` problems, taken in turn from the first k + 1 levels; the
last phase never ends. Which level stands at an index, and how often it stood before, are closed
forms, so that the order needs no state.
"""


def level_at(index: int, levels: int, problems_per_level: int) -> tuple[int, int]:
    """Return which of `levels` stands at an index (from 0), and how often it stood before.

    With `problems_per_level` of 0 all levels take turns from the beginning.
    """
    if problems_per_level == 0:
        return index % levels, index // levels
    last = levels - 1
    phase = min(index // problems_per_level, last)
    turn, level = divmod(index - phase * problems_per_level, phase + 1)
    before = sum(_turns(problems_per_level, level, earlier + 1) for earlier in range(level, phase))
    return level, before + turn


def _turns(problems: int, level: int, open_levels: int) -> int:
    """Return how often a level has its turn among so many problems of one phase."""
    return len(range(level, problems, open_levels))
