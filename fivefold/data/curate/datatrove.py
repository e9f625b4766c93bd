"""FineWeb's chain in datatrove's counting: Gopher repetition, Gopher quality, C4, FineWeb.

Source: datatrove 0.10 (`GopherRepetitionFilter`, `GopherQualityFilter`, `C4QualityFilter` without
its rule of terminal punctuation, `FineWebQualityFilter`; arXiv:2406.17557). Same rules, order and
arithmetic; reasons are the first that datatrove would name. Given the same words the verdicts are
equal, which the tests assert. Differences: words come from `treebank_words`, which is close to
spaCy's; Chinese characters are words (datatrove needs jieba), and full-width marks end Chinese
sentences.

Surprise: C4 rewrites the text (citations, lines), so that FineWeb's rules see another text than
Gopher's; its words are counted anew only when the number of white-space chunks does not settle it.
"""

# Typographic and full-width marks are what these rules are about.
# ruff: noqa: RUF001

import re
from dataclasses import dataclass

import numpy as np

from fivefold.data.curate.character import LETTER, MARK, TERMINAL
from fivefold.data.curate.config import C4Config, FineWebConfig, HeuristicsConfig, QualityConfig
from fivefold.data.curate.dclm import CHINESE_STOP_WORDS, STOP_WORDS
from fivefold.data.curate.lexicon import Words, treebank_lexicon, unicode_lexicon
from fivefold.data.curate.repetition import (
    Finding,
    count_later,
    datatrove_grams,
    datatrove_lines,
)
from fivefold.data.curate.verdict import Edit, Verdict
from fivefold.data.curate.words import count_sentences, treebank_words, unicode_words

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_END_MARKS = (".", "?", "!", '"', "'")
_CHINESE_END_MARKS = (*_END_MARKS, "。", "？", "！", "”", "’", "…")
_POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_SENTENCES_CHARACTERS = 600
"""Beginning of a line that is likely to hold enough sentences."""
_CHINESE_SENTENCE_END = re.compile(r"[。！？!?…]+")


def judge_in_datatrove(text: str, config: HeuristicsConfig, *, chinese: bool) -> Verdict:
    """Apply the chain to one text."""
    if finding := datatrove_lines(text, config.repetition):
        return Verdict(text, *finding)
    words = (unicode_lexicon() if chinese else treebank_lexicon()).read(text)
    finding = datatrove_grams(text, words, config.repetition, chinese=chinese)
    finding = finding or quality_finding(text, words, config.quality, chinese=chinese)
    if finding:
        return Verdict(text, *finding)
    verdict = edit_as_c4(text, config.c4, chinese=chinese)
    if verdict.reason:
        return verdict
    if reason := fineweb_reason(verdict.text, config.fineweb, chinese=chinese):
        return Verdict(text, reason)
    return verdict


def _split(text: str, chinese: bool) -> list[str]:
    return unicode_words(text) if chinese else treebank_words(text)


def quality_finding(text: str, words: Words, config: QualityConfig, *, chinese: bool) -> Finding:
    """Apply Gopher's quality rules."""
    if not len(words):
        return "quality.few_words", None
    is_marks = words.kinds & MARK != 0
    count = len(words) - int(np.count_nonzero(is_marks))
    if count < config.min_words:
        return "quality.few_words", None
    if count > config.max_words:
        return "quality.many_words", None
    if not chinese:
        mean = int(words.lengths[~is_marks].sum()) / count
        if mean < config.min_mean_word_characters:
            return "quality.short_words", None
        if mean > config.max_mean_word_characters:
            return "quality.long_words", None
    if reason := _symbol_reason(text, len(words), config):
        return reason, None
    # datatrove states this rule the other way round, and compares that.
    has_letter = int(np.count_nonzero(words.kinds & LETTER))
    if has_letter / len(words) < 1 - config.non_alphabetic_words:
        return "quality.few_alphabetic", None
    if not _has_stop_words(words, config.min_stop_words, chinese):
        return "quality.few_stop_words", None
    return None


def _has_stop_words(words: Words, least: int, chinese: bool) -> bool:
    """Return whether so many different stop words are among the words."""
    stop_words = CHINESE_STOP_WORDS if chinese else STOP_WORDS
    found: set[str] = set()
    # A stop word between white space is a word however marks are split off.
    for chunk in words.chunks:
        if len(found) >= least:
            return True
        if chunk in stop_words:
            found.add(chunk)
    return len(stop_words.intersection(words.spell(0, len(words)))) >= least


def _symbol_reason(text: str, word_count: int, config: QualityConfig) -> str:
    """Apply the rules for hashes, ellipses and bullets; empty if the text passes."""
    if text.count("#") / word_count > config.symbols_per_word:
        return "quality.hashes"
    ellipses = text.count("...") + text.count("…")
    if ellipses / word_count > config.symbols_per_word:
        return "quality.ellipses"
    lines = text.splitlines()
    # Most texts have too few of these marks anywhere for a look at each line.
    if (text.count("•") + text.count("-")) / len(lines) > config.bullet_lines:
        bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
        if bullets / len(lines) > config.bullet_lines:
            return "quality.bullets"
    if ellipses / len(lines) > config.ellipsis_lines:
        ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
        if ellipses / len(lines) > config.ellipsis_lines:
            return "quality.ellipsis_lines"
    return ""


