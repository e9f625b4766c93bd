"""MRCR-like conversations: solvable from their messages alone, and only by counting."""

import json
import math
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from long_builder import make_document, make_library
from mrcr_solver import read_quest, read_texts, solve, solve_blind
from scipy.stats import chisquare

from fivefold.data.document import Document
from fivefold.data.long.config import VARIANTS, LongConfig, MrcrConfig
from fivefold.data.long.library import Library
from fivefold.data.long.measure import Ruler
from fivefold.data.long.mrcr import Mrcr
from fivefold.data.long.mrcr_score import mrcr_score
from fivefold.data.long.mrcr_text import ordinal, put_into_form
from fivefold.text.conversation import read_messages

CHARACTERS = Ruler(None, 4.0)
CONFIG = LongConfig(
    context_tokens=4096,
    mrcr=MrcrConfig(conversations=330, min_passage_characters=80, max_passage_characters=400),
)
NAMES = """river bridge garden captain market teacher village forest harbour winter castle engine
lantern pepper saddle timber violin weaver copper feather"""
OTHERS = """silver letter window carriage stranger journey kingdom shoulder whisper promise measure
answer shadow country daughter machine minister music candle mountain orchard brother autumn"""


def passage(number: int) -> str:
    """Two sentences about one name, which comes twice, with words of its own."""
    random = Random(number)
    names, marks = NAMES.split(), [f"{a}{b}" for a in "bcdf" for b in ("orin", "alet")]
    name = names[number % len(names)]
    own = random.choice(marks) + random.choice(marks)
    words = [random.choice(OTHERS.split()) for _ in range(14)]
    first = f"The {name} and the {words[0]} {own} near {' '.join(words[1:7])}."
    return f"{first} Then the {name} saw {' '.join(words[7:])}."


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    documents = [
        make_document("\n\n".join(passage(40 * k + n) for n in range(40)), str(k))
        for k in range(20)
    ]
    return make_library(tmp_path_factory.mktemp("library"), documents, CHARACTERS, 512)


@pytest.fixture(scope="module")
def conversations(library: Library) -> list[Document]:
    method = Mrcr(library, CONFIG, CHARACTERS)
    made = [one for task in range(3) for u in method.units(task, 3) for one in method.make(u)]
    assert len(made) == 330
    assert {one.reason for one in made} <= {"", "mrcr.no_word_of_its_own"}
    found = [one.sequence for one in made if one.sequence]
    assert len(found) > 320
    return found


def exactness(answer: str, document: Document) -> float:
    return float(answer == document.meta["answer"])


def test_every_variant_and_number_of_needles_is_there(conversations: list[Document]):
    kinds = Counter((one.meta["variant"], one.meta["needles"]) for one in conversations)
    assert len(VARIANTS) == 10
    assert set(kinds) == {(v, n) for v in ("ordinal", *VARIANTS) for n in (2, 4, 8)}


def test_a_solver_that_counts_is_always_right(conversations: list[Document]):
    for one in conversations:
        *messages, answer = one.meta["messages"]
        given = solve(messages)
        assert given == answer["content"] == one.meta["answer"], one.url
        assert mrcr_score(given, one.meta["answer"], one.meta["prefix"]) == 1


def test_a_solver_that_does_not_count_is_right_once_in_as_many_as_there_are_needles(
    conversations: list[Document],
):
    random = Random(3)
    single = [c for c in conversations if c.meta["variant"] not in ("pair", "absent")]
    for needles in (2, 4, 8):
        some = [one for one in single if one.meta["needles"] == needles]
        draws = [
            exactness(solve_blind(one.meta["messages"][:-1], random), one)
            for one in some
            for _ in range(20)
        ]
        chance = 1 / needles
        error = math.sqrt(chance * (1 - chance) / len(draws))
        assert abs(sum(draws) / len(draws) - chance) < 4 * error


def test_needles_are_as_many_as_said_and_distractors_share_form_or_topic(
    conversations: list[Document],
):
    for one in conversations:
        *before, quest, _ = one.meta["messages"]
        _, form, topic = read_quest(quest["content"])
        texts = read_texts(before)
        needles = [text for a, b, text in texts if (a, b) == (form, topic)]
        assert len(needles) == one.meta["needles"]
        assert len(set(needles)) == len(needles)
        others = [(a, b) for a, b, _ in texts if (a, b) != (form, topic)]
        assert len(others) >= 5
        assert all((a == form) != (b == topic) for a, b in others)


