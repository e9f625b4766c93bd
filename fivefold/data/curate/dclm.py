"""DCLM-Baseline's page rules, its repetition rules and its line edits, in its order and counting.

Source: arXiv:2406.11794, appendix, and the recipe that made its RefinedWeb reproduction. Three
kinds of words are in use there: white-space chunks that begin with a letter or digit (page length,
and what the edits may take), all white-space chunks (ratios), and UAX 29 segments (repetition); so
here. Lines are stripped and empty ones do not count.

Chinese: each character is a word in all three; the mean word length is not asked; stop words are
function characters; an n-gram has twice as many characters as it has words elsewhere. These are
ours.
"""

from fivefold.data.curate.config import HeuristicsConfig, QualityConfig
from fivefold.data.curate.lexicon import unicode_lexicon
from fivefold.data.curate.line_edit import edit_lines
from fivefold.data.curate.repetition import Finding, repetition_in_dclm
from fivefold.data.curate.verdict import Verdict
from fivefold.data.curate.words import count_chunks, unicode_words

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
"""Gopher's list."""
CHINESE_STOP_WORDS = frozenset("的一是不了在人有我他这个们中来上大为和")
"""The most frequent function characters; ours."""
_BULLETS = ("●", "•", "*", "-")
_SYMBOLS = ("#", "...", ". . .", "…")
_ELLIPSES = ("...", ". . .", "…")


def judge_in_dclm(text: str, config: HeuristicsConfig, *, chinese: bool) -> Verdict:
    """Apply the chain to one text."""
    characters = unicode_words(text) if chinese else None
    length = len(characters) if characters is not None else count_chunks(text)
    if finding := _page_finding(text, characters, length, config.quality):
        return Verdict(text, *finding)
    words = unicode_lexicon().read(text)
    finding = repetition_in_dclm(text, words, config.repetition, chinese=chinese)
    if finding:
        return Verdict(text, *finding)
    edited, edits = edit_lines(text, config.edits, chinese=chinese)
    if not edited:
        return Verdict(text, "edit.nothing_left")
    if edits:
        left = len(unicode_words(edited)) if chinese else count_chunks(edited)
        if (length - left) / length > config.edits.removed_words:
            return Verdict(text, "edit.too_much_removed", (edits[0].begin, edits[0].end))
    return Verdict(edited, edits=edits)


def _page_finding(
    text: str, chinese: list[str] | None, length: int, config: QualityConfig
) -> Finding:
    """Apply the rules for a whole page; `chinese` holds its words if they are characters."""
    if length < config.min_words:
        return "quality.few_words", None
    if length > config.max_words:
        return "quality.many_words", None
    words = chinese if chinese is not None else text.split()
    if chinese is None:
        mean = sum(map(len, words)) / len(words)
        if mean < config.min_mean_word_characters:
            return "quality.short_words", None
        if mean > config.max_mean_word_characters:
            return "quality.long_words", None
    if sum(map(text.count, _SYMBOLS)) / len(words) > config.symbols_per_word:
        return "quality.symbols", None
    lines = [line for part in text.split("\n") if (line := part.strip())]
    if sum(line.startswith(_BULLETS) for line in lines) > config.bullet_lines * len(lines):
        return "quality.bullets", None
    if sum(line.endswith(_ELLIPSES) for line in lines) > config.ellipsis_lines * len(lines):
        return "quality.ellipsis_lines", None
    if _share_without_letters(words) > config.non_alphabetic_words:
        return "quality.few_alphabetic", None
    stop_words = CHINESE_STOP_WORDS if chinese is not None else STOP_WORDS
    if not _has_words(words, stop_words, config.min_stop_words):
        return "quality.few_stop_words", None
    return None


def _share_without_letters(words: list[str]) -> float:
    # A chunk that begins with a letter is by far the most frequent case.
    others = [word for word in words if not word[0].isalpha()]
    return sum(not any(map(str.isalpha, word)) for word in others) / len(words)


def _has_words(words: list[str], wanted: frozenset[str], least: int) -> bool:
    count = 0
    if least <= 0:
        return True
    for word in words:
        if word.lower() in wanted:
            count += 1
            if count >= least:
                return True
    return False
