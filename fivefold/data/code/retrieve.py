"""Which other files a developer would open for an issue: imports, tests, the readme, BM25.

Everything is looked up in the tree before the change. First score, over all source files: BM25
(Robertson and Zaragoza 2009, k1 = 1.2, b = 0.75) of the issue's words against the words of the
path. Of the best by that score the identifiers are read, and BM25 against those, over its highest
value, is the second. A file that a touched one imports, a test that names a touched module, and the
readme count one each on top.

Surprise: reading identifiers of every file for every change would cost a hundred times the rest;
paths alone find most of what matters, for names in issues are names of modules.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from fivefold.data.code.imports import PathIndex, imported_paths

_K1, _B = 1.2, 0.75
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_TEST = re.compile(r"(?:^|[/_.-])(?:tests?|testing|spec)(?:[/_.-]|$)", re.IGNORECASE)
_SHORTEST = 3


def words_of(text: str) -> list[str]:
    """Return the parts of names in lower case: `readHTTPFile_now` is read, http, file, now."""
    return [part.lower() for part in _PART.findall(text) if len(part) >= _SHORTEST]


def is_test(path: str) -> bool:
    """Return whether a path names a test."""
    name = PurePosixPath(path).name.lower()
    return bool(_TEST.search(path)) or name.startswith("test") or name.endswith("test.java")


def bm25(query: Iterable[str], documents: Sequence[Sequence[str]]) -> list[float]:
    """Return the score of each document, a list of words, for the words of a query."""
    counts = [Counter(document) for document in documents]
    mean = sum(map(len, documents)) / max(1, len(documents)) or 1.0
    scores = [0.0] * len(documents)
    for word in sorted(set(query)):
        holders = [i for i, count in enumerate(counts) if word in count]
        rarity = math.log(1 + (len(documents) - len(holders) + 0.5) / (len(holders) + 0.5))
        for i in holders:
            often = counts[i][word]
            length = 1 - _B + _B * len(documents[i]) / mean
            scores[i] += rarity * often * (_K1 + 1) / (often + _K1 * length)
    return scores


def rank_files(
    query: str,
    candidates: Sequence[str],
    touched: Mapping[str, tuple[str, str]],
    identifiers: Callable[[str], Sequence[str]],
    ranked_files: int,
) -> list[str]:
    """Return candidate paths by falling score; those without any are left out.

    `touched` gives language and text, before the change, of the touched files; `identifiers` the
    words of a candidate's text.
    """
    index = PathIndex([*candidates, *touched])
    bonus: Counter[str] = Counter()
    for path, (language, text) in touched.items():
        bonus.update(imported_paths(path, text, language, index))
    stems = {PurePosixPath(path).stem.strip("_") for path in touched if not is_test(path)}
    for path in candidates:
        name = PurePosixPath(path).stem.lower()
        if is_test(path) and any(stem and stem.lower() in name for stem in stems):
            bonus[path] += 1
        if "/" not in path and name == "readme":
            bonus[path] += 1
    words = words_of(query)
    by_path = dict(
        zip(candidates, bm25(words, [words_of(path) for path in candidates]), strict=True)
    )
    best = sorted(candidates, key=lambda path: (not bonus[path], -by_path[path], path))
    read = best[:ranked_files]
    by_text = bm25(words, [identifiers(path) for path in read])
    highest = max(by_text, default=0.0) or 1.0
    scores = {
        path: min(1, bonus[path]) + score / highest
        for path, score in zip(read, by_text, strict=True)
    }
    return sorted((path for path in read if scores[path] > 0), key=lambda p: (-scores[p], p))
