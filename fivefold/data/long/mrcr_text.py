"""Passages for MRCR-like conversations: real paragraphs, the topics they share, and forms.

No model writes the answers: they are paragraphs of the library, put into a form (a list, a table,
a JSON object, ...) by rule. A topic is a word that several paragraphs share, so that the answers
to one request are as different as real texts on one subject, and no more alike than that.

Lengths tell nothing: needles and distractors come from the same pool and forms.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from fivefold.data.haystack import is_english
from fivefold.data.long.library import Library
from fivefold.data.long.vectors import content_words

PROSE = ("paragraph", "list", "quotation", "letter")
"""Forms of ordinary text."""
STRUCTURED = ("JSON object", "table", "code block")
"""Forms with a syntax."""

_MOST_PASSAGES = 6_000
_TOPIC_SHARE = 0.02
"""A word that more of the passages have is no topic, unless they are few."""
_MIN_TOPIC_LETTERS = 5
_BURST = 1.25
"""A topic stands so often, on average, in a passage that has it: words of grammar come once."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WORDY = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Pool:
    """Passages, and which of them speak of what."""

    passages: list[str]
    topics: dict[str, list[int]]
    """Passages in which a word stands, for words that can be topics; in alphabetical order."""


def collect_passages(library: Library, low: int, high: int, needles: int) -> Pool:
    """Take paragraphs of `low` to `high` characters out of documents in hashed order.

    A topic has passages for 2 to 8 times as many needles as a conversation needs, or more where
    they are 2% of all.
    """
    order = sorted(
        range(len(library.documents)),
        key=lambda k: xxhash.xxh3_64_intdigest(library.documents[k].id.encode()),
    )
    passages: dict[str, None] = {}
    for place in order:
        document = library.documents[place]
        if len(passages) >= _MOST_PASSAGES:
            break
        if document.lang != "en" or not is_english(document):
            continue
        for paragraph in re.split(r"\n\s*\n", document.text):
            passage = " ".join(paragraph.split())
            if low <= len(passage) <= high and _is_prose(passage):
                passages[passage] = None
    kept = list(passages)[:_MOST_PASSAGES]
    standing: dict[str, list[int]] = defaultdict(list)
    times: Counter[str] = Counter()
    for number, passage in enumerate(kept):
        for word, count in Counter(content_words(passage)).items():
            standing[word].append(number)
            times[word] += count
    most = max(8 * needles, int(_TOPIC_SHARE * len(kept)))
    topics = {
        word: standing[word]
        for word in sorted(standing)
        if len(word) >= _MIN_TOPIC_LETTERS
        and _WORDY.fullmatch(word)
        and 2 * needles <= len(standing[word]) <= most
        and times[word] >= _BURST * len(standing[word])
    }
    return Pool(kept, topics)


def _is_prose(passage: str) -> bool:
    return passage[-1] in ".!?" and sum(map(len, _WORDY.findall(passage))) > 0.7 * len(passage)


def put_into_form(passage: str, topic: str, form: str) -> str:
    """Return a passage in a form; every form keeps all its words."""
    sentences = _SENTENCE_END.split(passage)
    if form == "paragraph":
        return passage
    if form == "list":
        return "\n".join(f"- {sentence}" for sentence in sentences)
    if form == "quotation":
        return "\n".join(f"> {sentence}" for sentence in sentences)
    if form == "letter":
        return f"Dear reader,\n\n{passage}\n\nYours sincerely"
    if form == "JSON object":
        return json.dumps({"topic": topic, "sentences": sentences}, ensure_ascii=False, indent=1)
    if form == "table":
        rows = [f"| {number} | {one} |" for number, one in enumerate(sentences, start=1)]
        return "\n".join(["| number | sentence |", "|---|---|", *rows])
    assert form == "code block", form
    return "\n".join(["```text", *sentences, "```"])


def ordinal(number: int) -> str:
    """Return `1st`, `2nd`, `3rd`, `4th`, ..."""
    ending = (
        "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number}{ending}"


def only_here(words: Sequence[frozenset[str]], number: int) -> list[str]:
    """Return the words that set `number` alone has, in alphabetical order."""
    others = frozenset[str]().union(*(some for k, some in enumerate(words) if k != number))
    return sorted(
        word
        for word in words[number] - others
        if len(word) >= _MIN_TOPIC_LETTERS and _WORDY.fullmatch(word)
    )