@dataclass(frozen=True, slots=True)
class _Suspects:
    """Which rare things stand anywhere in the text, so that most lines need no look for them."""

    lorem: bool
    javascript: bool
    policy: bool

    @classmethod
    def of(cls, text: str) -> "_Suspects":
        # Taking a citation out may join what was apart.
        lowered = (_CITATION.sub("", text) if "[" in text else text).lower()
        return cls(
            lorem="lorem ipsum" in lowered,
            javascript="javascript" in lowered,
            policy=any(phrase in lowered for phrase in _POLICY),
        )


def edit_as_c4(text: str, config: C4Config, *, chinese: bool) -> Verdict:
    """Cut citations and lines, or drop the page."""
    suspects = _Suspects.of(text)
    kept: list[str] = []
    edits: list[Edit] = []
    sentences = begin = 0
    for whole in text.splitlines(keepends=True):
        end = begin + len(whole)
        line = whole.strip()
        reason, line = _judge_line(line, config, suspects, chinese)
        if reason in ("c4.lorem_ipsum", "c4.curly_bracket"):
            return Verdict(text, reason, (begin, end))
        if reason:
            edits.append(Edit(reason, begin, end, whole))
        else:
            if "[" in whole and line != whole.strip():
                edits += _citation_edits(whole, begin)
            kept.append(line)
            if sentences < config.min_sentences:
                sentences += _count_sentences(line, config.min_sentences - sentences, chinese)
        begin = end
    if sentences < config.min_sentences:
        return Verdict(text, "c4.few_sentences")
    return Verdict("\n".join(kept).strip(), edits=tuple(edits))


def _judge_line(line: str, config: C4Config, suspects: _Suspects, chinese: bool) -> tuple[str, str]:
    """Return why the line goes, empty if it stays, and the line without citations."""
    longest = config.max_word_characters
    if len(line) > longest and not chinese and any(len(word) > longest for word in line.split()):
        return "c4.long_word", line
    words = line.split(None, config.min_line_words)
    if "[" in line:
        line = _CITATION.sub("", line)
    if config.terminal_punctuation:
        marks = _CHINESE_END_MARKS if chinese else _END_MARKS
        if not line.endswith(marks) or line.endswith("..."):
            return "c4.no_end_mark", line
    count = len(unicode_words(line)) if chinese else len(words)
    if count < config.min_line_words:
        return "c4.few_words", line
    if suspects.lorem and "lorem ipsum" in line.lower():
        return "c4.lorem_ipsum", line
    if suspects.javascript and "javascript" in line.lower():
        return "c4.javascript", line
    if "{" in line:
        return "c4.curly_bracket", line
    if suspects.policy and any(phrase in line.lower() for phrase in _POLICY):
        return "c4.policy", line
    return "", line


def _citation_edits(whole: str, begin: int) -> list[Edit]:
    return [
        Edit("c4.citation", begin + match.start(), begin + match.end(), match.group())
        for match in _CITATION.finditer(whole)
    ]


def _count_sentences(line: str, enough: int, chinese: bool) -> int:
    """Return the number of sentences, of a long line perhaps only `enough` of them."""
    if chinese:
        return sum(bool(part.strip()) for part in _CHINESE_SENTENCE_END.split(line))
    if len(line) > _SENTENCES_CHARACTERS:
        begin = line[:_SENTENCES_CHARACTERS].rpartition(" ")[0]
        if count_sentences(treebank_words(begin)) >= enough:
            return enough
    return count_sentences(treebank_words(line))


def fineweb_reason(text: str, config: FineWebConfig, *, chinese: bool) -> str:
    """Apply FineWeb's own rules; empty if the text passes."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "fineweb.empty"
    if sum(line[-1] in TERMINAL for line in lines) / len(lines) < config.min_punctuated_lines:
        return "fineweb.few_punctuated_lines"
    short = config.short_line_characters
    if sum(len(line) <= short for line in lines) / len(lines) > config.short_lines:
        return "fineweb.short_lines"
    line_ends = text.count("\n")
    if count_later(lines)[1] / (len(text) - line_ends) > config.duplicate_characters:
        return "fineweb.duplicate_lines"
    # Every chunk holds a word at least; so many are enough.
    enough = int(line_ends / config.newlines_per_word) + 2 if config.newlines_per_word else 0
    if enough and not chinese and len(text.split(None, enough)) > enough:
        return ""
    if line_ends / len(_split(text, chinese)) > config.newlines_per_word:
        return "fineweb.list"
    return ""
