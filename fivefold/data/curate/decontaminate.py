"""Benchmark items in documents: an index of word runs, built once, and what a document holds of it.

Texts are compared as words: letters and digits in lower case, compatibility forms made plain, each
Chinese character one word; so that other cases, spaces, line breaks and punctuation change nothing.
Of every item the runs of 13 words (`ngram_words`) of its question and, going on from there, of its
answer are hashed into a sorted array. An item is found where a run with a word of its answer is
found, or half of its question's runs. An item of fewer than 13 words is one run of its own length;
one of fewer than 8 is not looked for: ordinary texts hold it. Runs in more than 10 different items
are boilerplate and nobody's; copies of an item are one.

Surprise: a calculator's marks (`<<48/2=24>>`) stand in some copies of an answer and not in others,
so both forms are indexed.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fivefold.artifact import atomic_write
from fivefold.data.curate.benchmark import Item
from fivefold.data.curate.decontaminate_config import DecontaminationConfig
from fivefold.data.curate.grams import Grams
from fivefold.data.curate.lexicon import Hashes, measure_words
from fivefold.data.curate.verdict import Edit, Verdict

_IDEOGRAPHS = r"\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(
    rf"\d{{1,3}}(?:,\d{{3}})+(?![,\d])|[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+", re.UNICODE
)
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def plain_words(text: str) -> list[str]:
    """Return the words by which texts are compared."""
    found = _WORD.findall(text)
    if text.isascii():
        return [word.replace(",", "").lower() for word in found]
    return [_plain(word) for word in found]


def _plain(word: str) -> str:
    return unicodedata.normalize("NFKC", word).replace(",", "").lower()


@dataclass(frozen=True)
class Match:
    """An item that a document holds."""

    item: int
    """Number of the item in the index."""
    share: float
    """Share of its question's runs, or 1 where one of its answer's is found."""
    words: tuple[tuple[int, int], ...]
    """Where: runs of words, first and one after the last, in order."""


class BenchmarkIndex:
    """All runs of all items, by the hash."""

    def __init__(
        self,
        hashes: Hashes,
        owners: NDArray[np.int32],
        sizes: NDArray[np.int32],
        is_answer: NDArray[np.bool_],
        items: list[tuple[str, str]],
    ) -> None:
        """Take runs in the order of (words, hash), and (benchmark, name) of each item."""
        self.hashes, self.owners, self.sizes, self.is_answer = hashes, owners, sizes, is_answer
        self.items = items
        self._begins = {
            int(size): slice(*np.searchsorted(sizes, [size, size + 1]).tolist())
            for size in np.unique(sizes)
        }
        self._prompt_runs = np.bincount(owners[~is_answer], minlength=len(items))

    def find(self, text: str, config: DecontaminationConfig) -> list[Match]:
        """Return the items that a text holds, the surest first."""
        grams = Grams(measure_words(plain_words(text)))
        answers: set[int] = set()
        prompts: defaultdict[int, set[int]] = defaultdict(set)
        places: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for size, part in self._begins.items():
            for place, run in self._lookup(grams.hashes(size), part):
                owner = int(self.owners[run])
                places[owner].append((place, place + size))
                if self.is_answer[run]:
                    answers.add(owner)
                else:
                    prompts[owner].add(run)
        shares = {item: len(runs) / self._prompt_runs[item] for item, runs in prompts.items()}
        shares |= dict.fromkeys(answers, 1.0)
        found = [
            Match(item, share, _join(places[item]))
            for item, share in shares.items()
            if share >= config.prompt_share
        ]
        return sorted(found, key=lambda match: (-match.share, match.item))

    def _lookup(self, hashes: Hashes, part: slice) -> Iterator[tuple[int, int]]:
        """Yield each place in a text and the run of the index that stands there."""
        known = self.hashes[part]
        first = np.searchsorted(known, hashes)
        is_found = known[np.minimum(first, len(known) - 1)] == hashes
        for place in np.flatnonzero(is_found).tolist():
            run = int(first[place])
            while run < len(known) and known[run] == hashes[place]:
                yield place, part.start + run
                run += 1


def _join(places: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return runs that touch or overlap as one."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(places):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return tuple(joined)


def build_index(
    items: Iterable[Item], config: DecontaminationConfig
) -> tuple[BenchmarkIndex, dict[str, dict[str, int]]]:
    """Return the index, and for each benchmark how many items it has and how many are looked for.

    The counts: `items`; `short`, of too few words; `boilerplate`, of which every run is.
    """
    names: list[tuple[str, str]] = []
    runs: dict[tuple[int, int], dict[int, bool]] = {}
    counts: dict[str, dict[str, int]] = {}
    first: dict[tuple[str, str], int] = {}
    copies: defaultdict[int, list[str]] = defaultdict(list)
    for number, item in enumerate(items):
        count = counts.setdefault(item.benchmark, {"items": 0, "short": 0, "boilerplate": 0})
        count["items"] += 1
        names.append((item.benchmark, item.name))
        original = first.setdefault((item.prompt, item.answer), number)
        copies[original].append(item.benchmark)
        hashed = _item_runs(item, config)
        count["short"] += not hashed
        for key, is_answer in hashed.items():
            runs.setdefault(key, {})[original] = is_answer
    kept = [
        (size, value, number, is_answer)
        for (size, value), owners in runs.items()
        if len(owners) <= config.max_items
        for number, is_answer in owners.items()
    ]
    kept.sort()
    has_run = {number for _, _, number, _ in kept}
    had_run = {number for owners in runs.values() for number in owners}
    for number in had_run - has_run:
        for benchmark in copies[number]:
            counts[benchmark]["boilerplate"] += 1
    columns = list(zip(*kept, strict=True)) or [(), (), (), ()]
    index = BenchmarkIndex(
        np.array(columns[1], np.uint64),
        np.array(columns[2], np.int32),
        np.array(columns[0], np.int32),
        np.array(columns[3], np.bool_),
        names,
    )
    return index, counts


def _item_runs(item: Item, config: DecontaminationConfig) -> dict[tuple[int, int], bool]:
    """Return (words, hash) of an item's runs, and whether a word of the answer is among them."""
    prompt = plain_words(item.prompt)
    runs: dict[tuple[int, int], bool] = {}
    for answer in dict.fromkeys((item.answer, _CALCULATOR.sub("", item.answer))):
        words = prompt + plain_words(answer)
        size = min(config.ngram_words, len(words))
        if size < config.min_words:
            continue
        for place, value in enumerate(Grams(measure_words(words)).hashes(size).tolist()):
            runs.setdefault((size, value), place + size > len(prompt))
    # A short question is one run by itself, and its answer, a label, does not make it rarer.
    if config.min_words <= len(prompt) < config.ngram_words:
        runs.setdefault(
            (len(prompt), int(Grams(measure_words(prompt)).hashes(len(prompt))[0])), False
        )
    return runs


