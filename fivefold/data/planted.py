"""Documents with planted facts: real text in which short facts stand, asked for again at the end.

A model answers only by finding the fact at a distance, so the loss on the answers measures what
long contexts and sparse attention are for. The law of distances: the text is divided into as many
equal parts as facts are asked for, and each part holds one of them, uniformly; so all depths are
equally likely and every document spans the context. Each distractor stands uniformly between its
fact and the end of the text, so the last value given for an attribute is never the one asked for.
Depths are rounded to the nearest end of a sentence or line. The order of the
questions tells nothing of the depths.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fivefold.data.config import PLANTED, PlantedConfig
from fivefold.data.document import Document, document_id
from fivefold.data.fact import Fact, FactSource
from fivefold.data.haystack import Haystack
from fivefold.errors import ConfigError
from fivefold.text.tokenizer import Tokenizer

_STREAMS = {"train": 0, "heldout": 1}


@dataclass(frozen=True)
class Plan:
    """What one document plants; depths are shares of its text, from 0 at its beginning to 1."""

    facts: list[Fact]
    """Those that are asked for, in the order of their questions."""
    depths: list[float]
    distractors: list[list[Fact]]
    """Of each fact."""
    distractor_depths: list[list[float]]
    """Of each fact's distractors, each deeper than the fact."""


