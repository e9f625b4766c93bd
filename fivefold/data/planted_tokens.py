"""Documents with planted facts as token files, with the places of the answers beside them.

    planted.bin/.idx/.json   the tokens of a split
    planted.CONTEXT.npz      the rows of a context
    planted.answers.json     for each document, where answers and planted values lie

One token file holds the documents of all contexts; the pack of a context has those made for it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fivefold.artifact import write_json
from fivefold.data.config import PLANTED, PlantedConfig
from fivefold.data.document import Document
from fivefold.data.haystack import read_haystack
from fivefold.data.loader import Rows, assemble_rows
from fivefold.data.packed_source import open_derived
from fivefold.data.packing import Pack, pack_documents, save_pack
from fivefold.data.planted import plant_documents, planted_document_count
from fivefold.data.token_file import TokenManifest, write_token_file
from fivefold.errors import CorruptFileError, MismatchError, MissingFileError
from fivefold.stage import ProgressTask, Track
from fivefold.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PlantedTokens:
    """The planted documents of one split, tokenised."""

    manifest: TokenManifest
    packs: dict[int, Pack]
    """By context."""
    accounts: list[dict[str, Any]]
    """For each document `context_tokens` and `facts`, places counted in tokens."""
    example: Document
    """The first document of the longest context."""
    haystack_tokens: int
    """Tokens of the real text that all documents share."""


class PlantedRows(NamedTuple):
    """Held-out documents with planted facts, a row each."""

    rows: Rows
    answer_mask: np.ndarray
    """Where `rows.ids` hold a token of an answer: bool [rows, context + 1]."""


def tokenise_planted(
    documents: Path, out: Path, config: PlantedConfig, tokenizer: Tokenizer, track: Track
) -> PlantedTokens:
    """Plant facts in the text of a split's document file; write tokens and packs into `out`.

    The names of `documents` (train.jsonl.zst) and `out` (train/) say the split.

    Raises:
        ConfigError: too little text, a context too short for a fact, or too few values.
        StorageError: the disk is full.
    """
    split = out.name
    counts = {c: planted_document_count(config, c, split) for c in config.contexts}
    needed = sum(context * count for context, count in counts.items())
    haystack = read_haystack(documents, needed, max(config.contexts), tokenizer, config.seed)
    examples: dict[int, Document] = {}
    accounts: list[dict[str, Any]] = []
    with track(f"plant facts {split}", sum(counts.values()), "documents") as task:
        stream = plant_documents(haystack, config, split, tokenizer)
        manifest = write_token_file(
            out / PLANTED,
            _framed(stream, tokenizer, examples, accounts, task),
            vocab_size=tokenizer.vocab_size,
            tokenizer_hash=tokenizer.content_hash,
            source=PLANTED,
        )
    packs = _write_packs(out, accounts, manifest, config)
    write_json(
        out / f"{PLANTED}.answers.json",
        {"tokens_sha256": manifest.sha256, "documents": accounts},
    )
    return PlantedTokens(
        manifest, packs, accounts, examples[max(examples)], int(haystack.tokens.sum())
    )


def _framed(
    stream: Iterator[Document],
    tokenizer: Tokenizer,
    examples: dict[int, Document],
    accounts: list[dict[str, Any]],
    task: ProgressTask,
) -> Iterator[list[int]]:
    """Yield framed ids; append each document's account, keep the first of each context."""
    token_bytes = tokenizer.token_bytes()
    for document in stream:
        ids = tokenizer.frame_document(tokenizer.encode(document.text))
        examples.setdefault(document.meta["context_tokens"], document)
        accounts.append(locate_answers(document, ids, token_bytes))
        task.advance()
        yield ids


