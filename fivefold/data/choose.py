"""The stage `choose`: attempts become conversations to learn from, and problems worth RL.

    NAME.jsonl          conversations for `sft`, each with its split; one file a source
    task/NAME.jsonl     problems for RL, as a task file: `--task DIR/task/NAME.jsonl` reads it
    counts/NAME.jsonl   (k, n) of all problems, those of several inputs added up
    outcome.json        what became of the answers of each source

Every input may hold `attempts/NAME.jsonl` and `counts/NAME.jsonl`; one with counts alone, RL's
dumped rollouts for example, knows better how hard a problem is and has no answers to give.

Surprise: where nothing is chosen there is no file, for an empty one would be refused later, with
less to say about why.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fivefold.artifact import atomic_write, remove, write_json
from fivefold.data.attempt_file import AttemptedProblem, read_attempts
from fivefold.data.attempts import PassCount, read_pass_counts, write_pass_counts
from fivefold.data.choose_page import choose_page
from fivefold.data.chosen import Chosen, choose
from fivefold.data.conversation_config import ChooseConfig
from fivefold.errors import CorruptFileError, MissingFileError
from fivefold.stage import Stage, StageContext

logger = logging.getLogger(__name__)


class ChooseStage(Stage):
    """Chooses by (k, n) and reward; its inputs hold attempts, or counts alone."""

    what = "chooses answers and problems"
    is_seeded = False
    config: ChooseConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Write conversations, problems, counts and the page."""
        problems, counts = _gather(list(inputs.values()))
        chosen = dict[str, Chosen]()
        for name in ("task", "counts"):
            remove(out / name)
        with context.track("choosing answers", len(problems), "sources") as bar:
            for name, found in problems.items():
                chosen[name] = choose(found, counts[name], self.config)
                _write_source(out, name, chosen[name], counts[name])
                bar.advance(1, source=name)
        for name, what in chosen.items():
            _tell(name, what)
        outcome = {name: _outcome(what, problems[name]) for name, what in chosen.items()}
        write_json(out / "outcome.json", outcome)
        choose_page(out / "page", chosen, counts, self.config.shown)
        context.metrics.forget_after(-1)
        context.metrics.write(0, _metrics(chosen, counts))


def _gather(
    inputs: Sequence[Path],
) -> tuple[dict[str, list[AttemptedProblem]], dict[str, dict[str, PassCount]]]:
    """Return problems and counts by source; what several inputs know of a problem is joined."""
    counts: dict[str, dict[str, PassCount]] = defaultdict(dict)
    problems: dict[str, dict[str, AttemptedProblem]] = defaultdict(dict)
    for directory in inputs:
        for path in sorted((directory / "counts").glob("*.jsonl")):
            known = counts[path.stem]
            for key, count in read_pass_counts(path).items():
                known[key] = known.get(key, PassCount(0, 0)).plus(count)
        for path in sorted((directory / "attempts").glob("*.jsonl")):
            for problem in read_attempts(path):
                before = problems[path.stem].get(problem.id)
                if before is not None and before.row != problem.row:
                    raise _ambiguous(path, before, problem)
                answers = (() if before is None else before.answers) + problem.answers
                joined = AttemptedProblem(problem.id, problem.row, answers)
                problems[path.stem][problem.id] = joined
    if not problems:
        raise MissingFileError(
            expected="`attempts/*.jsonl` in an input of the stage",
            found="none in " + ", ".join(f"`{directory}`" for directory in inputs),
            fix="Name a stage of attempts in `needs`",
        )
    for name, found in problems.items():
        unknown = next((each for each in found if each not in counts[name]), None)
        if unknown is not None:
            raise MissingFileError(
                expected=f"(k, n) of `{unknown}` in `counts/{name}.jsonl`",
                found="no such line",
                fix="Sample anew: attempts and counts are written together",
            )
    return {name: list(found.values()) for name, found in problems.items()}, counts


def _ambiguous(path: Path, one: AttemptedProblem, other: AttemptedProblem) -> CorruptFileError:
    differing = [
        field
        for field in sorted(one.row.keys() | other.row.keys())
        if one.row.get(field) != other.row.get(field)
    ]
    return CorruptFileError(
        expected=f"one problem with the id `{one.id}` in the inputs of `choose`",
        found=f"two, whose {', '.join(f'`{field}`' for field in differing)} differ; the second in "
        f"`{path}`",
        fix="Give different problems different ids, and sample anew",
    )


def _write_source(out: Path, name: str, chosen: Chosen, counts: Mapping[str, PassCount]) -> None:
    for path, lines in (
        (out / f"{name}.jsonl", chosen.conversations),
        (out / "task" / f"{name}.jsonl", chosen.rows),
    ):
        remove(path)
        if lines:
            _write_lines(path, lines)
    write_pass_counts(out / "counts" / f"{name}.jsonl", counts)


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _tell(name: str, chosen: Chosen) -> None:
    logger.info(
        "%s: %s of %s answers to learn from (%s held out), %s problems for RL",
        name,
        f"{len(chosen.conversations):,}",
        f"{chosen.answers:,}",
        f"{chosen.heldout:,}",
        f"{len(chosen.rows):,}",
    )
    if not chosen.conversations:
        logger.warning("%s: no answer to learn from: %s", name, dict(+chosen.dropped))
    if not chosen.rows:
        logger.warning("%s: no problem for RL: %s", name, dict(chosen.left_out))


def _outcome(chosen: Chosen, problems: Sequence[AttemptedProblem]) -> dict[str, Any]:
    answers = (answer for problem in problems for answer in problem.answers)
    return {
        "answers": chosen.answers,
        "truncated": sum(answer.is_truncated for answer in answers),
        "learned_problems": chosen.learned_problems,
        "dropped": dict((+chosen.dropped).most_common()),
    }


def _metrics(
    chosen: Mapping[str, Chosen], counts: Mapping[str, Mapping[str, PassCount]]
) -> dict[str, float]:
    metrics = dict[str, float]()
    for name, what in chosen.items():
        metrics[f"choose/answers_{name}"] = what.answers
        metrics[f"choose/learned_answers_{name}"] = len(what.conversations)
        metrics[f"choose/problems_{name}"] = len(counts[name])
        metrics[f"choose/trained_problems_{name}"] = len(what.rows)
    return metrics
