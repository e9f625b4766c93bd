"""Blocks of the report: how one is written, and those of the tokenizer."""

from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

from fivefold.artifact import write_json
from fivefold.data.document import read_documents
from fivefold.text.tokenizer import Tokenizer

_SAMPLE_CHARACTERS = 300
_SHOWN_TOKENS = 60
_DOCUMENTS_PER_SOURCE = 50


def write_block(folder: Path, name: str, kind: str, title: str, note: str, **content: Any) -> None:
    """Write one block, `folder`/`name`.json."""
    write_json(folder / f"{name}.json", {"kind": kind, "title": title, "note": note, **content})


def tokenizer_page(folder: Path, corpus: Path, tokenizer: Tokenizer) -> float:
    """Show bytes per token by source and how a sentence falls apart; return the mean.

    Measured on held-out documents, or on training documents where nothing is held out.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for split in ("heldout", "train"):
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
