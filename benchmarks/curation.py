"""Curation on one core: our heuristics chain against datatrove's filters, ours against datasketch.

The same pages go through both chains (Gopher repetition, Gopher quality, C4, FineWeb). datatrove
splits English with spaCy and refuses to without it; so `ratio` is against spaCy where that is
installed, and `ratio_with_our_words` against the same filters given our splitter, several times as
fast. Without spaCy `ratio` is the latter; `peer_words` says which. `detail` holds the other
measurements, each of interleaved pairs too: MinHash signatures with shingling against datasketch
and, where it is installed, rensa, and our speed on the DCLM chain and on Bloom. Pages: a finished
corpus (`--corpus`), else the texts of installed packages. From `--html SOURCE` (a path, or a name
of the catalogue) also extraction, beside resiliparse alone, and the whole path from HTML to
documents and to tokens, with each step's share of the time.
"""

import argparse
import importlib
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
from datatrove.utils.text import split_into_parts
from harness import add_options, compare, pair_count
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from fivefold.data.curate.config import (
    BloomConfig,
    ExtractConfig,
    HeuristicsConfig,
    LanguageConfig,
    MinHashConfig,
)
from fivefold.data.curate.heuristics import judge
from fivefold.data.curate.language import load_identifier
from fivefold.data.curate.minhash import text_signature
from fivefold.data.curate.paragraph_dedup import ParagraphDedup
from fivefold.data.curate.raw_page import RawPage, read_shard
from fivefold.data.curate.shard import find_shards
from fivefold.data.curate.web_page import extract_page
from fivefold.data.curate.words import count_sentences, treebank_words, unicode_words
from fivefold.data.dedup import text_fingerprint
from fivefold.data.document import read_documents
from fivefold.errors import DownloadError
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer

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


_THEIR_WORDS = word_tokenizers.load_word_tokenizer


def peer_chain(words: str) -> Callable[[Sequence[str]], list[bool]]:
    """Return datatrove's chain over texts; `words` says who splits them, `spacy` or `ours`."""
    filters = [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    ]
    load = _THEIR_WORDS if words == "spacy" else lambda language: OurWords()

    def keep(texts: Sequence[str]) -> list[bool]:
        word_tokenizers.load_word_tokenizer = load  # type: ignore[assignment]
        # datatrove remembers the words of the last texts, whoever split them.
        split_into_parts.cache_clear()
        pages = [Page(text=text, id="") for text in texts]
        return [all(step.filter(page) is True for step in filters) for page in pages]

    return keep


def shingle_strings(text: str, config: MinHashConfig) -> list[str]:
    """Return the shingles that we hash, as strings, for libraries that take those."""
    words = unicode_words(text.lower())
    size = config.shingle_words
    return [" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))]


def datasketch_signature(text: str, config: MinHashConfig) -> object:
    """Return datasketch's signature of the same shingles."""
    sketch = MinHash(num_perm=config.bands * config.rows)
    sketch.update_batch([shingle.encode() for shingle in set(shingle_strings(text, config))])
    return sketch


def rensa_sides(pages: Sequence[str], config: MinHashConfig) -> dict[str, Callable[[], object]]:
    """Return rensa's signatures of the same shingles to be measured; nothing without rensa."""
    if not importlib.util.find_spec("rensa"):
        return {}
    rensa = importlib.import_module("rensa")

    def sign(text: str) -> object:
        sketch = rensa.RMinHash(num_perm=config.bands * config.rows, seed=config.seed)
        sketch.update(shingle_strings(text, config))
        return sketch.digest()

    return {"rensa": lambda: [sign(page) for page in pages]}


def measure(
    sides: dict[str, Callable[[], object]], pairs: int, work: float
) -> dict[str, list[float]]:
    """Return units a second of processor time for each side, run in turn after a warm-up."""
    for call in sides.values():
        call()
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name, call in sides.items() if pair % 2 == 0 else reversed(sides.items()):
            start = time.process_time()
            call()
            speeds[name].append(work / (time.process_time() - start))
    return speeds


def other_measurements(pages: Sequence[str], pairs: int) -> dict[str, Any]:
    """Return documents a second of the other parts, and ratios (median, least, greatest)."""
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
            **rensa_sides(pages, minhash),
        },
        pairs,
        len(pages),
    )
    peers = {"minhash_ratio": "datasketch", "minhash_ratio_rensa": "rensa"}
    return {
        **{f"{name}_docs_per_s": round(statistics.median(run), 1) for name, run in speeds.items()},
        **{
            name: ratio_of(speeds["minhash"], speeds[peer])
            for name, peer in peers.items()
            if peer in speeds
        },
    }


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the median, least and greatest ratio of speeds that were measured in turn."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]


def other_words(pages: Sequence[str], pairs: int) -> dict[str, Any]:
    """Return the ratio to datatrove's chain with our splitter."""
    config, keep = HeuristicsConfig(mode="datatrove"), peer_chain("ours")
    sides = {
        "ours": lambda: [judge(page, config, "en") for page in pages],
        "theirs": lambda: keep(pages),
    }
    speeds = measure(sides, pairs, len(pages))
    return {"ratio_with_our_words": ratio_of(speeds["ours"], speeds["theirs"])}


