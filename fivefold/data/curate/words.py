"""Texts to words, in the two ways that the published rules count them.

`unicode_words`: word segments of Unicode's UAX 29, as DCLM (uniseg) and BFF use them; each Chinese
character is one, which is what the Chinese variants of all rules count. `treebank_words`: white
space, then punctuation and English clitics split off, close to spaCy's blank English tokenizer,
which datatrove uses; the small differences are measured in the tests.

Surprise: white-space chunks repeat so much (Zipf) that peeling punctuation off
them in a plain Python loop costs little: the parts of a chunk are remembered.
"""

# Typographic and full-width marks are what these rules are about.
# ruff: noqa: RUF001

import re
from functools import lru_cache

from fivefold.data.curate.character import TERMINAL

# Scripts in which UAX 29 breaks between any two letters: Han and Hiragana, and Thai and its
# neighbours, whose words need a dictionary.
_SINGLE = (
    r"\u0e00-\u0e4f\u0e80-\u0ecf\u1000-\u103f\u1780-\u17d3\u3005-\u3007\u3040-\u3096\u3400-\u4dbf"
    r"\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_MARKS = r"\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u200d"
_KATAKANA = r"\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d"
_BODY = rf"(?:[^\W{_SINGLE}{_KATAKANA}][{_MARKS}]*)"
_LETTER = rf"[^\W\d_{_SINGLE}{_KATAKANA}]"
# A full stop, colon or apostrophe joins letters; a full stop, comma or semicolon joins digits.
_JOINT = (
    rf"(?:(?<={_LETTER})[.:'\u00b7\u2018\u2019\u2024\u2027\ufe13\ufe52\ufe55\uff07\uff0e\uff1a]"
    rf"(?={_LETTER})"
    r"|(?<=\d)[.,;'\u037e\u0589\u060c\u060d\u066c\u07f8\u2018\u2019\u2024\u2044\ufe10\ufe14\ufe50"
    r"\ufe52\ufe54\uff07\uff0c\uff0e\uff1b](?=\d))"
)
_WORD = rf"{_BODY}+(?:{_JOINT}{_BODY}+)*|[{_KATAKANA}]+|[{_SINGLE}]"
_WORDS = re.compile(_WORD)
_SEGMENTS = re.compile(rf"{_WORD}|\n|\S")
_ASCII_WORD = r"\w+(?:(?:(?<=[A-Za-z])[.:'](?=[A-Za-z])|(?<=\d)[.,;'](?=\d))\w+)*"
_ASCII_WORDS = re.compile(_ASCII_WORD, re.ASCII)
_ASCII_SEGMENTS = re.compile(rf"{_ASCII_WORD}|\n|\S", re.ASCII)

_NOT_ASCII_SPACE = r"[^ \n\r\t\v\f\0]"
_OTHER_SPACE = re.compile(r"[\0\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
"""White space of `str.split` or of fastText, but not of both."""
_CHUNKS_WITH_WORD = re.compile(rf"(?<!{_NOT_ASCII_SPACE})[^\W_]{_NOT_ASCII_SPACE}*")


def unicode_words(text: str) -> list[str]:
    """Return the segments that begin with a letter or digit."""
    found = (_ASCII_WORDS if text.isascii() else _WORDS).findall(text)
    return [word for word in found if word[0] != "_"] if "_" in text else found


def unicode_segments(text: str) -> list[str]:
    r"""Return all segments that are not white space, and `\n` for each line end."""
    return (_ASCII_SEGMENTS if text.isascii() else _SEGMENTS).findall(text)


def count_chunks(text: str) -> int:
    """Return how many white-space chunks begin with a letter or digit: DCLM's page length in words.

    White space is fastText's (blank, line end, tab, zero byte); a no-break space is none.
    """
    if _OTHER_SPACE.search(text):
        return len(_CHUNKS_WITH_WORD.findall(text))
    return sum([chunk[0].isalnum() for chunk in text.split()])


def treebank_words(text: str) -> list[str]:
    """Return words, punctuation marks and English clitics (`do`, `n't`) in their order."""
    words: list[str] = []
    for chunk in text.split():
        if chunk.isalpha() and chunk not in _JOINED:
            words.append(chunk)
        else:
            words.extend(split_chunk(chunk))
    return words


_JOINED = {
    first + second: (first, second)
    for stem, second in (
        [("can", "not"), ("gon", "na"), ("got", "ta"), ("i", "m"), ("i", "ve"), ("you", "re")]
        + [("they", "re"), ("that", "s"), ("what", "s"), ("there", "s"), ("ca", "nt")]
        + [(verb, "nt") for verb in ("do", "does", "did", "is", "are", "was", "were", "has")]
        + [(verb, "nt") for verb in ("have", "had", "would", "could", "should")]
    )
    for first in (stem, stem.capitalize())
}
"""Words that spaCy takes apart though no mark stands in them."""
_ABBREVIATED = (
    "a.m. p.m. e.g. i.e. E.g. I.e. vs. v.s. Mr. Mrs. Ms. Dr. Prof. St. Jr. Sr. Inc. Ltd. Co. "
    "Corp. Bros. Gen. Gov. Rep. Sen. Rev. Adm. Mt. Ph.D. Messrs. Jan. Feb. Mar. Apr. Jun. Jul. "
    "Aug. Sep. Sept. Oct. Nov. Dec. Ala. Ariz. Ark. Calif. Colo. Conn. Del. Fla. Ga. Ill. Ind. "
    "Kan. Kans. Ky. La. Mass. Md. Mich. Minn. Miss. Mo. Mont. Neb. Nebr. Nev. Okla. Ore. Pa. "
    "Tenn. Va. Wash. Wis. N.C. N.D. N.H. N.J. N.M. N.Y. S.C. D.C. U.S. U.K. o'clock ma'am 'em "
    "'nuff 'Cause 'cause 'bout and/or c'mon C++ :) ): :( :-) ;) :D :P :/ XD <3 ^_^ -_- o_O a. b. "
    "c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z."
)
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_PREFIX = re.compile(
    r"\.\.+|…|``|''|\+(?![0-9])"
    r"|[§%=—–_`#$£€¥¢&@*~<>|\"'“”‘’«»„,:;!?¿¡()\[\]{}。，、！？：；（）【】《》「」•●]"
)
_SUFFIX = re.compile(
    r"(?:\.\.+|…|''|['’][sS]|[—–_`#&*~<>|\"'“”‘’«»„,:;!?¿¡()\[\]{}。，、！？：；（）【】《》「」•●]"
    r"|(?<=[0-9])(?:\+|%|[$£€¥¢])|(?<=[0-9])(?:km²?|km³?|cm²?|mm²?|m²|kg|mg|ms|m/s|km/h|[gmkt]b|[GMKT]B|g|m|T|G|M|K)"
    r"|(?<=[0-9a-z%²+\-'’\"“”)\]])\.|(?<=[A-Z][A-Z])\.|(?<=[a-z])-)$"
)
_INFIX = re.compile(
    r"\.\.+|…|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[a-z'\"“”])\.(?=[A-Z'\"“”])"
    r"|(?<=[^\W\d_]),(?=[^\W\d_])"
    r"|(?<=[^\W_])(?:--+|[-–—~])(?=[^\W\d_])|(?<=[^\W_])[:<>=/](?=[^\W\d_])"
)
_INFIX_MARK = re.compile(r"[.…,:<>=/+*^~–—-]")
"""What every infix has in it."""
_PLAIN_MARKS = frozenset(',;:!?)]}"”»')
"""Marks that are split off a word whatever stands before them."""
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
_URL = re.compile(
    r"(?:(?:https?|ftp|mailto|file)://|www\.)\S+"
    r"|(?:[\w+%.-]+@)?(?:[A-Za-z0-9][\w-]*\.)+[a-z]{2,}(?::\d+)?(?:[/?#]\S*)?"
)
_CLITIC = re.compile(r"(.+?)(n['’]t|['’](?:ll|ve|re|d|m))", re.IGNORECASE)
_NEGATED = frozenset(
    {"do", "does", "did", "is", "are", "was", "were", "has", "have", "had", "ca", "wo", "would"}
    | {"could", "should", "must", "might", "need", "ai", "sha", "ought", "may"}
)
_SUBJECTS = frozenset(
    {"i", "you", "he", "she", "it", "we", "they", "who", "what", "when", "where", "why", "how"}
    | {"that", "there", "this", "those", "these"}
)


@lru_cache(maxsize=1 << 16)
def split_chunk(chunk: str) -> tuple[str, ...]:
    """Return the words of a white-space chunk.

    Punctuation is peeled off both ends, then what is left is split at infixes.
    """
    stem, mark = chunk[:-1], chunk[-1]
    if stem.isalpha() and (mark in _PLAIN_MARKS or (mark == "." and stem[-1] in _LOWER)):
        # The most frequent chunks with a mark, and what the loop below makes of them.
        return (chunk,) if chunk in _ABBREVIATIONS else (*_JOINED.get(stem, (stem,)), mark)
    begin: list[str] = []
    end: list[str] = []
    rest = chunk
    while rest:
        if (known := _known(rest)) is not None:
            return (*begin, *known, *reversed(end))
        if prefix := _PREFIX.match(rest):
            begin.append(prefix.group())
            rest = rest[prefix.end() :]
            continue
        if ("." in rest or "://" in rest) and rest[-1] not in ".,;:!?)" and _URL.fullmatch(rest):
            return (*begin, rest, *reversed(end))
        start = _suffix_start(rest)
        if start <= 0:
            break
        end.append(rest[start:])
        rest = rest[:start]
    return (*begin, *_split_infixes(rest), *reversed(end))


def _suffix_start(rest: str) -> int:
    """Return where the longest suffix begins; -1 if there is none."""
    if rest.endswith(".."):
        return len(rest.rstrip("."))
    # No other suffix has more than four characters.
    suffix = _SUFFIX.search(rest, max(0, len(rest) - 4))
    return suffix.start() if suffix else -1


def _known(rest: str) -> tuple[str, ...] | None:
    """Return the parts of a chunk that is whole as it stands, or a word with a clitic."""
    if rest in _JOINED:
        return _JOINED[rest]
    if rest.isalnum() and not rest[0].isdigit():
        return (rest,)
    if rest in _ABBREVIATIONS:
        return (rest,)
    if ("'" in rest or "’" in rest) and (clitic := _CLITIC.fullmatch(rest)):
        stem, ending = clitic.groups()
        if stem.lower() in (_NEGATED if ending[0] in "nN" else _SUBJECTS):
            return stem, ending
    return None


def _split_infixes(rest: str) -> list[str]:
    if not _INFIX_MARK.search(rest):
        return [rest] if rest else []
    parts, start = [], 0
    for match in _INFIX.finditer(rest):
        if match.start() == start == 0:
            continue
        parts += [rest[start : match.start()], match.group()]
        start = match.end()
    return [part for part in [*parts, rest[start:]] if part]


def count_sentences(words: list[str]) -> int:
    """Return the number of sentences: a new one begins at the first word after a terminal mark."""
    count, has_ended = 1 if words else 0, False
    for word in words:
        if word in TERMINAL:
            has_ended = True
        elif has_ended and any(letter.isalnum() for letter in word):
            count += 1
            has_ended = False
    return count
