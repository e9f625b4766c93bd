"""Blocks of the report that show what a corpus holds, how it was packed, and what was mixed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fivefold.data.document import read_documents
from fivefold.data.loader import RowLoader
from fivefold.data.page import write_block
from fivefold.data.pipeline import Corpus
from fivefold.data.tokenise import TokensSummary

_SAMPLE_CHARACTERS = 300


def corpus_page(folder: Path, sources: Sequence[Mapping[str, Any]], corpus: Corpus) -> None:
    """Show the sources with their licences, what the corpus dropped itself, and samples kept."""
    ledger = corpus.ledger
    write_block(
        folder,
        "10_sources",
        "table",
        "Sources",
        "Text as it goes into training and validation, after curation.",
        columns=["source", "what", "licence", "documents", "MB", "held out, MB"],
        rows=[
            [
                source["name"],
                source["what"],
                source["licence"],
                source["documents"],
                round(source["bytes"] / 1e6, 3),
                round(source["heldout_bytes"] / 1e6, 3),
            ]
            for source in sources
        ],
    )
    reasons = sorted({reason for _, reason in ledger.drops})
    write_block(
        folder,
        "20_drops",
        "table",
        "Curated documents, dropped and kept",
        "Copies between recipes go; a long page counts as its parts.",
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
        "40_samples",
        "samples",
        "Kept: how the sources read",
        "The beginning of the first training document of each source.",
        samples=_first_documents(corpus.train),
    )


def _first_documents(path: Path) -> list[dict[str, str]]:
    seen: set[str] = set()
    samples = []
    for document in read_documents(path):
        if document.source not in seen:
            seen.add(document.source)
            text = document.text[:_SAMPLE_CHARACTERS]
            samples.append({"label": document.source, "prompt": "", "text": text})
    return samples


def tokens_page(folder: Path, summary: TokensSummary, gzip_bits_per_byte: float) -> None:
    """Show tokens by source and how full the packed rows are."""
    training = {one.source: one for one in [*summary.manifests["train"], *summary.long]}
    heldout = {one.source: one.tokens for one in summary.manifests["heldout"]}
    rows = [
        [
            name,
            one.tokens,
            one.documents,
            round(summary.epochs.get(name, 1.0), 3),
            heldout.get(name),
        ]
        for name, one in sorted(training.items())
    ]
    rows += [[name, 0, 0, None, n] for name, n in sorted(heldout.items()) if name not in training]
    write_block(
        folder,
        "10_tokens",
        "table",
        "Tokens",
        "Epochs wanted: how often curation would have a token seen. "
        f"gzip -9 needs {gzip_bits_per_byte:.3f} bits for a byte of the held-out text.",
        columns=[
            "source",
            "training tokens",
            "training documents",
            "epochs wanted",
            "held-out tokens",
        ],
        rows=rows,
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


def mixture_page(folder: Path, name: str, loader: RowLoader) -> dict[str, float]:
    """Show what a loader has given of each source and tier; return it as metrics.

    Written anew along training: the last one is the account of the whole.
    """
    account = loader.account
    rows = sum(given.rows for given in account)
    write_block(
        folder,
        f"06_mixture_{name}",
        "table",
        f"What was mixed at {loader.context_tokens:,} tokens",
        "Rows that training took of each source and tier; an epoch is one pass over all of its "
        "rows. Sources that end in `.long` are long pieces.",
        columns=["source", "rows", "share, %", "tokens", "epochs"],
        rows=[
            [
                given.name,
                given.rows,
                round(100 * given.rows / max(1, rows), 2),
                given.tokens,
                round(given.epochs, 4),
            ]
            for given in account
        ],
    )
    return {f"mixture/epochs_{given.name}": round(given.epochs, 6) for given in account}
