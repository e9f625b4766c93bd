"""Blocks of the report that show what a model is trained on."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fivefold.artifact import write_json
from fivefold.data.document import read_documents
from fivefold.data.pipeline import Corpus
from fivefold.data.reader import Input
from fivefold.data.tokenise import SPLITS, TokensSummary
from fivefold.text.tokenizer import Tokenizer

_SAMPLE_CHARACTERS = 300
_SHOWN_TOKENS = 60
_DOCUMENTS_PER_SOURCE = 50
_LENGTH_EDGES = (200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)


def write_block(folder: Path, name: str, kind: str, title: str, note: str, **content: Any) -> None:
    """Write one block, `folder`/`name`.json."""
    write_json(folder / f"{name}.json", {"kind": kind, "title": title, "note": note, **content})


def corpus_page(folder: Path, inputs: Sequence[Input], corpus: Corpus) -> None:
    """Show the sources with their licences, what was dropped and why, lengths, and a sample."""
    ledger = corpus.ledger
    write_block(
        folder,
        "10_sources",
        "table",
        "Sources",
        "Text as it goes into training and validation, after extraction and de-duplication."
        + (f" Not read to the end: {', '.join(sorted(ledger.full))}." if ledger.full else ""),
        columns=["source", "what", "licence", "documents", "MB", "held out, MB"],
        rows=[
            [
                source.name,
                source.what,
                source.licence,
                ledger.kept[source.name],
                round(ledger.kept_bytes[source.name] / 1e6, 3),
                round(corpus.heldout_bytes.get(source.name, 0) / 1e6, 3),
            ]
            for source in (entry.source for entry in inputs)
        ],
    )
    reasons = sorted({reason for _, reason in ledger.drops})
    write_block(
        folder,
        "20_drops",
        "table",
        "Documents read, dropped and kept",
        "Every document read is kept or dropped for one of these reasons.",
        columns=["source", "read", *reasons, "kept"],
        rows=[
            [
                name,
                read,
                *(ledger.drops[name, reason] for reason in reasons),
                ledger.kept[name],
            ]
            for name, read in ledger.read.items()
        ],
    )
    write_block(
        folder,
        "30_lengths",
        "bars",
        "Document lengths",
        "Characters of a document after extraction; longer texts were cut into parts.",
        x_label="characters",
        y_label="documents",
        bars=_length_bars(corpus.character_counts),
    )
    write_block(
        folder,
        "40_samples",
        "samples",
        "How the sources read",
        "The beginning of the first training document of each source.",
        samples=_first_documents(corpus.train),
    )


def _length_bars(character_counts: Sequence[int]) -> list[dict[str, str | int]]:
    edges = (0, *_LENGTH_EDGES)
    bins = np.searchsorted(_LENGTH_EDGES, character_counts, side="right")
    counts = np.bincount(bins, minlength=len(edges))
    names = [f"{low:,} to {high:,}" for low, high in zip(edges, _LENGTH_EDGES, strict=False)]
    names.append(f"{edges[-1]:,} and more")
    return [{"name": n, "value": int(c)} for n, c in zip(names, counts, strict=True) if c]


def _first_documents(path: Path) -> list[dict[str, str]]:
    seen: set[str] = set()
    samples = []
    for document in read_documents(path):
        if document.source not in seen:
            seen.add(document.source)
            text = document.text[:_SAMPLE_CHARACTERS]
            samples.append({"label": document.source, "prompt": "", "text": text})
    return samples


def tokenizer_page(folder: Path, corpus: Path, tokenizer: Tokenizer) -> float:
    """Show bytes per token by source and how a sentence falls apart; return the mean.

    Measured on held-out documents, or on training documents where nothing is held out.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for split in reversed(SPLITS):
        for document in read_documents(corpus / f"{split}.jsonl.zst"):
            if len(texts[document.source]) < _DOCUMENTS_PER_SOURCE:
                texts[document.source].append(document.text)
        if any(texts.values()):
            break
    sizes = {name: sum(len(text.encode()) for text in some) for name, some in texts.items()}
    counts = {name: sum(map(len, tokenizer.encode_batch(some))) for name, some in texts.items()}
    write_block(
        folder,
        "10_bytes_per_token",
        "bars",
        "Bytes per token",
        "UTF-8 bytes that one token stands for, on text that the tokenizer was not trained on.",
        x_label="source",
        y_label="bytes per token",
        bars=[
            {"name": name, "value": round(sizes[name] / counts[name], 3)} for name in sorted(sizes)
        ],
    )
    rows = []
    for name in sorted(texts):
        text = texts[name][0][:_SAMPLE_CHARACTERS]
        pieces = [
            tokenizer.decode([token]) for token in islice(tokenizer.encode(text), _SHOWN_TOKENS)
        ]
        rows.append([name, "|".join(pieces)])
    write_block(
        folder,
        "20_pieces",
        "table",
        "How text falls into tokens",
        "A bar stands between tokens; a replacement sign is part of a character.",
        columns=["source", "tokens"],
        rows=rows,
    )
    return sum(sizes.values()) / sum(counts.values())


def tokens_page(folder: Path, summary: TokensSummary, gzip_bits_per_byte: float) -> None:
    """Show tokens by source and how full the packed rows are."""
    by_source: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for place, split in enumerate(SPLITS):
        for manifest in summary.manifests[split]:
            by_source[manifest.source][2 * place] = manifest.tokens
            if split == "train":
                by_source[manifest.source][1] = manifest.documents
    write_block(
        folder,
        "10_tokens",
        "table",
        "Tokens",
        f"gzip -9 needs {gzip_bits_per_byte:.3f} bits for a byte of the held-out text.",
        columns=["source", "training tokens", "training documents", "held-out tokens"],
        rows=[[name, *counts] for name, counts in sorted(by_source.items())],
    )
    write_block(
        folder,
        "20_packs",
        "table",
        "Packed rows",
        "Utilisation is the share of a row's places that hold a token.",
        columns=["split", "source", "context, tokens", "rows", "utilisation, %"],
        rows=[
            [
                pack.split,
                pack.source,
                pack.context_tokens,
                pack.rows,
                round(100 * pack.utilisation, 2),
            ]
            for pack in summary.packs
        ],
    )
