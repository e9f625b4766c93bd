"""Own generators: solutions verify, wrong answers do not, no problem comes twice, splits differ."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.config import validate
from fivefold.envs.config import ProceduralConfig, SkillName
from fivefold.envs.curriculum import level_at
from fivefold.envs.procedural import SKILLS, ProceduralTask
from fivefold.envs.task import Problem
from fivefold.errors import ConfigError
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.conversation import Message
from fivefold.text.event import TurnEnd
from fivefold.text.parse import parse_ids
from fivefold.text.template import render, render_prompt
from fivefold.text.tokenizer import Tokenizer
from fivefold.verify.config import VerifierConfig
from fivefold.verify.verifier import Verifier

EVERY_LEVEL = [
    (name, level) for name, skill in SKILLS.items() for level in range(1, skill.levels + 1)
]
MOST_TOKENS = 256
"""A quarter of the nano model's context, with a vocabulary that has few English words."""


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(VerifierConfig()) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer that saw a page on beans and nothing of what the tasks say."""
    guide = Path(__file__).parents[1] / "fixtures" / "text" / "guide.md"
    text = guide.read_text(encoding="utf-8")
    return Tokenizer(train_tokenizer([text], TokenizerConfig(vocab_size=600)))


def task(skill: str, *levels: int, **fields: object) -> ProceduralTask:
    document = {"skill": skill, "levels": levels, **fields}
    return ProceduralTask(validate(ProceduralConfig, document, where="task"))


def said(content: str) -> TurnEnd:
    return TurnEnd(Message(role="assistant", content=content, reasoning_content=""), False, ())


def solution_of(problem: Problem) -> Message:
    assert problem.solution is not None
    return problem.solution


def test_config_names_every_skill() -> None:
    assert set(get_args(SkillName)) == set(SKILLS)


@pytest.mark.parametrize(("skill", "level"), EVERY_LEVEL)
def test_solution_verifies_and_other_answers_do_not(
    verifier: Verifier, skill: str, level: int
) -> None:
    problems = [task(skill, level).problem(index) for index in range(30)]
    for problem, other in itertools.pairwise(problems):
        right, wrong = solution_of(problem).content, solution_of(other).content
        assert verifier.verify(said(right), problem.spec).value == 1
        assert verifier.verify(said(right + " 1"), problem.spec).value == 0
        assert verifier.verify(said(""), problem.spec).value == 0
        assert verifier.verify(said(wrong), problem.spec).value == float(wrong == right)


@pytest.mark.parametrize(("skill", "level"), EVERY_LEVEL)
def test_solution_survives_the_template_and_fits(
    verifier: Verifier, tokenizer: Tokenizer, skill: str, level: int
) -> None:
    """What training learns is, generated again, a turn that the verifier accepts."""
    for index in range(10):
        problem = task(skill, level).problem(index)
        assert problem.solved is not None
        rendered = render(problem.solved, tokenizer, close=True)
        prompt = render_prompt(problem.prompt, tokenizer)
        assert len(rendered.ids) <= MOST_TOKENS
        assert rendered.ids[: len(prompt)] == prompt
        turn = parse_ids(rendered.ids[len(prompt) :], tokenizer, is_thinking=True)
        assert turn.message == problem.solution
        assert turn.message.reasoning_content
        assert verifier.verify(turn, problem.spec).value == 1


ANSWERS = {
    "copy": " ".join,
    "reverse": lambda words: " ".join(words[::-1]),
    "last_letters": lambda words: " ".join(word[-1] for word in words),
    "sort": lambda words: " ".join(sorted(words)),
    "largest": max,
}


@pytest.mark.parametrize("skill", ANSWERS)
def test_answer_is_right_by_another_way(skill: str) -> None:
    for index in range(60):
        problem = task(skill, 1, 2, 3).problem(index)
        words = problem.prompt[0].content.replace("?", ":").rpartition(":")[2].split()
        assert solution_of(problem).content == ANSWERS[skill](words)


def test_sums_counts_and_comparisons_are_right_by_another_way() -> None:
    for index in range(80):
        problem = task("add", 1, 2, 3, 4).problem(index)
        question = problem.prompt[0].content
        terms = [int(word) for word in question.strip("?.").split() if word.isdigit()]
        assert solution_of(problem).content == str(sum(terms))
        problem = task("compare", 1, 2, 3).problem(index)
        words = problem.prompt[0].content.replace(",", " ").strip("?").split()
        numbers = [int(word) for word in words if word.isdigit()]
        assert len(set(numbers)) == 2
        assert solution_of(problem).content == str(max(numbers))
        problem = task("count_letter", 1, 2, 3).problem(index)
        words = problem.prompt[0].content.strip("?.").split()
        letters = words[words.index("in") + 1 :]
        wanted = words[words.index("in") - 1] if words[0] == "Count" else words[4]
        assert solution_of(problem).content == str(letters.count(wanted))


@pytest.mark.parametrize("skill", SKILLS)
def test_problems_are_all_different_and_splits_share_none(skill: str) -> None:
    """Every instance of the easiest level, in both splits: each once, by number and by words."""
    train, heldout = task(skill, 1), task(skill, 1, split="heldout")
    assert train.size + heldout.size == SKILLS[skill].count(1)
    problems = [
        part.problem(index) for part in (train, heldout) for index in range(min(part.size, 900))
    ]
    assert len({problem.prompt for problem in problems}) == len(problems)
    assert len({problem.id for problem in problems}) == len(problems)
    assert 0.15 < heldout.size / SKILLS[skill].count(1) <= 0.2


def test_seed_orders_and_does_not_move_between_splits() -> None:
    def ids(**fields: object) -> list[str]:
        part = task("add", 1, **fields)
        return [part.problem(index).id for index in range(part.size)]

    assert ids(seed=1) != ids(seed=2)
    assert set(ids(seed=1)) == set(ids(seed=2))
    assert not set(ids(seed=1)) & set(ids(seed=3, split="heldout"))


def test_problem_is_a_function_of_its_index() -> None:
    one, other = task("sort", 1, 2, problems_per_level=5), task("sort", 1, 2, problems_per_level=5)
    backwards = [other.problem(index) for index in reversed(range(40))]
    assert [one.problem(index) for index in range(40)] == backwards[::-1]


def test_problems_come_round_in_another_order_with_groups_of_their_own() -> None:
    part = task("add", 1)
    first = [part.problem(index) for index in range(part.size)]
    second = [part.problem(index) for index in range(part.size, 2 * part.size)]
    assert {p.id for p in first} == {p.id for p in second}
    assert [p.id for p in first] != [p.id for p in second]
    assert len({p.group for p in (*first, *second)}) == 2 * part.size


@given(st.integers(1, 5), st.integers(0, 12))
def test_curriculum_equals_counting(levels: int, problems_per_level: int) -> None:
    seen = dict.fromkeys(range(levels), 0)
    for index in range(80):
        level, before = level_at(index, levels, problems_per_level)
        assert before == seen[level]
        seen[level] += 1
        phase = index // problems_per_level if problems_per_level else levels
        assert level <= phase
    if problems_per_level * levels < 60:
        assert min(seen.values()) > 0


def test_difficulty_rises_with_the_curriculum() -> None:
    part = task("reverse", 1, 3, 5, problems_per_level=10)
    levels = [part.problem(index).difficulty for index in range(60)]
    assert set(levels[:10]) == {1.0}
    assert set(levels[10:20]) == {1.0, 3.0}
    assert set(levels[20:]) == {1.0, 3.0, 5.0}


@pytest.mark.parametrize("levels", [(0,), (8,), (1, 1), ()])
def test_wrong_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="level"):
        task("reverse", *levels)
