"""What is chosen of one source's attempts: answers that are learned, problems that RL trains on.

Pure functions on problems with their answers and on (k, n). Answers = learned + dropped by reason,
asserted.

Surprise: an answer that was cut at the token limit is never learned, whatever its reward: it has no
end, and would teach to stop anywhere.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from fivefold.data.attempt_file import Answer, AttemptedProblem
from fivefold.data.attempts import (
    Attempt,
    PassCount,
    accept_passing,
    best_of,
    filter_by_difficulty,
)
from fivefold.data.conversation_config import ChooseConfig
from fivefold.text.conversation import write_messages

NOT_JUDGED = "could not be judged"
TRUNCATED = "cut at the token limit"
FAILED = "below the least reward"
REPEATED = "the same answer again"
SURPLUS = "more than one problem may give"
NOT_BEST = "not the best"


@dataclass
class Chosen:
    """What became of one source."""

    conversations: list[dict[str, Any]] = field(default_factory=list)
    """Lines for `data.conversation_file`."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Problems for RL, lines of a task file."""
    answers: int = 0
    """Answers that there were."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Answers that are not learned, by reason."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Problems that RL does not train on, by reason."""

    @property
    def heldout(self) -> int:
        """Conversations to validate on."""
        return sum(line["split"] == "heldout" for line in self.conversations)

    @property
    def learned_problems(self) -> int:
        """Problems of which an answer is learned or validated on."""
        return len({line["meta"]["id"] for line in self.conversations})


def choose(
    problems: Sequence[AttemptedProblem], counts: Mapping[str, PassCount], config: ChooseConfig
) -> Chosen:
    """Choose answers to learn, and problems for RL, of one source; `counts` are by problem id."""
    learned = filter_by_difficulty(counts, config.learned)
    # Counts alone may know of problems that nobody has tried to answer here.
    tried = {problem.id: counts[problem.id] for problem in problems}
    trained = filter_by_difficulty(tried, config.trained)
    chosen = Chosen(left_out=trained.reasons)
    taken = dict[str, list[Attempt[Answer]]]()
    for problem in problems:
        chosen.answers += len(problem.answers)
        if problem.id in learned.dropped:
            chosen.dropped[f"problem {learned.dropped[problem.id]}"] += len(problem.answers)
        elif found := _take(problem, config, chosen.dropped):
            taken[problem.id] = found
        if problem.id not in trained.dropped:
            chosen.rows.append(problem.row)
    heldout = _heldout(list(taken), config)
    for problem in problems:
        for attempt in taken.get(problem.id, ()):
            split = "heldout" if problem.id in heldout else "train"
            chosen.conversations.append(_line(problem, attempt, counts[problem.id], split))
    assert chosen.answers == len(chosen.conversations) + chosen.dropped.total(), "an answer is lost"
    return chosen


def _take(
    problem: AttemptedProblem, config: ChooseConfig, dropped: Counter[str]
) -> list[Attempt[Answer]]:
    """Return the answers of one problem that are learned; count the others."""
    attempts = problem.attempts
    judged = [attempt for attempt in attempts if attempt.reward is not None]
    whole = [attempt for attempt in judged if not attempt.answer.is_truncated]
    passing = accept_passing(whole, config.least_reward)
    dropped[NOT_JUDGED] += len(attempts) - len(judged)
    dropped[TRUNCATED] += len(judged) - len(whole)
    dropped[FAILED] += len(whole) - len(passing)
    if config.take == "best":
        best = best_of(passing)
        dropped[NOT_BEST] += max(len(passing) - 1, 0)
        return [] if best is None else [best]
    distinct = accept_passing(passing, config.least_reward, identity=_said)
    kept = distinct[: config.most_per_problem]
    dropped[REPEATED] += len(passing) - len(distinct)
    dropped[SURPLUS] += len(distinct) - len(kept)
    return kept


def _said(answer: Answer) -> str:
    return json.dumps(write_messages([answer.message]), sort_keys=True)


def _heldout(ids: Sequence[str], config: ChooseConfig) -> set[str]:
    """Return the problems to validate on: those of the smallest hashes."""
    wanted = round(len(ids) * config.heldout_share)
    if config.heldout_share and len(ids) > 1:
        wanted = min(max(wanted, 1), len(ids) - 1)
    seed = config.heldout_seed
    ranked = sorted(ids, key=lambda each: xxhash.xxh3_64_intdigest(f"{seed} {each}".encode()))
    return set(ranked[:wanted])


def _line(
    problem: AttemptedProblem, attempt: Attempt[Answer], count: PassCount, split: str
) -> dict[str, Any]:
    prompt = problem.row.get("messages") or [{"role": "user", "content": problem.row["prompt"]}]
    messages = [*prompt, *write_messages([attempt.answer.message])]
    meta = {"id": problem.id, "reward": attempt.reward, "k": count.k, "n": count.n}
    return {"messages": messages, "split": split, "meta": meta}