def planted_document_count(config: PlantedConfig, context_tokens: int, split: str) -> int:
    """Return how many documents a split gets for a context."""
    if split == "heldout":
        return config.heldout_documents
    return -(-config.tokens_per_context // context_tokens)


def plant_documents(
    haystack: Haystack, config: PlantedConfig, split: str, tokenizer: Tokenizer
) -> Iterator[Document]:
    """Yield the documents of a split (train or heldout), context after context.

    Each fills a row of its context, framing included, and no more. Its `meta` holds
    `context_tokens` and `facts`, in the order of their questions: `question_start_character`,
    `answer_start_character`, `answer`, `planted_character` (where the statement begins),
    `distance` (characters from there to the question), `depth` (share of the real text before it)
    and `distractor_characters`. The same arguments give the same documents.

    Raises:
        ConfigError: a context too short for a fact, or more facts than there are values.
    """
    source = FactSource(config, split)
    begin = 0
    for context_tokens in config.contexts:
        # A row predicts as many tokens as the context and holds one more.
        room = context_tokens + 1 - len(tokenizer.frame_document([]))
        for number in range(planted_document_count(config, context_tokens, split)):
            random = np.random.default_rng([config.seed, _STREAMS[split], context_tokens, number])
            reach = haystack.stretch(begin, room)
            plan, plan_tokens = _make_plan(
                random, source, "".join(haystack.units[k] for k in reach), room, config, tokenizer
            )
            chosen = haystack.stretch(begin, room - plan_tokens)
            begin += len(chosen)
            text, facts = _fill(haystack, chosen, plan, room, tokenizer)
            url = f"{split}/{context_tokens}/{number}"
            meta = {"context_tokens": context_tokens, "facts": facts}
            yield Document(document_id(PLANTED, url), text, PLANTED, url, "en", meta)


def _fill(
    haystack: Haystack, chosen: list[int], plan: Plan, room: int, tokenizer: Tokenizer
) -> tuple[str, list[dict[str, Any]]]:
    """Compose a document of these units, less the last ones where it would exceed `room` tokens."""
    while chosen:
        text, facts = compose([haystack.units[k] for k in chosen], haystack.tokens[chosen], plan)
        if len(tokenizer.encode(text)) <= room:
            return text, facts
        chosen = chosen[:-1]
    raise ConfigError(
        expected="`tokens.planted.contexts` that hold facts with their distractors and questions, "
        "and text besides",
        found=f"room for {room} tokens, and no sentence that fits beside the facts",
        fix="Plant in longer contexts, or lower `tokens.planted.distractors` or "
        "`tokens.planted.fact_share`",
    )


def _make_plan(
    random: np.random.Generator,
    source: FactSource,
    haystack: str,
    room: int,
    config: PlantedConfig,
    tokenizer: Tokenizer,
) -> tuple[Plan, int]:
    """Draw as many facts as may stand in a document; return also the tokens that they take."""
    facts: list[Fact] = []
    distractors: list[list[Fact]] = []
    taken: set[str] = set()
    used = 0
    for _ in range(config.facts):
        fact = source.draw(random, haystack, taken)
        taken.add(fact.question)
        others: list[Fact] = []
        for _ in range(config.distractors):
            others.append(source.draw_distractor(random, fact, haystack, taken))
            taken.add(others[-1].question)
        # The fact stands twice: in the text and as question and answer.
        statements = [f"\n\n{one.sentence}\n\n" for one in (fact, fact, *others)]
        size = sum(map(len, tokenizer.encode_batch(statements)))
        if facts and used + size > config.fact_share * room:
            break
        facts.append(fact)
        distractors.append(others)
        used += size
    depths = [(part + random.random()) / len(facts) for part in random.permutation(len(facts))]
    behind = [
        [depth + (1 - depth) * random.random() for _ in others]
        for depth, others in zip(depths, distractors, strict=True)
    ]
    return Plan(facts, depths, distractors, behind), used


def compose(
    units: Sequence[str], unit_tokens: np.ndarray, plan: Plan
) -> tuple[str, list[dict[str, Any]]]:
    """Write the document; return its text and, for each question in order, where things stand.

    `unit_tokens` int64 [units] are the sizes by which depths are measured.
    """
    ends = np.cumsum(unit_tokens)
    gaps = np.array([n for n in range(len(units)) if ends_sentence(units, n)])
    planted: list[tuple[int, float, str]] = []
    for fact, depth, others, behind in zip(
        plan.facts, plan.depths, plan.distractors, plan.distractor_depths, strict=True
    ):
        for one, at in zip([fact, *others], [depth, *behind], strict=True):
            planted.append((_nearest_gap(gaps, ends, at), at, one.sentence))
    # Where several stand at the end of one unit, the deeper one comes later.
    planted.sort(key=lambda entry: entry[:2])
    parts: list[str] = []
    starts: dict[str, int] = {}
    length = 0
    by_unit = {unit: list(rows) for unit, rows in itertools.groupby(planted, lambda row: row[0])}
    for number, unit in enumerate(units):
        pieces = [unit if number else unit.lstrip()]
        following = units[number + 1] if number + 1 < len(units) else "\n"
        blank = following[: len(following) - len(following.lstrip())]
        for _, _, sentence in by_unit.get(number, []):
            separator = blank if "\n" in blank else " "
            starts[sentence] = length + sum(map(len, pieces)) + len(separator)
            pieces += [separator, sentence]
        parts += pieces
        length += sum(map(len, pieces))
    accounts: list[dict[str, Any]] = []
    for number, fact in enumerate(plan.facts):
        separator = "\n" if number else "\n\n"
        question = length + len(separator)
        accounts.append(
            {
                "question_start_character": question,
                "answer_start_character": question + len(fact.question) + 1,
                "answer": fact.value,
                "planted_character": starts[fact.sentence],
                "distance": question - starts[fact.sentence],
                "depth": float(ends[_nearest_gap(gaps, ends, plan.depths[number])] / ends[-1]),
                "distractor_characters": [starts[o.sentence] for o in plan.distractors[number]],
            }
        )
        parts += [separator, fact.sentence]
        length = question + len(fact.sentence)
    return "".join(parts), accounts


def ends_sentence(units: Sequence[str], number: int) -> bool:
    """Does a sentence or line end with this unit?"""
    is_last = number + 1 == len(units)
    return is_last or units[number].endswith((".", "!", "?")) or units[number + 1].startswith("\n")


def _nearest_gap(gaps: np.ndarray, ends: np.ndarray, depth: float) -> int:
    """Return the unit among `gaps` whose end is nearest to this share of the text."""
    return int(gaps[np.abs(ends[gaps] - depth * ends[-1]).argmin()])
