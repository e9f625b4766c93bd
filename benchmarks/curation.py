"""Curation on one core: our heuristics chain against datatrove's filters, ours against datasketch.

The same pages go through both chains (Gopher repetition, Gopher quality, C4, FineWeb). datatrove
splits words with spaCy where that is installed; without it the peer is given our splitter, which
is several times as fast, and the JSON says so (`peer_words`). `detail` holds the other
measurements, each of interleaved pairs too: MinHash signatures with shingling against datasketch,
and our speed on the DCLM chain and on Bloom. Pages: a finished corpus (`--corpus`), else the texts
of installed packages.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import datatrove.utils.word_tokenizers as word_tokenizers
from datasketch import MinHash
from datatrove.data import Document as Page
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from harness import add_options, compare, pair_count

from fivefold.data.curate.config import BloomConfig, HeuristicsConfig, MinHashConfig
from fivefold.data.curate.heuristics import judge
from fivefold.data.curate.minhash import text_signature
from fivefold.data.curate.paragraph_dedup import ParagraphDedup
from fivefold.data.curate.words import count_sentences, treebank_words, unicode_words
from fivefold.data.document import read_documents

_PAGE_CHARACTERS = 7000
"""Mean length of a page of the web after extraction."""


class OurWords(word_tokenizers.WordTokenizer):
    """Our splitter in datatrove's clothes."""

    def word_tokenize(self, text: str) -> list[str]:
        """Split into words."""
        return treebank_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Not asked for by the filters measured here."""
        raise AssertionError("filters ask for spans of sentences")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Give as many spans as there are sentences; the filters only count them."""
        return [(0, 0)] * count_sentences(treebank_words(text))


def read_pages(corpus: str, count: int) -> list[str]:
    """Return texts cut to a page's length, evenly chosen."""
    if corpus:
        documents = read_documents(Path(corpus))
        texts = [one.text for one in documents if one.source != "python-stdlib"]
    else:
        readmes = [distribution.read_text("METADATA") or "" for distribution in distributions()]
        texts = [*sorted(readmes), *topics.values()]
    pages = [
        text[begin : begin + _PAGE_CHARACTERS]
        for text in texts
        for begin in range(0, len(text), _PAGE_CHARACTERS)
    ]
    return pages[:: max(1, len(pages) // count)][:count]


def peer_chain() -> tuple[str, Callable[[str], bool]]:
    """Return who splits the words, and datatrove's chain over one text."""
    words = "spacy" if importlib.util.find_spec("spacy") else "ours"
    if words == "ours":
        word_tokenizers.load_word_tokenizer = lambda language: OurWords()  # type: ignore[assignment]
    filters = [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    ]

    def keeps(text: str) -> bool:
        page = Page(text=text, id="")
        return all(step.filter(page) is True for step in filters)

    return words, keeps


def datasketch_signature(text: str, config: MinHashConfig) -> object:
    """Return datasketch's signature of the same shingles."""
    words = unicode_words(text.lower())
    size = config.shingle_words
    shingles = {" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}
    sketch = MinHash(num_perm=config.bands * config.rows)
    sketch.update_batch([shingle.encode() for shingle in shingles])
    return sketch


def measure(
    sides: dict[str, Callable[[], object]], pairs: int, work: float
) -> dict[str, list[float]]:
    """Return units a second of processor time for each side, run in turn."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name, call in sides.items() if pair % 2 == 0 else reversed(sides.items()):
            start = time.process_time()
            call()
            speeds[name].append(work / (time.process_time() - start))
    return speeds


def other_measurements(pages: Sequence[str], pairs: int) -> dict[str, Any]:
    """Return documents a second of the other parts, and the median ratio to datasketch."""
    minhash, dclm = MinHashConfig(), HeuristicsConfig()

    def bloom() -> None:
        rule = ParagraphDedup(BloomConfig())
        for page in pages:
            rule.judge(page)

    speeds = measure(
        {
            "minhash": lambda: [text_signature(page, minhash) for page in pages],
            "datasketch": lambda: [datasketch_signature(page, minhash) for page in pages],
            "dclm_heuristics": lambda: [judge(page, dclm, "en") for page in pages],
            "bloom": bloom,
        },
        pairs,
        len(pages),
    )
    ratios = [a / b for a, b in zip(speeds["minhash"], speeds["datasketch"], strict=True)]
    return {
        **{f"{name}_docs_per_s": round(statistics.median(run), 1) for name, run in speeds.items()},
        "minhash_ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Measure documents a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--pages", type=int, default=0, help="default 400, quick 150")
    parser.add_argument("--corpus", default="", help="a .jsonl.zst of documents")
    options = parser.parse_args()
    options.threads = 1

    pages = read_pages(options.corpus, options.pages or (150 if options.quick else 400))
    config = HeuristicsConfig(mode="datatrove")
    words, peer_keeps = peer_chain()
    kept = [judge(page, config, "en").is_kept for page in pages]
    agreed = sum(a == peer_keeps(page) for a, page in zip(kept, pages, strict=True))
    compare(
        "curation",
        lambda: [judge(page, config, "en") for page in pages],
        lambda: [peer_keeps(page) for page in pages],
        work=len(pages),
        unit="documents/s",
        options=options,
        detail={
            "peer_words": words,
            "pages": len(pages),
            "mean_characters": round(sum(map(len, pages)) / len(pages)),
            "kept_share": round(sum(kept) / len(pages), 3),
            "same_verdict_share": round(agreed / len(pages), 4),
            **other_measurements(pages, pair_count(options)),
        },
    )


if __name__ == "__main__":
    main()
