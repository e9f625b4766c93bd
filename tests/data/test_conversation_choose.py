"""Attempts on disk, and what is chosen of them: each answer is learned or dropped for a reason."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.data.attempt_file import (
    Answer,
    AttemptedProblem,
    append_attempts,
    read_attempts,
    resume_attempts,
)
from fivefold.data.attempts import PassCount, read_pass_counts, write_pass_counts
from fivefold.data.choose import ChooseStage
from fivefold.data.chosen import NOT_JUDGED, TRUNCATED, choose
from fivefold.data.conversation_config import ChooseConfig, DifficultyConfig
from fivefold.data.conversation_file import read_conversations
from fivefold.envs.config import FileConfig
from fivefold.envs.open_task import open_task
from fivefold.errors import CorruptFileError, MissingFileError
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.report.block import draw_block
from fivefold.stage import ProgressTask, StageContext
from fivefold.text.conversation import Message

ROW = {"messages": [{"role": "user", "content": "Say e."}], "verifier": {"kind": "format"}}


def answer(text: str, reward: float | None = 1.0, *, cut: bool = False) -> Answer:
    message = Message(role="assistant", content=text)
    state = "infra" if reward is None else "scored"
    return Answer(message, (1, 2), reward, state, "why", is_truncated=cut)


answers = st.builds(
    answer,
    st.sampled_from("abc"),
    st.sampled_from([None, 0.0, 0.5, 1.0]),
    cut=st.booleans(),
)
tried = st.lists(st.lists(answers, max_size=6), max_size=8)


def problems_of(found: list[list[Answer]]) -> list[AttemptedProblem]:
    return [AttemptedProblem(f"p{n}", ROW | {"id": f"p{n}"}, tuple(a)) for n, a in enumerate(found)]


def counts_of(problems: list[AttemptedProblem]) -> dict[str, PassCount]:
    return {problem.id: problem.count() for problem in problems}


class Bar:
    def advance(self, amount: float = 1, **shown: str) -> None:
        pass


@contextmanager
def track(description: str, total: float, unit: str) -> Iterator[ProgressTask]:
    yield Bar()


def write_input(directory: Path, name: str, problems: list[AttemptedProblem]) -> Path:
    append_attempts(directory / "attempts" / f"{name}.jsonl", problems)
    write_pass_counts(directory / "counts" / f"{name}.jsonl", counts_of(problems))
    return directory


def run(out: Path, inputs: dict[str, Path], **fields: Any) -> Path:
    out.mkdir(exist_ok=True)
    context = StageContext(0, "cpu", 1, StageMetrics(out.parent / "metrics.jsonl", "c"), track)
    ChooseStage("choose", ChooseConfig(**fields)).execute(inputs, out, context)
    return out


@given(tried, st.integers(1, 3))
def test_rejection_sampling_equals_its_definition(found: list[list[Answer]], most: int) -> None:
    problems = problems_of(found)
    config = ChooseConfig(most_per_problem=most, heldout_share=0)
    chosen = choose(problems, counts_of(problems), config)
    expected = []
    for problem in problems:
        right = [a for a in problem.answers if a.reward == 1 and not a.is_truncated]
        expected += [(problem.id, text) for text in list(dict.fromkeys(
            a.message.content for a in right))[:most]]  # fmt: skip
    lines = chosen.conversations
    assert [(line["meta"]["id"], line["messages"][-1]["content"]) for line in lines] == expected
    assert chosen.answers == sum(map(len, found)) == len(lines) + chosen.dropped.total()
    solved = [a for p in problems if p.count().k for a in p.answers]
    assert chosen.dropped[NOT_JUDGED] == sum(a.reward is None for a in solved)
    assert chosen.dropped[TRUNCATED] == sum(a.reward is not None and a.is_truncated for a in solved)


@given(tried)
def test_best_of_n_takes_one_answer_that_none_beats(found: list[list[Answer]]) -> None:
    problems = problems_of(found)
    window = DifficultyConfig(needs_pass=False)
    config = ChooseConfig(take="best", least_reward=0.5, learned=window, heldout_share=0)
    chosen = choose(problems, counts_of(problems), config)
    taken = {line["meta"]["id"]: line["meta"]["reward"] for line in chosen.conversations}
    assert len(taken) == len(chosen.conversations)
    for problem in problems:
        whole = [a.reward for a in problem.answers if a.reward is not None and not a.is_truncated]
        best = max(whole, default=0.0)
        assert taken.get(problem.id) == (best if best >= 0.5 else None)
    assert chosen.answers == len(taken) + chosen.dropped.total()


@given(tried)
def test_rl_gets_the_problems_that_are_solved_sometimes(found: list[list[Answer]]) -> None:
    problems = problems_of(found)
    chosen = choose(problems, counts_of(problems), ChooseConfig())
    wanted = []
    for problem in problems:
        rewards = {a.reward for a in problem.answers if a.reward is not None}
        if 1.0 in rewards and len(rewards) > 1:
            wanted.append(problem.id)
    assert [row["id"] for row in chosen.rows] == wanted
    assert len(wanted) + chosen.left_out.total() == len(problems)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=30), st.floats(0.01, 0.5))
def test_answers_of_a_problem_fall_on_one_side(sizes: list[int], share: float) -> None:
    problems = problems_of([[answer("abc"[n]) for n in range(size)] for size in sizes])
    config = ChooseConfig(heldout_share=share)
    chosen = choose(problems, counts_of(problems), config)
    sides: dict[str, set[str]] = {}
    for line in chosen.conversations:
        sides.setdefault(line["meta"]["id"], set()).add(line["split"])
    assert all(len(side) == 1 for side in sides.values())
    heldout = Counter(side for each in sides.values() for side in each)["heldout"]
    assert heldout == max(round(len(sizes) * share), 1)
    assert heldout < len(sizes)


def test_stage_joins_what_its_inputs_know(tmp_path: Path) -> None:
    first = problems_of([[answer("a", 0.0)], [answer("b"), answer("c", None)]])
    again = problems_of([[answer("d")], [answer("b"), answer("e", None)]])
    inputs = {
        "first": write_input(tmp_path / "1", "task", first),
        "again": write_input(tmp_path / "2", "task", again),
    }
    # RL knows that the second problem fails at times; it has no answers to give.
    write_pass_counts(tmp_path / "3" / "counts" / "task.jsonl", {"p1": PassCount(0, 3)})
    out = run(tmp_path / "out", {**inputs, "rl": tmp_path / "3"}, heldout_share=0.4)
    assert read_pass_counts(out / "counts" / "task.jsonl") == {
        "p0": PassCount(1, 2),
        "p1": PassCount(2, 5),
    }
    learned = list(read_conversations(out / "task.jsonl"))
    assert [c.messages[-1].content for c in learned] == ["d", "b"]
    assert sorted(str(c.split) for c in learned) == ["heldout", "train"]
    rows = open_task(FileConfig(path=str(out / "task" / "task.jsonl"), order="file"))
    assert [rows.problem(n).id for n in range(2)] == ["p0", "p1"]
    assert rows.name == "task"
    for block in (out / "page").iterdir():
        assert "cannot be drawn" not in draw_block(block), block
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert record["choose/answers_task"] == 6
    assert record["choose/learned_answers_task"] == 2


def test_nothing_to_choose_leaves_no_empty_file(tmp_path: Path) -> None:
    never = write_input(tmp_path / "1", "task", problems_of([[answer("a", 0.0)]]))
    out = run(tmp_path / "out", {"attempts": never})
    assert not (out / "task.jsonl").exists()
    assert not list((out / "task").glob("*"))
    with pytest.raises(MissingFileError, match="none in"):
        run(tmp_path / "out", {"attempts": tmp_path / "nowhere"})
    (never / "counts" / "task.jsonl").write_text('{"key": "other", "k": 0, "n": 1}\n')
    with pytest.raises(MissingFileError, match=r"`p0` in `counts/task\.jsonl`"):
        run(tmp_path / "out", {"attempts": never})


def test_two_problems_of_one_id_are_refused(tmp_path: Path) -> None:
    """Joined, answers to the one would be learned as answers to the other."""
    (problem,) = problems_of([[answer("a"), answer("b", 0.0)]])
    other = ROW | {"id": "p0", "messages": [{"role": "user", "content": "Say a."}]}
    path = write_input(tmp_path / "1", "task", [problem, AttemptedProblem("p0", other, ())])
    with pytest.raises(CorruptFileError, match=r"id `p0`.*found two, whose `messages` differ"):
        run(tmp_path / "out", {"attempts": path})
    write_input(tmp_path / "2", "task", [problem, problem])
    assert run(tmp_path / "out", {"attempts": tmp_path / "2"}).is_dir()


def test_outcome_tells_what_became_of_answers_and_foreign_counts_are_no_problems(
    tmp_path: Path,
) -> None:
    found = [[answer("a"), answer("b", cut=True)], [answer("c", 0.0)], [answer("a"), answer("c")]]
    inputs = {"attempts": write_input(tmp_path / "1", "task", problems_of(found))}
    write_pass_counts(tmp_path / "2" / "counts" / "task.jsonl", {"elsewhere": PassCount(0, 9)})
    out = run(tmp_path / "out", {**inputs, "rl": tmp_path / "2"})
    dropped = {TRUNCATED: 1, "problem solved too rarely": 1}
    outcome = {"answers": 5, "truncated": 1, "learned_problems": 2, "dropped": dropped}
    assert json.loads((out / "outcome.json").read_text()) == {"task": outcome}
    chosen = choose(problems_of(found), read_pass_counts(out / "counts/task.jsonl"), ChooseConfig())
    assert chosen.left_out.total() + len(chosen.rows) == len(found)


@given(tried.filter(bool))
def test_attempts_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, found: list[list[Answer]]
) -> None:
    path = tmp_path_factory.mktemp("attempts") / "task.jsonl"
    problems = problems_of(found)
    append_attempts(path, problems[:1])
    append_attempts(path, problems[1:])
    assert list(read_attempts(path)) == problems


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_cut_file_goes_on_after_its_last_whole_block(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    problems = problems_of([[answer("a")], [answer("b")], [answer("c")], [answer("a")]])
    append_attempts(path, problems[:2])
    size = path.stat().st_size
    append_attempts(path, problems[2:])
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    assert resume_attempts(path, 2) == (2 if cut >= size else 0)
    assert path.read_bytes() == whole[: size if cut >= size else 0]
    assert resume_attempts(tmp_path / "nowhere", 2) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("state", "fine"), ("reward", None), ("message", {"role": "nobody"}), ("ids", None)],
)
def test_line_that_is_no_problem_is_named(field: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    append_attempts(path, problems_of([[answer("a")], [answer("b")]]))
    first, second = path.read_text().splitlines()
    line = json.loads(second)
    line["attempts"][0][field] = value
    path.write_text(f"{first}\n{json.dumps(line)}\n")
    with pytest.raises(CorruptFileError, match="line 2"):
        list(read_attempts(path))
    with pytest.raises(MissingFileError, match="fivefold attempts"):
        list(read_attempts(tmp_path / "nowhere"))