def locate_answers(document: Document, ids: list[int], token_bytes: np.ndarray) -> dict[str, Any]:
    """Return the places, in the framed `ids`, of a document's answers and planted values.

    `token_bytes` int32 [W] are the bytes of each id. A fact has `question`, `answer`,
    `answer_token` and `answer_tokens` (first token and count; the space before it may belong to
    it), `planted_token` (of the value in the text), `distance_tokens` between the two, `depth`.
    """
    ends = np.cumsum(token_bytes[ids])
    text = document.text
    facts = []
    for fact in document.meta["facts"]:
        asked, at = fact["question_start_character"], fact["answer_start_character"]
        value_at = fact["planted_character"] + at - asked
        first, count = _token_span(ends, text, at, len(fact["answer"]))
        planted_token, _ = _token_span(ends, text, value_at, len(fact["answer"]))
        facts.append(
            {
                "question": text[asked : at - 1],
                "answer": fact["answer"],
                "answer_token": first,
                "answer_tokens": count,
                "planted_token": planted_token,
                "distance_tokens": first - planted_token,
                "depth": round(fact["depth"], 6),
            }
        )
    return {
        "context_tokens": document.meta["context_tokens"],
        "tokens": len(ids),
        "facts": facts,
    }


def _token_span(ends: np.ndarray, text: str, begin: int, characters: int) -> tuple[int, int]:
    """Return the first token and the count of those that hold these characters."""
    begin_byte = len(text[:begin].encode())
    end_byte = begin_byte + len(text[begin : begin + characters].encode())
    first = int(np.searchsorted(ends, begin_byte, side="right"))
    last = int(np.searchsorted(ends, end_byte, side="left"))
    return first, last - first + 1


def _write_packs(
    out: Path, accounts: list[dict[str, Any]], manifest: TokenManifest, config: PlantedConfig
) -> dict[int, Pack]:
    packs = {}
    contexts = np.array([account["context_tokens"] for account in accounts])
    lengths = np.array([account["tokens"] for account in accounts])
    for context in config.contexts:
        # Documents without a token get no place in a pack.
        packs[context] = pack_documents(
            np.where(contexts == context, lengths, 0), context, "best_fit"
        )
        save_pack(out / f"{PLANTED}.{context}.npz", packs[context], manifest.sha256)
    return packs


def read_planted_rows(directory: Path, context_tokens: int, pad_id: int) -> PlantedRows:
    """Return the held-out planted documents of a TokensStage's directory, in a fixed order.

    The loss on answers is that of the places where `answer_mask[:, 1:]` holds, as labels are
    `ids[:, 1:]`.

    Raises:
        ConfigError: none were planted for the context.
        MissingFileError, CorruptFileError, MismatchError: the answers are not there, are damaged,
            or belong to other tokens.
    """
    (source,) = open_derived(directory, context_tokens, PLANTED, "heldout")
    path = directory / "heldout" / f"{PLANTED}.answers.json"
    if not path.is_file():
        raise MissingFileError(
            expected=f"the places of planted answers in `{path}`",
            found="no such file",
            fix="Make the token files again: run the recipe with `--fresh --only tokens`",
        )
    is_answer = np.zeros(len(source.tokens.ids), dtype=np.int32)
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
        found = answers["tokens_sha256"]
        for start, document in zip(source.tokens.starts, answers["documents"], strict=False):
            for fact in document["facts"]:
                first = int(start) + fact["answer_token"]
                is_answer[first : first + fact["answer_tokens"]] = 1
    except (ValueError, LookupError, TypeError) as error:
        raise CorruptFileError(
            expected=f"the places of planted answers in `{path}`",
            found=f"{type(error).__name__}: {error}",
            fix="Make the token files again: run the recipe with `--fresh --only tokens`",
        ) from error
    if found != source.tokens.manifest.sha256:
        raise MismatchError(
            expected=f"answers for the tokens {source.tokens.manifest.sha256[:16]} in `{path}`",
            found=f"those for {str(found)[:16]}",
            fix="Make the token files again: run the recipe with `--fresh --only tokens`",
        )
    numbers = np.arange(source.pack.rows)
    rows = assemble_rows(source, numbers, pad_id)
    # Assembled like the ids, the marks fall where the pack puts the tokens.
    marks = replace(source, tokens=replace(source.tokens, ids=is_answer))
    return PlantedRows(rows, assemble_rows(marks, numbers, pad_id=0).ids == 1)
