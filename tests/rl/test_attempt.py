"""Attempts: (k, n) of each problem, whoever sampled; a kill loses a batch and failures are no 0."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rl_stage import tokenizer_of, write_start
from toy import ENGINE, KilledError, context_of

from fivefold.data.attempt_file import read_attempts
from fivefold.data.attempts import PassCount, read_pass_counts
from fivefold.data.choose import ChooseStage
from fivefold.data.conversation_config import ChooseConfig, ConversationsConfig
from fivefold.data.conversation_file import read_conversations
from fivefold.envs.config import FileConfig, FunctionTaskConfig, ProceduralConfig
from fivefold.envs.open_task import open_task
from fivefold.envs.row import read_row, write_row
from fivefold.envs.task import name_group
from fivefold.errors import ConfigError, MissingFileError
from fivefold.metrics import read_metrics
from fivefold.report.block import draw_block
from fivefold.rl.attempt import name_problems
from fivefold.rl.attempt_config import AttemptedConfig, AttemptsConfig, DumpCountsConfig
from fivefold.rl.attempt_stage import AttemptsStage, DumpCountsStage
from fivefold.rl.dump import write_dump
from fivefold.rl.reason import UnjudgedError
from fivefold.rl.rollout import Rollout
from fivefold.rl.sample import NOT_SAMPLED
from fivefold.rl.solve_count import count_dumps, problem_of_group
from fivefold.train.sft_config import SftConfig
from fivefold.train.stages import SftStage

TASK = """
def problem(index, seed):
    return {"id": f"p{index}", "prompt": f"Say {'aeiou'[index % 5]}.", "number": index}


def reward(answer, arguments):
    if "a" in answer:
        raise ValueError("an answer that nobody can judge")
    return float("e" in answer)


def raises(answer, arguments):
    raise ValueError("never")
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    tokenizer = tokenizer_of(
        "The keeper counted 1234 waves, then slept. What did the keeper do on the hill? "
    )
    write_start(root / "start" / "checkpoint", tokenizer, 0)
    tokenizer.save_pretrained(root / "tokenizer")
    (root / "task.py").write_text(TASK)
    return {name: root / name for name in ("start", "tokenizer")}


def config_of(inputs: dict[str, Path], judge: str = "reward", **fields: Any) -> AttemptsConfig:
    place = inputs["start"].parent / "task.py"
    verifier = {"kind": "function", "target": f"{place}:{judge}"}
    task = FunctionTaskConfig(target=f"{place}:problem", verifier=verifier, size=20)
    whole: dict[str, Any] = {
        "sources": {"say": AttemptedConfig(task=task, problems=14)},
        "attempts": 6,
        "max_new_tokens": 6,
        "thinks": False,
        "batch_problems": 4,
        "engine": ENGINE,
    }
    return AttemptsConfig(**(whole | fields))