def test_structured_needles_have_a_syntax(conversations: list[Document]):
    found = [one for one in conversations if one.meta["variant"] == "structured"]
    forms = Counter(read_quest(one.meta["messages"][-2]["content"])[1] for one in found)
    assert set(forms) == {"JSON object", "table", "code block"}
    for one in found:
        text = one.meta["answer"].removeprefix(one.meta["prefix"])
        if text.startswith("{"):
            assert set(json.loads(text)) == {"topic", "sentences"}


def test_only_the_last_turn_is_learned_and_messages_are_valid(conversations: list[Document]):
    for one in conversations:
        messages = read_messages(one.meta["messages"])
        learned = [k for k, m in enumerate(messages) if m.role == "assistant" and m.loss]
        assert learned == [len(messages) - 1]
        # The document says the same.
        assert one.text.rstrip("\n").endswith(one.meta["answer"])
        assert CHARACTERS.size(one.text) <= CHARACTERS.room(CONFIG.context_tokens)
        assert CHARACTERS.size(one.text) >= 0.9 * CONFIG.context_tokens


def test_asked_needles_stand_at_any_depth_and_number(conversations: list[Document]):
    depths = [depth for one in conversations for depth in one.meta["depths"]]
    fourths = Counter(min(3, int(4 * depth)) for depth in depths)
    # A needle among n stands uniformly among the turns.
    assert chisquare([fourths[k] for k in range(4)]).pvalue > 1e-3


def test_lengths_do_not_tell_needles_from_distractors(conversations: list[Document]):
    needles, others = [], []
    for one in conversations:
        if one.meta["variant"] in ("structured", "pair", "absent"):
            continue
        *before, quest, _ = one.meta["messages"]
        _, form, topic = read_quest(quest["content"])
        for a, b, text in read_texts(before):
            if a == form:
                (needles if b == topic else others).append(len(text))
    means = [sum(some) / len(some) for some in (needles, others)]
    assert means[0] == pytest.approx(means[1], rel=0.03)


def test_absent_texts_are_none_and_the_wording_is_that_of_others(conversations: list[Document]):
    absent = [one for one in conversations if one.meta["variant"] == "absent"]
    assert absent
    for one in absent:
        assert one.meta["answer"] == one.meta["prefix"] + "none"
        assert one.meta["depths"] == []
    endings = {
        one.meta["messages"][-2]["content"].split(" above. ")[-1]
        for one in conversations
        if one.meta["variant"] not in ("language", "tool", "user_turn")
    }
    assert len(endings) == 1


def test_same_conversations_for_any_number_of_tasks(
    library: Library, conversations: list[Document]
):
    method = Mrcr(library, CONFIG, CHARACTERS)
    again = [one.sequence for u in method.units(0, 1) for one in method.make(u) if one.sequence]
    assert {one.id: one for one in again} == {one.id: one for one in conversations}


def test_no_passages_no_conversations(tmp_path: Path):
    library = make_library(tmp_path, [make_document("A word.", "x")], CHARACTERS)
    method = Mrcr(library, CONFIG, CHARACTERS)
    made = [one for unit in method.units(0, 1) for one in method.make(unit)]
    assert {one.reason for one in made} == {"mrcr.few_topics"}


def test_too_short_a_context_has_no_room(library: Library):
    config = CONFIG.model_copy(update={"context_tokens": 256})
    method = Mrcr(library, config, CHARACTERS)
    made = [one for unit in method.units(0, 1) for one in method.make(unit)]
    eight = [one for one in made if "/8/" in one.document.url]
    assert {one.reason for one in eight} <= {"mrcr.no_room", "mrcr.no_word_of_its_own"}


def test_score_needs_the_prefix_and_measures_likeness():
    assert mrcr_score("abcThe text", "abcThe text", "abc") == 1
    assert mrcr_score("The text", "abcThe text", "abc") == 0
    # Matching blocks: "The te" of 6, then nothing: 2 * 6 / (8 + 6).
    assert mrcr_score("abcThe te", "abcThe text", "abc") == pytest.approx(12 / 14)


def test_forms_keep_every_word_and_ordinals_read_right():
    text = passage(1)
    for form in ("paragraph", "list", "quotation", "letter", "JSON object", "table", "code block"):
        words = put_into_form(text, "river", form).replace('"', " ").split()
        assert set(text.split()) <= set(words), form
    assert [ordinal(k) for k in (1, 2, 3, 4, 11, 12, 13, 21, 112)] == (
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th"]
    )