def read_html(source: str, bytes_at_most: int) -> list[bytes]:
    """Return raw pages of a source, up to a number of bytes; none where it cannot be had."""
    pages, size = [], 0
    try:
        shards = find_shards([source])
    except DownloadError:
        # Without a network there is nothing to measure this part on; the JSON then lacks it.
        return []
    for shard in shards:
        for found in read_shard(shard, ExtractConfig()):
            if isinstance(found, RawPage) and found.form == "html" and size < bytes_at_most:
                pages.append(found.content)
                size += len(found.content)
    return pages


def resiliparse_text(page: bytes) -> str:
    """Return what resiliparse finds, with our settings and nothing around it."""
    tree = HTMLTree.parse(page.decode(errors="replace"))
    return extract_plain_text(
        tree, main_content=True, alt_texts=False, links=False, preserve_formatting=True
    )


def measure_path(html: Sequence[bytes], pairs: int) -> dict[str, Any]:
    """Return MB/s of processor time from HTML on, and the share of each step.

    MB of HTML for extraction; MB of extracted text for the whole path, in memory and on one core.
    """
    heuristics, minhash = HeuristicsConfig(), MinHashConfig()
    identify, language = load_identifier(""), LanguageConfig()
    alone = measure(
        {
            "resiliparse": lambda: [resiliparse_text(page) for page in html],
            "ours": lambda: [extract_page(page, "html") for page in html],
        },
        pairs,
        sum(map(len, html)) / 1e6,
    )
    texts = [extract_page(page, "html").text for page in html]
    sample = iter(texts[: max(1, len(texts) // 4)])
    tokenizer = Tokenizer(train_tokenizer(sample, TokenizerConfig(vocab_size=4096)))
    runs: list[dict[str, float]] = []
    for _ in range(pairs):
        spent: dict[str, float] = {}
        clock = time.process_time()

        def lap(name: str, spent: dict[str, float] = spent) -> None:
            nonlocal clock
            now = time.process_time()
            spent[name], clock = now - clock, now

        texts = [extract_page(page, "html").text for page in html]
        lap("extract")
        english = [text for text in texts if identify(text)[0] in language.keep]
        lap("language")
        verdicts = [judge(text, heuristics, "en") for text in english]
        kept = [verdict.text for verdict in verdicts if verdict.is_kept]
        lap("heuristics")
        for text in kept:
            text_fingerprint(text)
            text_signature(text, minhash)
        lap("minhash")
        rule = ParagraphDedup(BloomConfig())
        left = [verdict.text for text in kept if (verdict := rule.judge(text)).is_kept]
        lap("bloom")
        tokenizer.encode_batch(left)
        lap("tokenise")
        runs.append(spent)
    spent = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    total = sum(spent.values())
    text_mb = sum(len(text.encode()) for text in texts) / 1e6
    return {
        "html_mb": round(sum(map(len, html)) / 1e6, 2),
        "text_mb": round(text_mb, 2),
        "extract_html_mb_per_s": round(sum(map(len, html)) / 1e6 / spent["extract"], 2),
        "resiliparse_alone_html_mb_per_s": round(statistics.median(alone["resiliparse"]), 2),
        "extract_share_of_resiliparse_alone": ratio_of(alone["ours"], alone["resiliparse"]),
        "path_text_mb_per_s": round(text_mb / total, 3),
        "path_without_tokens_text_mb_per_s": round(text_mb / (total - spent["tokenise"]), 3),
        "path_shares": {name: round(seconds / total, 3) for name, seconds in spent.items()},
    }


def main() -> None:
    """Measure documents a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--pages", type=int, default=0, help="default 400, quick 150")
    parser.add_argument("--corpus", default="", help="a .jsonl.zst of documents")
    parser.add_argument("--html", default="sqlite-doc", help="HTML to measure the whole path on")
    options = parser.parse_args()
    options.threads = 1

    pages = read_pages(options.corpus, options.pages or (150 if options.quick else 400))
    config = HeuristicsConfig(mode="datatrove")
    words = "spacy" if importlib.util.find_spec("spacy") else "ours"
    keep = peer_chain(words)
    html = read_html(options.html, 5_000_000 if options.quick else 20_000_000)
    kept = [judge(page, config, "en").is_kept for page in pages]
    agreed = sum(a == b for a, b in zip(kept, keep(pages), strict=True))
    compare(
        "curation",
        lambda: [judge(page, config, "en") for page in pages],
        lambda: keep(pages),
        work=len(pages),
        unit="documents/s",
        options=options,
        detail={
            "peer_words": words,
            "pages": len(pages),
            "mean_characters": round(sum(map(len, pages)) / len(pages)),
            "kept_share": round(sum(kept) / len(pages), 3),
            "same_verdict_share": round(agreed / len(pages), 4),
            **other_words(pages, pair_count(options)),
            **other_measurements(pages, pair_count(options)),
            **(measure_path(html, pair_count(options)) if html else {}),
        },
    )


if __name__ == "__main__":
    main()