@pytest.fixture(scope="module")
def tried(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tried")
    AttemptsStage("attempts", config_of(inputs)).execute(inputs, root / "out", context_of(root))
    return root


def test_counts_are_those_of_the_answers_and_failures_stand_apart(tried: Path) -> None:
    problems = list(read_attempts(tried / "out" / "attempts" / "say.jsonl"))
    assert [problem.id for problem in problems] == [f"p{n}" for n in range(14)]
    counts = read_pass_counts(tried / "out" / "counts" / "say.jsonl")
    states = Counter[str]()
    for problem in problems:
        assert len(problem.answers) == 6
        said = [answer.message.content for answer in problem.answers]
        judged = [text for text in said if "a" not in text]
        assert counts[problem.id] == (sum("e" in text for text in judged), len(judged))
        for answer in problem.answers:
            assert (answer.reward is None) == ("a" in answer.message.content)
            assert "nobody can judge" in answer.detail or answer.state == "scored"
            states[answer.state] += 1
    assert 0 < states["invalid"] < states["scored"]
    (record,) = read_metrics(tried / "metrics.jsonl")
    assert record["attempts/invalid_answers_say"] == states["invalid"]
    assert record["attempts/scored_answers_say"] == sum(n for _, n in counts.values())
    assert record["attempts/pass_rate_say"] == pytest.approx(
        sum(k for k, _ in counts.values()) / sum(n for _, n in counts.values())
    )
    for block in (tried / "out" / "page").iterdir():
        assert "cannot be drawn" not in draw_block(block), block


def test_answers_of_one_problem_differ_and_seeds_decide_them(
    tried: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    path = tried / "out" / "attempts" / "say.jsonl"
    (first, *_) = read_attempts(path)
    assert len({answer.ids for answer in first.answers}) == 6
    stage = AttemptsStage("attempts", config_of(inputs))
    stage.execute(inputs, tmp_path / "again", context_of(tmp_path))
    assert (tmp_path / "again" / "attempts" / "say.jsonl").read_bytes() == path.read_bytes()
    stage.execute(inputs, tmp_path / "other", context_of(tmp_path, seed=1))
    assert (tmp_path / "other" / "attempts" / "say.jsonl").read_bytes() != path.read_bytes()


@pytest.mark.parametrize("lost_bytes", [0, 1, 3000])
def test_killed_sampling_goes_on_without_sampling_again(
    lost_bytes: int, tried: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    stage = AttemptsStage("attempts", config_of(inputs))
    with pytest.raises(KilledError):  # after two batches of four problems
        stage.execute(inputs, tmp_path / "out", context_of(tmp_path, dies_after=8))
    growing = tmp_path / "out" / "state" / "attempts" / "say.jsonl"
    saved = growing.read_bytes()
    assert saved.count(b"\n") == 12
    growing.write_bytes(saved[: len(saved) - lost_bytes])
    kept = growing.read_bytes()
    expected = (tried / "out" / "attempts" / "say.jsonl").read_bytes()
    assert expected.startswith(kept)
    stage.execute(inputs, tmp_path / "out", context_of(tmp_path))
    for name in ("attempts", "counts"):
        ours, theirs = (root / "out" / name / "say.jsonl" for root in (tmp_path, tried))
        assert ours.read_bytes() == theirs.read_bytes()
    stage.execute(inputs, tmp_path / "out", context_of(tmp_path))  # whole: nothing is sampled
    assert not growing.exists()


def test_verifier_that_always_fails_ends_the_stage_at_once(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    stage = AttemptsStage("attempts", config_of(inputs, "raises"))
    with pytest.raises(
        UnjudgedError, match=r"of the first 24 that cannot; \d+ times invalid: the rew"
    ):
        stage.execute(inputs, tmp_path / "out", context_of(tmp_path))
    assert not (tmp_path / "out" / "counts").exists()


def test_finite_task_is_tried_once_and_must_begin_within(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    config = config_of(inputs, attempts=1)
    task = config.sources["say"].task
    for begin, expected in ((18, ["p18", "p19"]), (20, None)):
        source = AttemptedConfig(task=task, problems=14, begin=begin)
        out = tmp_path / str(begin)
        stage = AttemptsStage("a", config.model_copy(update={"sources": {"say": source}}))
        if expected is None:
            with pytest.raises(ConfigError, match="`begin` within the 20 problems"):
                stage.execute(inputs, out, context_of(tmp_path))
        else:
            stage.execute(inputs, out, context_of(tmp_path))
            found = read_attempts(out / "attempts" / "say.jsonl")
            assert [problem.id for problem in found] == expected


def test_kept_answers_train_and_kept_problems_come_back(
    tried: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """From attempts through `choose` to fine-tuning, and to a task that RL can open."""
    # Six tokens end no answer of a random model: let some of them count as whole.
    problems = list(read_attempts(tried / "out" / "attempts" / "say.jsonl"))
    whole = tmp_path / "whole" / "attempts" / "say.jsonl"
    whole.parent.mkdir(parents=True)
    text = (tried / "out" / "attempts" / "say.jsonl").read_text()
    whole.write_text(text.replace('"is_truncated": true', '"is_truncated": false'))
    (tmp_path / "whole" / "counts").symlink_to(tried / "out" / "counts")
    given = {"attempts": tmp_path / "whole"}
    ChooseStage("choose", ChooseConfig()).execute(given, tmp_path / "choose", context_of(tmp_path))
    learned = list(read_conversations(tmp_path / "choose" / "say.jsonl"))
    assert learned
    assert all("e" in c.messages[-1].content for c in learned)
    task = open_task(FileConfig(path=str(tmp_path / "choose" / "task" / "say.jsonl"), order="file"))
    counts = read_pass_counts(tried / "out" / "counts" / "say.jsonl")
    wanted = [problem for problem in problems if 0 < counts[problem.id].k < counts[problem.id].n]
    assert [task.problem(n).id for n in range(task.size or 0)] == [p.id for p in wanted]
    assert task.problem(0).spec.model_dump()["arguments"] == {"number": int(wanted[0].id[1:])}
    sft = SftConfig(
        conversations=ConversationsConfig(context_tokens=48),
        epochs={"say": 8.0},
        batch_rows=2,
        microbatch_rows=2,
        peak_lr=3e-3,
        final_lr=3e-4,
        mtp_weight=0.0,
        validation_steps=1000,
        sample_count=0,
    )
    needs = {**inputs, "conversations": tmp_path / "choose"}
    SftStage("sft", sft).execute(needs, tmp_path / "sft", context_of(tmp_path / "m"))
    losses = [
        record["train/loss_nats"]
        for record in read_metrics(tmp_path / "m" / "metrics.jsonl")
        if "train/loss_nats" in record
    ]
    assert losses[-1] < losses[0] - 0.3


SAME = """
def problem(index, seed):
    return {"id": "q", "prompt": f"Say number {index % 5}.", "answer": index % 5}
"""


def test_problems_of_one_id_are_learned_under_their_own_prompts(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """A function may give all problems one id; the eighth is the third once more."""
    (tmp_path / "same.py").write_text(SAME)
    task = FunctionTaskConfig(
        target=f"{tmp_path}/same.py:problem", verifier={"kind": "format", "answer_in": "content"}
    )
    config = config_of(inputs, sources={"say": AttemptedConfig(task=task, problems=8)}, attempts=2)
    out = tmp_path / "out"
    AttemptsStage("attempts", config).execute(inputs, out, context_of(tmp_path))
    problems = list(read_attempts(out / "attempts" / "say.jsonl"))
    names = [f"q#{n % 5}" for n in range(8)]
    assert [(p.id, p.row["id"]) for p in problems] == [(name, name) for name in names]
    counts = read_pass_counts(out / "counts" / "say.jsonl")
    assert {name: n for name, (_, n) in counts.items()} == {
        f"q#{n}": 4 if n < 3 else 2 for n in range(5)
    }
    # Six tokens end no answer of a random model.
    path = out / "attempts" / "say.jsonl"
    path.write_text(path.read_text().replace('"is_truncated": true', '"is_truncated": false'))
    ChooseStage("choose", ChooseConfig()).execute(
        {"attempts": out}, tmp_path / "choose", context_of(tmp_path)
    )
    said = {(p.id, a.message.content) for p in problems for a in p.answers}
    learned = list(read_conversations(tmp_path / "choose" / "say.jsonl"))
    assert len({c.messages[0].content for c in learned}) == 5
    for conversation in learned:
        asked, answered = conversation.messages
        assert (f"q#{asked.content[-2]}", answered.content) in said


def test_names_are_ids_where_these_tell_problems_apart(tmp_path: Path) -> None:
    (tmp_path / "same.py").write_text(SAME + SAME.replace('"q"', '"p%d" % (index % 5)').replace(
        "problem", "apart"))  # fmt: skip
    for function, names in (("problem", "q#3 q#4 q#5 q#6 q#7 q#3"), ("apart", "p3 p4 p0 p1 p2 p3")):
        config = FunctionTaskConfig(target=f"{tmp_path}/same.py:{function}", verifier="exact")
        task = open_task(config)
        assert name_problems(task.problem(n) for n in range(3, 9)) == names.split()
    assert name_problems(task.problem(3) for _ in range(2)) == ["p3", "p3"]


def test_answers_that_were_cut_are_told(tried: Path) -> None:
    problems = list(read_attempts(tried / "out" / "attempts" / "say.jsonl"))
    cut = sum(answer.is_truncated for problem in problems for answer in problem.answers)
    assert cut > 0
    (record,) = read_metrics(tried / "metrics.jsonl")
    assert record["attempts/truncated_answers_say"] == cut
    table = json.loads((tried / "out" / "page" / "10_attempts.json").read_text())
    (row,) = table["rows"]
    assert row[table["columns"].index("cut at 6 tokens")] == cut
    assert len(row) == len(table["columns"])


@pytest.mark.parametrize(
    "task",
    [
        ProceduralConfig(skill="sort", levels=(2,)),
        FunctionTaskConfig(target=f"{Path(__file__).parent.parent}/envs/task_functions.py:double"),
    ],
    ids=["skill", "function"],
)
def test_problem_survives_as_a_row(task: Any) -> None:
    opened = open_task(task)
    for index in range(5):
        problem = opened.problem(index)
        row = json.loads(json.dumps(write_row(problem)))
        again = read_row(row, task=problem.task, index=index, where="row")
        assert again == replace(problem, group=again.group)


@given(st.text(min_size=1), st.integers(0, 10**9), st.sampled_from(["t", "a/b", "a#1"]))
def test_problem_is_read_off_its_group(problem: str, index: int, source: str) -> None:
    assert problem_of_group(f"{source}/{name_group(problem, index)}", source) == problem


def rollout_of(group: str, reward: float) -> Rollout:
    mask = np.array([False, True])
    versions = np.where(mask, 0, NOT_SAMPLED).astype(np.int32)
    zeros = np.zeros(2, np.float32)
    return Rollout(np.arange(2), mask, zeros, versions, group, reward, "say", advantages=zeros)


def test_rollouts_of_rl_give_the_same_table(tmp_path: Path) -> None:
    """Groups that RL leaves out because they say nothing are in the table all the same."""
    dumps = tmp_path / "rl" / "state" / "rollouts"
    rewards = {"p0#0": [1, 0, 1], "p1#1": [1, 1, 1], "p2#2": [0, 0, 0], "p0#3": [0, 0, 1]}
    rollouts = {g: [rollout_of(f"say/{g}", float(r)) for r in of] for g, of in rewards.items()}
    for batch, groups in enumerate((("p0#0", "p1#1", "p2#2"), ("p0#3",)), start=1):
        judged = [rollout for group in groups for rollout in rollouts[group]]
        trained = [r for r in judged if r.group.startswith("say/p0")]
        write_dump(dumps, batch, trained, {}, kept=9, judged=judged)
    expected = {"p0": PassCount(3, 6), "p1": PassCount(3, 3), "p2": PassCount(0, 3)}
    assert count_dumps(dumps) == {"say": expected}
    config = DumpCountsConfig(path=str(dumps), source="say")
    DumpCountsStage("counts", config).execute({}, tmp_path / "out", context_of(tmp_path))
    other = DumpCountsStage("counts", config.model_copy(update={"source": "sing"}))
    with pytest.raises(MissingFileError, match=r"source `sing` .* only those of `say`"):
        other.execute({}, tmp_path / "out", context_of(tmp_path))
    assert read_pass_counts(tmp_path / "out" / "counts" / "say.jsonl") == expected
    write_dump(dumps, 3, rollouts["p1#1"], {}, kept=1)
    assert count_dumps(dumps) == {"say": {"p1": PassCount(3, 3)}}
    with pytest.raises(MissingFileError, match="dumps_kept"):
        count_dumps(tmp_path)
