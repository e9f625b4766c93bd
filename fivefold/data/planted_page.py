"""Blocks of the report that show the documents with planted facts."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fivefold.data.document import Document
from fivefold.data.page import write_block
from fivefold.data.planted_tokens import PlantedTokens

_DISTANCE_PARTS = 8
_MARKS = {"planted": "⟦{}⟧", "distractor": "⟨{}⟩", "asked": "⟪{}⟫"}


def planted_page(folder: Path, planted: Mapping[str, PlantedTokens]) -> None:
    """Show how far answers lie from their facts, and a document with its facts marked."""
    counts = distance_counts(planted["train"])
    write_block(
        folder,
        "30_planted_distances",
        "lines",
        "Distances of planted facts",
        "Tokens from a planted value to its answer, in training documents; a flat line is the aim.",
        x_label="distance, tokens",
        y_label="share of answers",
        log_x=False,
        log_y=False,
        series=[
            {"name": f"context {context}", "x": centres, "y": shares}
            for context, (centres, shares) in counts.items()
        ],
    )
    write_block(
        folder,
        "31_planted_documents",
        "table",
        "Documents with planted facts",
        "An answer can only be found at a distance. Where the real text does not suffice "
        "for all documents, it is used again, with other facts.",
        columns=[
            *("split", "context, tokens", "documents", "questions", "median distance, tokens"),
            "real text, tokens",
        ],
        rows=[
            [
                *(split, context, len(own), sum(map(len, own))),
                float(np.median(np.concatenate(own))),
                tokens.haystack_tokens,
            ]
            for split, tokens in planted.items()
            for context, own in _distances(tokens).items()
        ],
    )
    example = planted["heldout"].example
    write_block(
        folder,
        "32_planted_example",
        "text",
        "A document with planted facts",
        "A held-out one: ⟦planted⟧, ⟨distractor⟩, ⟪answer asked for⟫; the marks are not in it.",
        text=marked_text(example),
    )


def distance_counts(tokens: PlantedTokens) -> dict[int, tuple[list[float], list[float]]]:
    """Return for each context the centres of eight equal distances and the share of each."""
    result = {}
    for context, own in _distances(tokens).items():
        edges = np.linspace(0, context, _DISTANCE_PARTS + 1)
        counts, _ = np.histogram(np.concatenate(own), edges)
        shares = (counts / counts.sum()).round(4).tolist()
        result[context] = ((edges[:-1] + edges[1:]) / 2).tolist(), shares
    return result


def _distances(tokens: PlantedTokens) -> dict[int, list[list[int]]]:
    """Return the distances of each document, by context."""
    result: dict[int, list[list[int]]] = defaultdict(list)
    for account in tokens.accounts:
        distances = [fact["distance_tokens"] for fact in account["facts"]]
        result[account["context_tokens"]].append(distances)
    return dict(result)


def marked_text(document: Document) -> str:
    """Return a planted document's text with signs around facts, distractors and answers."""
    text = document.text
    spans: list[tuple[int, int, str]] = []
    for fact in document.meta["facts"]:
        asked, at = fact["question_start_character"], fact["answer_start_character"]
        sentence_end = at - asked + len(fact["answer"]) + 1
        spans.append((at, at + len(fact["answer"]), _MARKS["asked"]))
        planted = fact["planted_character"]
        spans.append((planted, planted + sentence_end, _MARKS["planted"]))
        for begin in fact["distractor_characters"]:
            # A distractor ends with its full stop, the only one in it.
            spans.append((begin, text.index(".", begin) + 1, _MARKS["distractor"]))
    for begin, end, mark in sorted(spans, reverse=True):
        text = text[:begin] + mark.format(text[begin:end]) + text[end:]
    return text
