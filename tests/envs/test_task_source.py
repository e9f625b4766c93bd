"""Tasks from files, functions and reasoning-gym: read, checked, judged, refused when malformed."""

import importlib.util
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest

from fivefold.envs.config import (
    FileConfig,
    FunctionTaskConfig,
    GymConfig,
    ProceduralConfig,
    TaskConfig,
)
from fivefold.envs.file_task import FileTask, gsm8k_row
from fivefold.envs.function_task import FunctionTask
from fivefold.envs.gym import GymTask, score, spread_seed
from fivefold.envs.open_task import open_task
from fivefold.envs.row import read_row, write_row
from fivefold.envs.task import Problem, TaskError
from fivefold.errors import ConfigError, CorruptFileError, FivefoldError, MissingFileError
from fivefold.text.conversation import Message
from fivefold.text.parse import parse_text
from fivefold.verify.config import AllSpec, ExactSpec, FunctionSpec, NumberSpec, VerifierConfig
from fivefold.verify.extra import MissingPackageError
from fivefold.verify.verdict import Verdict
from fivefold.verify.verifier import Verifier

FUNCTIONS = str(Path(__file__).with_name("task_functions.py"))
GOOD = {"prompt": "1 + 1?", "answer": "2", "verifier": "number"}


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(VerifierConfig(limit_seconds=20)) as verifier:
        yield verifier


def judge(verifier: Verifier, problem: Problem, content: str) -> Verdict:
    return verifier.verify(parse_text(content, is_thinking=False), problem.spec)


def write(path: Path, *rows: object) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_rows_become_problems(tmp_path: Path, verifier: Verifier) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {**GOOD, "id": 7, "difficulty": 2, "thinking": "one more", "solution": "2"},
        "",
        {
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            "answer": "A",
        },
    )
    task = FileTask(FileConfig(path=path, order="file", verifier="exact", instruction="Be brief."))
    assert (task.name, task.size) == ("mine", 2)
    first, second = task.problem(0), task.problem(1)
    assert (first.id, first.group, first.difficulty) == ("7", "7#0", 2.0)
    assert first.prompt[0].content == "1 + 1?\nBe brief."
    assert first.spec == NumberSpec(gold="2")
    assert first.solved is not None
    assert first.solved[-1].reasoning_content == "one more"
    assert [message.role for message in second.prompt] == ["system", "user"]
    assert second.spec == ExactSpec(gold="A")
    assert second.id == "mine/3"
    assert second.solution == Message(role="assistant", content="A")
    assert task.problem(2).id == first.id
    assert task.problem(2).group != first.group
    assert judge(verifier, first, "2.0").value == 1


@pytest.mark.parametrize(
    "spec",
    [
        "exact",
        "number",
        {"kind": "number", "answer_in": "boxed"},
        {"kind": "exact", "answer_in": "tag", "tag": "out"},
        {"kind": "number", "answer_in": "hashes"},
        {"kind": "exact", "answer_in": "last_line"},
        {"kind": "number", "answer_in": "last_number"},
    ],
    ids=str,
)
def test_answer_is_a_solution_where_the_verifier_looks_for_it(
    tmp_path: Path, verifier: Verifier, spec: str | dict[str, str]
) -> None:
    row = {"prompt": "6 * 7?", "answer": 42, "thinking": "six sevens"}
    path = write(tmp_path / "t.jsonl", row)
    problem = FileTask(FileConfig(path=path, verifier=spec)).problem(0)
    assert problem.solution is not None
    assert problem.solution.reasoning_content == "six sevens"
    assert judge(verifier, problem, problem.solution.content).value == 1
    assert judge(verifier, problem, problem.solution.content.replace("42", "41")).value == 0


def test_answer_is_no_solution_where_nothing_is_compared_with_it(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"prompt": "6 * 7?", "answer": 42})
    judged = {"kind": "function", "target": f"{FUNCTIONS}:is_longer"}
    for spec in ("format", judged, {"kind": "all", "parts": ["format", "exact"]}):
        assert FileTask(FileConfig(path=path, verifier=spec)).problem(0).solution is None