def write_index(index: BenchmarkIndex, path: Path) -> None:
    """Write an index as one file."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            hashes=index.hashes,
            owners=index.owners,
            sizes=index.sizes,
            is_answer=index.is_answer,
            items=np.array(index.items, dtype=np.str_).reshape(-1, 2),
        )


def read_index(path: Path) -> BenchmarkIndex:
    """Read what `write_index` wrote."""
    with np.load(path) as file:
        items = [(benchmark, name) for benchmark, name in file["items"].tolist()]
        return BenchmarkIndex(
            file["hashes"], file["owners"], file["sizes"], file["is_answer"], items
        )


def decontaminate(text: str, index: BenchmarkIndex, config: DecontaminationConfig) -> Verdict:
    """Return what a document may keep; the reason is `benchmark.NAME`."""
    matches = index.find(text, config)
    if not matches:
        return Verdict(text)
    places = [match.span() for match in _WORD.finditer(text)]
    spans: list[tuple[int, int, str]] = []
    for match in matches:
        reason = f"benchmark.{index.items[match.item][0]}"
        spans += [(places[a][0], places[b - 1][1], reason) for a, b in match.words]
    if config.policy == "cut":
        left, edits = _cut(text, spans, config.margin_characters)
        if len(left) >= config.min_left * len(text):
            return Verdict(left, edits=edits)
    begin, end = max(matches[0].words, key=lambda run: run[1] - run[0])
    shown = places[begin][0], places[end - 1][1]
    return Verdict(text, spans[0][2], shown)


def _cut(text: str, spans: list[tuple[int, int, str]], margin: int) -> tuple[str, tuple[Edit, ...]]:
    """Return the text without the spans and their margins, and what was taken out."""
    edits: list[Edit] = []
    for begin, end, reason in sorted(spans):
        begin, end = max(0, begin - margin), min(len(text), end + margin)
        if edits and begin <= edits[-1].end:
            last = edits.pop()
            begin, end, reason = last.begin, max(end, last.end), last.reason
        edits.append(Edit(reason, begin, end, text[begin:end]))
    ends = [0, *(edit.end for edit in edits)]
    begins = [*(edit.begin for edit in edits), len(text)]
    parts = [text[a:b].strip() for a, b in zip(ends, begins, strict=True)]
    return "\n\n".join(filter(None, parts)), tuple(edits)
