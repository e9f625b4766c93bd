import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fivefold.data.config import PlantedConfig
from fivefold.data.document import Document, document_writer, read_documents
from fivefold.data.haystack import Haystack, read_haystack
from fivefold.data.planted import ends_sentence, plant_documents, planted_document_count
from fivefold.data.planted_page import marked_text
from fivefold.errors import ConfigError
from fivefold.text.tokenizer import Tokenizer

PLAYS = Path(__file__).parents[1] / "fixtures" / "text" / "plays.jsonl"
CONFIG = PlantedConfig(
    contexts=(256, 512), tokens_per_context=20_000, heldout_documents=12, distractors=2
)


@pytest.fixture(scope="module")
def haystack(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Haystack:
    path = tmp_path_factory.mktemp("plays") / "train.jsonl.zst"
    with document_writer(path) as add:
        for document in read_documents(PLAYS):
            add(document)
    return read_haystack(path, 10**5, 512, tokenizer, seed=0)


@pytest.fixture(scope="module")
def documents(haystack: Haystack, tokenizer: Tokenizer) -> list[Document]:
    return list(plant_documents(haystack, CONFIG, "train", tokenizer))


def facts_of(documents: list[Document]) -> list[tuple[str, dict]]:
    return [(document.text, fact) for document in documents for fact in document.meta["facts"]]


def question_of(text: str, fact: dict) -> str:
    return text[fact["question_start_character"] : fact["answer_start_character"] - 1]


def test_answers_stand_where_the_accounts_say(documents: list[Document]):
    for text, fact in facts_of(documents):
        at = fact["answer_start_character"]
        question = question_of(text, fact)
        assert re.fullmatch(r"The .+ of .+ is", question)
        assert text[at:].startswith(f"{fact['answer']}.")
        assert text[fact["planted_character"] :].startswith(f"{question} {fact['answer']}.")


def test_a_fact_stands_once_before_its_question(documents: list[Document]):
    for text, fact in facts_of(documents):
        question = question_of(text, fact)
        before = text[: fact["question_start_character"]]
        assert before.count(question) == 1
        assert before.index(question) == fact["planted_character"]
        assert text.count(question) == 2
        assert len(re.findall(rf"\b{fact['answer']}\b", text)) == 2


def test_last_value_of_the_same_form_is_another(documents: list[Document]):
    for text, fact in facts_of(documents):
        attribute = re.match("The .+? of ", question_of(text, fact))
        assert attribute
        asked = fact["question_start_character"]
        last = text.rindex(attribute.group(), 0, asked)
        assert last > fact["planted_character"]
        assert not text[last:].startswith(question_of(text, fact))
        for begin in fact["distractor_characters"]:
            assert fact["planted_character"] < begin < asked
            assert text[begin:].startswith(attribute.group())


def test_documents_fill_their_context_and_no_more(documents: list[Document], tokenizer: Tokenizer):
    counts = Counter(document.meta["context_tokens"] for document in documents)
    assert counts == {
        context: planted_document_count(CONFIG, context, "train") for context in (256, 512)
    }
    assert counts[256] * 256 >= CONFIG.tokens_per_context > (counts[256] - 1) * 256
    for document in documents:
        context = document.meta["context_tokens"]
        framed = tokenizer.frame_document(tokenizer.encode(document.text))
        assert 0.8 * context < len(framed) <= context + 1


def test_real_text_is_kept_in_order(documents: list[Document], haystack: Haystack):
    """Without its facts and questions, a document is a stretch of the real text."""
    whole = "".join("".join(haystack.units * 3).split())
    for document in documents:
        text = document.text[: min(f["question_start_character"] for f in document.meta["facts"])]
        spans = [
            begin
            for fact in document.meta["facts"]
            for begin in (fact["planted_character"], *fact["distractor_characters"])
        ]
        for begin in sorted(spans, reverse=True):
            text = text[:begin] + text[text.index(".", begin) + 1 :]
        assert "".join(text.split()) in whole


def test_each_equal_part_of_the_text_holds_one_fact(tokenizer: Tokenizer):
    """With many short sentences, rounding moves a fact by less than 2% of the text."""
    units = [f" It is {word}." for word in ("late", "cold", "true", "dark")] * 50
    tokens = np.array([len(tokenizer.encode(unit)) for unit in units])
    config = PlantedConfig(contexts=(1024,), tokens_per_context=200_000, word_share=0)
    documents = list(plant_documents(Haystack(units, tokens), config, "train", tokenizer))
    depths = []
    for document in documents:
        own = sorted(fact["depth"] for fact in document.meta["facts"])
        for part, depth in enumerate(own):
            assert part / len(own) - 0.02 <= depth <= (part + 1) / len(own) + 0.02
        depths += own
    # Uniform over the text: the largest gap to the diagonal, at a level of about 1 in 10,000.
    gap = np.abs(np.sort(depths) - (np.arange(len(depths)) + 0.5) / len(depths)).max()
    assert gap < 2.2 / np.sqrt(len(depths))
    # A distractor is uniform between its fact and the end: on average half way.
    halves = []
    for text, fact in facts_of(documents):
        body = text.index("\n\nThe")
        begin, (other,) = fact["planted_character"], fact["distractor_characters"]
        halves.append((other - begin) / (body - begin))
    assert np.mean(halves) == pytest.approx(0.5, abs=0.05)


def test_distance_is_counted_from_the_statement_to_its_question(documents: list[Document]):
    for _, fact in facts_of(documents):
        assert fact["distance"] == fact["question_start_character"] - fact["planted_character"] > 0
    orders = [
        [fact["planted_character"] for fact in document.meta["facts"]] for document in documents
    ]
    several = [order for order in orders if len(order) > 1]
    assert 0 < sum(order == sorted(order) for order in several) < len(several)


def test_facts_stand_at_ends_of_sentences(documents: list[Document]):
    for text, fact in facts_of(documents):
        before = text[: fact["planted_character"]]
        assert re.search(r"\n[ \t]*$|[.!?] $", before), before[-20:]


def test_last_unit_ends_a_sentence_in_any_case():
    units = ["One is", " two.", " Three", "\nfour", " five"]
    assert [ends_sentence(units, n) for n in range(5)] == [False, True, True, False, True]


def test_same_seed_gives_the_same_documents(
    documents: list[Document], haystack: Haystack, tokenizer: Tokenizer
):
    assert list(plant_documents(haystack, CONFIG, "train", tokenizer)) == documents
    other = CONFIG.model_copy(update={"seed": 1})
    assert list(plant_documents(haystack, other, "train", tokenizer)) != documents


def test_values_never_repeat_and_heldout_ones_are_others(
    documents: list[Document], haystack: Haystack, tokenizer: Tokenizer
):
    heldout = list(plant_documents(haystack, CONFIG, "heldout", tokenizer))
    assert len(heldout) == 24
    statement = re.compile(r"The (?:[a-z]+ ){1,2}of .+? is (\d{5}|[a-z]+ [a-z]+)\.")
    seen: list[set[str]] = []
    for some in (documents, heldout):
        values = Counter(value for document in some for value in statement.findall(document.text))
        assert set(values.values()) <= {1, 2}
        answers = {fact["answer"] for _, fact in facts_of(some)}
        assert answers == {value for value, count in values.items() if count == 2}
        seen.append(set(values))
    assert not seen[0] & seen[1]


def test_context_without_room_for_a_fact_is_an_error(haystack: Haystack, tokenizer: Tokenizer):
    config = CONFIG.model_copy(update={"contexts": (64,)})
    with pytest.raises(ConfigError, match=r"planted\.contexts"):
        list(plant_documents(haystack, config, "train", tokenizer))


def test_text_of_one_endless_line_is_an_error(tokenizer: Tokenizer):
    long = Haystack(["x" * 120], np.array([250]))
    config = PlantedConfig(contexts=(256,), facts=1)
    with pytest.raises(ConfigError, match="no sentence"):
        list(plant_documents(long, config, "train", tokenizer))


def test_marks_leave_the_text_as_it_is(documents: list[Document]):
    for document in documents[:5]:
        marked = marked_text(document)
        facts = document.meta["facts"]
        assert re.sub("[⟦⟧⟨⟩⟪⟫]", "", marked) == document.text
        assert re.findall("⟪(.+?)⟫", marked) == [fact["answer"] for fact in facts]
        assert len(re.findall(r"⟦The .+?\.⟧", marked)) == len(facts)
        assert len(re.findall(r"⟨The .+?\.⟩", marked)) == 2 * len(facts)