def test_function_with_the_usual_name_is_called_like_its_file(tmp_path: Path) -> None:
    path = tmp_path / "vowels.py"
    path.write_text("def problem(index, seed): ...\ndef other(index, seed): ...\n")
    names = [
        FunctionTask(FunctionTaskConfig(target=f"{path}:{n}")).name for n in ("problem", "other")
    ]
    assert names == ["vowels", "other"]


def test_file_orders(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": n, "difficulty": (n * 7) % 10} for n in range(10)]
    path = write(tmp_path / "t.jsonl", *rows)

    def ids(order: str, rounds: int = 1) -> list[str]:
        config = FileConfig.model_validate({"path": path, "order": order})
        return [FileTask(config).problem(index).id for index in range(10 * rounds)]

    assert ids("file") == [str(n) for n in range(10)]
    assert [int(name) * 7 % 10 for name in ids("rising")] == list(range(10))
    twice = ids("shuffled", 2)
    assert sorted(twice[:10]) == sorted(twice[10:]) == ids("file")
    assert twice[:10] not in (twice[10:], ids("file"))


MALFORMED = {
    "{": "Expecting",
    "[1]": "to be an object",
    '{"prompt": "a", "answer": NaN, "verifier": "number"}': "JSON",
    "[" * 100_000: "nested too deeply",
    json.dumps({**GOOD, "messages": []}): "either `prompt` or `messages`",
    json.dumps({**GOOD, "prompt": " "}): "not empty",
    json.dumps({**GOOD, "answer": "many"}): "choose the verifier `maths`",
    json.dumps({**GOOD, "answer": ["2"]}): "text or a number",
    json.dumps({**GOOD, "answer": None}): "gold",
    json.dumps({**GOOD, "verifier": "numbers"}): "Did you mean `number`",
    json.dumps({"prompt": "a", "answer": "b"}): "verifier",
    json.dumps({**GOOD, "difficulty": "hard"}): "finite number",
    json.dumps({**GOOD, "id": 1.5}): "text or an integer",
    json.dumps({**GOOD, "solution": 2}): "solution",
    json.dumps({"messages": [{"role": "assistant", "content": "a"}], "answer": "b"}): "end with",
}


@pytest.mark.parametrize(("line", "words"), MALFORMED.items(), ids=lambda text: text[:40])
def test_malformed_row_is_refused_or_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str, words: str
) -> None:
    path = write(tmp_path / "t.jsonl", GOOD, line, GOOD)
    with pytest.raises(CorruptFileError, match="1 unusable of 3, the first in line 2") as refusal:
        FileTask(FileConfig(path=path))
    assert words in str(refusal.value)
    assert not caplog.messages
    task = FileTask(FileConfig(path=path, malformed="skip"))
    assert task.size == 2
    (fault,) = task.faults
    assert fault.line == 2
    assert words in fault.reason
    (warning,) = caplog.messages
    assert f"1 unusable of 3, the first in line 2: {fault.reason}" in warning


def test_files_without_any_usable_row_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        FileTask(FileConfig(path=str(tmp_path / "none.jsonl")))
    for rows in ((), ("{",), ("{", "{")):
        path = write(tmp_path / "t.jsonl", *rows)
        with pytest.raises(CorruptFileError):
            FileTask(FileConfig(path=path, malformed="skip"))
    same = {**GOOD, "id": "a"}
    path = write(tmp_path / "t.jsonl", same, same)
    with pytest.raises(CorruptFileError, match="came before"):
        FileTask(FileConfig(path=path))


