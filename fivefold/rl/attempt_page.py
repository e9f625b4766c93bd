"""What the stage `attempts` tells: (k, n) of every problem, a line, and what the report shows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fivefold.artifact import write_json
from fivefold.data.attempt_file import STATES, AttemptedProblem
from fivefold.data.attempts import PassCount, write_pass_counts
from fivefold.data.choose_page import rate_block
from fivefold.rl.attempt_config import AttemptsConfig
from fivefold.stage import StageContext


def write_counts(
    out: Path,
    name: str,
    problems: Sequence[AttemptedProblem],
    config: AttemptsConfig,
    context: StageContext,
) -> None:
    """Write (k, n) of a source's problems, its metrics and its line."""
    counts = _count(problems, config)
    states = sum((problem.states for problem in problems), Counter[str]())
    cut = _count_cut(problems)
    write_pass_counts(out / "counts" / f"{name}.jsonl", counts)
    passed, judged = (sum(values) for values in zip(*counts.values(), strict=True))
    rate = passed / judged if judged else float("nan")
    values = {
        f"attempts/problems_{name}": len(problems),
        f"attempts/pass_rate_{name}": rate,
        f"attempts/passed_answers_{name}": passed,
        f"attempts/truncated_answers_{name}": cut,
        **{f"attempts/{state}_answers_{name}": states[state] for state in STATES},
    }
    failed = ", ".join(f"{states[s]} {s}" for s in STATES[1:] if states[s])
    line = (
        f"{name}: {len(problems)} problems, {passed} of {judged} judged answers pass ({rate:.1%})"
    )
    line += f"; {cut} cut at {config.max_new_tokens} tokens" if cut else ""
    line += f"; not judged: {failed}" if failed else ""
    context.metrics.write_once(len(problems), values, shown=line)


def write_page(
    page: Path, found: Mapping[str, Sequence[AttemptedProblem]], config: AttemptsConfig
) -> None:
    """Write the blocks of the stage: a table, rates of each source, a few answers."""
    rows, samples = [], []
    for name, problems in found.items():
        counts = _count(problems, config)
        write_json(page / f"20_rates_{name}.json", rate_block(name, counts))
        states = sum((problem.states for problem in problems), Counter[str]())
        passed = sum(count.k for count in counts.values())
        judged = (states[state] for state in STATES)
        rows.append([name, len(problems), passed, _count_cut(problems), *judged])
        samples += [_sample(name, p, config) for p in problems[: config.shown]]
    cut = f"cut at {config.max_new_tokens} tokens"
    table = {
        "kind": "table",
        "title": "Attempts",
        "note": f"{config.attempts} at each problem. Answers that could not be judged count as "
        "neither passed nor failed.",
        "columns": ["source", "problems", "passed", cut, *STATES],
        "rows": rows,
    }
    write_json(page / "10_attempts.json", table)
    if samples:
        block = {"kind": "samples", "title": "A few problems, first attempts", "note": None}
        write_json(page / "30_samples.json", {**block, "samples": samples})


def _count(problems: Sequence[AttemptedProblem], config: AttemptsConfig) -> dict[str, PassCount]:
    """Return (k, n) by problem; of one that was tried twice, both together."""
    counts = dict[str, PassCount]()
    for problem in problems:
        before = counts.get(problem.id, PassCount(0, 0))
        counts[problem.id] = before.plus(problem.count(config.pass_reward))
    return counts


def _count_cut(problems: Sequence[AttemptedProblem]) -> int:
    return sum(answer.is_truncated for problem in problems for answer in problem.answers)


def _sample(name: str, problem: AttemptedProblem, config: AttemptsConfig) -> dict[str, str]:
    k, n = problem.count(config.pass_reward)
    first = problem.answers[0].message
    thought = first.reasoning_content
    return {
        "label": f"{name}, solved {k} of {n}",
        "prompt": "\n".join(message["content"] for message in problem.row["messages"]) + "\n",
        "text": first.content if thought is None else f"({thought}) {first.content}",
    }