def test_row_tells_its_reward_function_what_it_holds(tmp_path: Path, verifier: Verifier) -> None:
    function = {"kind": "function", "target": f"{FUNCTIONS}:is_longer"}
    both = {"kind": "all", "parts": ["format", function]}
    path = write(
        tmp_path / "t.jsonl",
        {"prompt": "a", "than": 3, "answer": "x", "verifier": function},
        {"prompt": "b", "than": 5, "verifier": both},
    )
    task = FileTask(FileConfig(path=path, order="file"))
    single, product = task.problem(0), task.problem(1)
    assert isinstance(single.spec, FunctionSpec)
    assert single.spec.arguments == {"than": 3, "answer": "x"}
    assert isinstance(product.spec, AllSpec)
    assert [judge(verifier, single, text).value for text in ("abc", "abcd")] == [0, 1]
    assert [judge(verifier, product, text).value for text in ("abcde", "abcdef")] == [0, 1]


@pytest.mark.parametrize("name", ["test.jsonl", "train_head400.jsonl"])
def test_gsm8k_loads_and_its_solutions_verify(
    shared_data: Path, verifier: Verifier, name: str
) -> None:
    task = FileTask(FileConfig(path=str(shared_data / "gsm8k" / name), form="gsm8k", order="file"))
    assert task.size == {"test.jsonl": 1319, "train_head400.jsonl": 400}[name]
    for index in range(task.size):
        problem = task.problem(index)
        assert problem.solution is not None
        assert "<<" not in (problem.solution.reasoning_content or "")
        assert isinstance(problem.spec, NumberSpec)
        assert judge(verifier, problem, problem.solution.content).value == 1
        assert judge(verifier, problem, rf"\boxed{{{problem.spec.gold}1}}").value == 0
        assert judge(verifier, problem, problem.spec.gold).value == 0


@pytest.mark.parametrize(
    "row",
    [
        [],
        {},
        {"question": "q"},
        {"question": "q", "answer": "5"},
        {"question": "q", "answer": "#### x"},
    ],
)
def test_malformed_gsm8k_row_is_refused(row: object) -> None:
    with pytest.raises(ConfigError, match="answer"):
        gsm8k_row(row)


def test_function_makes_problems(verifier: Verifier) -> None:
    task = FunctionTask(FunctionTaskConfig(target=f"{FUNCTIONS}:double", seed=1, size=5))
    problem = task.problem(3)
    assert (task.name, task.size, problem.prompt[0].content) == ("double", 5, "Double 3")
    assert judge(verifier, problem, "7").value == 1
    assert task.problem(8).prompt == problem.prompt
    assert task.problem(8).id == problem.id == "double/3"
    assert (problem.group, task.problem(8).group) == ("double/3#3", "double/3#8")
    judged = FunctionTask(FunctionTaskConfig(target=f"{FUNCTIONS}:judged")).problem(2)
    assert judged.solution is not None
    assert judge(verifier, judged, judged.solution.content).value == 1
    assert judge(verifier, judged, "xx").value == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [("raises", "ValueError: no problem 4"), ("no_row", "an object"), ("no_verifier", "verifier")],
)
def test_function_that_makes_no_problem_is_told(name: str, words: str) -> None:
    task = FunctionTask(FunctionTaskConfig(target=f"{FUNCTIONS}:{name}"))
    with pytest.raises(TaskError, match=words):
        task.problem(4)


def test_function_that_does_not_exist_is_refused_at_once() -> None:
    for target in (f"{FUNCTIONS}:nobody", "no_such_module:f"):
        with pytest.raises(ConfigError):
            FunctionTask(FunctionTaskConfig(target=target))


@pytest.mark.parametrize("name", ["chain_sum", "letter_counting", "spell_backward", "gcd"])
def test_gym_answers_verify(verifier: Verifier, name: str) -> None:
    pytest.importorskip("reasoning_gym")
    task = GymTask(GymConfig(name=name))
    assert task.size is None
    for index in (0, 5, 10**6):
        problem = task.problem(index)
        assert problem.solution is not None
        assert problem.prompt[0].content.endswith("after thinking.")
        verdict = judge(verifier, problem, problem.solution.content)
        assert (verdict.state, verdict.value) == ("scored", 1)
        assert judge(verifier, problem, "nonsense").value == 0
    assert task.problem(5) == GymTask(GymConfig(name=name)).problem(5)


def test_gym_gives_partial_credit_only_when_asked(verifier: Verifier) -> None:
    pytest.importorskip("reasoning_gym")
    loose = GymTask(GymConfig(name="chain_sum", is_strict=False)).problem(0)
    strict = GymTask(GymConfig(name="chain_sum")).problem(0)
    assert loose.solution is not None
    almost = f"It is {loose.solution.content}"
    assert 0 < (judge(verifier, loose, almost).value or 0) < 1
    assert judge(verifier, strict, almost).value == 0


def test_gym_seeds_share_no_problem() -> None:
    pytest.importorskip("reasoning_gym")
    tasks = [GymTask(GymConfig(name="chain_sum", seed=seed)) for seed in (0, 1)]
    questions = [{task.problem(index).prompt for index in range(100)} for task in tasks]
    assert not questions[0] & questions[1]
    seeds = sorted(spread_seed("chain_sum", seed) for seed in range(20))
    assert seeds[-1] < 2**31
    assert min(b - a for a, b in itertools.pairwise(seeds)) > 10_000


@pytest.mark.parametrize(
    ("document", "words"),
    [({"name": "chain_sums"}, "not registered"), ({"name": "gcd", "options": {"x": 1}}, "'x'")],
)
def test_unknown_gym_task_or_option_is_refused(document: dict, words: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match=words):
        GymTask(GymConfig.model_validate(document))


def test_gym_without_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"fivefold\[rl\]"):
        GymTask(GymConfig(name="gcd"))


def test_gym_score_is_that_of_the_library() -> None:
    pytest.importorskip("reasoning_gym")
    problem = GymTask(GymConfig(name="gcd")).problem(1)
    assert isinstance(problem.spec, FunctionSpec)
    assert problem.solution is not None
    assert score(problem.solution.content, problem.spec.arguments) == 1


def test_any_task_opens_from_plain_values(tmp_path: Path) -> None:
    adapter: pydantic.TypeAdapter[TaskConfig] = pydantic.TypeAdapter(TaskConfig)
    path = write(tmp_path / "t.jsonl", GOOD)
    documents = [
        {"kind": "procedural", "skill": "add"},
        {"kind": "file", "path": path},
        {"kind": "function", "target": f"{FUNCTIONS}:double"},
        {"kind": "gym", "name": "gcd"},
    ]
    for document in documents:
        task = open_task(adapter.validate_python(document))
        problem = task.problem(0)
        assert problem.prompt[-1].role == "user"
        assert problem.task == task.name
    with pytest.raises(FivefoldError):
        open_task(ProceduralConfig(skill="add", levels=(9,)))


ROWS = (
    {"prompt": "a", "answer": "b", "verifier": "exact", "thinking": "so", "difficulty": 2},
    {"prompt": "a", "answer": 7, "verifier": {"kind": "number", "tolerance": 0.1}, "id": 5},
    {"prompt": "é\n", "verifier": "format"},
    {"prompt": "a", "verifier": {"kind": "function", "target": "m:f"}, "answer": 1, "more": [2]},
    {"prompt": "a", "answer": "x", "verifier": {"kind": "all", "parts": ["format", "exact"]}},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
     "answer": "1", "verifier": {"kind": "exact", "answer_in": "boxed"}, "solution": "1"},
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_written_row_is_read_as_the_same_problem(row: dict) -> None:
    problem = read_row(row, task="t", index=3, where="row")
    written = json.loads(json.dumps(write_row(problem)))
    assert read_row(written, task="t", index=3, where="row") == problem


def test_skill_s_problem_is_written_as_a_row() -> None:
    problem = open_task(ProceduralConfig(skill="reverse")).problem(4)
    again = read_row(write_row(problem), task="reverse", index=4, where="row")
    assert again == problem
