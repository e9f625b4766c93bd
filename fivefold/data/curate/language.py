"""Which language a page is in: a fastText model, or scripts and function words.

DCLM-Baseline asks fastText's lid.176 about the whole page and keeps English with p >= 0.65. That
model has a licence of its own (CC-BY-SA-3.0) and is not shipped: give its path. The built-in
identifier knows a language by its script, or, in Latin letters, by its function words: each is a
vote of log 20 for every language whose list has it, and the votes' softmax is the probability. It
needs some twenty words of prose; names, code and tables have few function words and come out as
unknown.
"""

import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from fivefold.data.curate.character import LETTER, kind_table, text_to_codes
from fivefold.errors import MissingFileError

Identify = Callable[[str], tuple[str, float]]
"""Text to ISO 639-1 code (empty: unknown) and probability."""

UNKNOWN = ("", 0.0)

_FUNCTION_WORDS = {
    "en": (
        "the of and to a in is that it for was on are as with be by this at from or have an not "
        "which but his her they you we can has were been will would there their what if when more "
        "who all"
    ),
    "de": (
        "der die das und ist nicht ein eine zu den von mit sich des auf für im dem auch es an "
        "werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über so zum war "
        "haben nur oder"
    ),
    "fr": (
        "le la les de des et est un une du en que qui dans pour pas au sur ce il sont avec plus "
        "par je se ne ou mais nous vous cette être ont aux été leur comme elle son ses"
    ),
    "es": (
        "el la los las de y que en un una es por con no se del al para su como más lo pero sus "
        "este ha o cuando muy sin sobre también fue hay desde está entre ser son"
    ),
    "it": (
        "il la di che e un una per è in del non sono della con si da le dei nel alla al come più "
        "anche lo gli ma delle ha su questo o ed essere dal"
    ),
    "pt": (
        "o a os as de e que do da em um uma para é com não no na por mais se dos como mas foi ao "
        "ele das tem à seu sua ou ser quando muito há nos já está também"
    ),
    "nl": (
        "de het een van en in is dat op te zijn met voor niet aan er om ook als dan maar bij nog "
        "uit worden door naar heeft hij ze wordt over deze of werd"
    ),
    "sv": (
        "och att det som en på är av för med den till inte har de ett om var han men sig från vi "
        "så kan när jag eller hade nu efter ut"
    ),
    "pl": (
        "i w na z się do nie jest to że o jak po od za przez co ale dla oraz są tak był przy może "
        "być już tym które który"
    ),
}
_VOTERS = {
    word: [lang for lang, words in _FUNCTION_WORDS.items() if word in words.split()]
    for words in _FUNCTION_WORDS.values()
    for word in words.split()
}
"""The languages that each function word votes for."""
_VOTE = math.log(20)
_MOST_VOTES = 60
_PROSE_SHARE = 0.12
"""Share of function words from which on a text counts as prose; English prose has 0.4."""

_SCRIPTS = (
    ("el", 0x370, 0x3FF),
    ("ru", 0x400, 0x4FF),
    ("he", 0x590, 0x5FF),
    ("ar", 0x600, 0x6FF),
    ("hi", 0x900, 0x97F),
    ("th", 0xE00, 0xE7F),
    ("kana", 0x3040, 0x30FF),
    ("zh", 0x3400, 0x9FFF),
    ("ko", 0xAC00, 0xD7AF),
)
"""A script's first and last code point, and the language that it is taken for."""


def identify_by_script(text: str) -> tuple[str, float]:
    """Return the language by the characters, or by function words in Latin script."""
    if text.isascii():
        return _identify_latin(text)
    codes = text_to_codes(text)
    high = codes[codes >= _SCRIPTS[0][1]]
    counts = {lang: int(((high >= first) & (high <= last)).sum()) for lang, first, last in _SCRIPTS}
    letters = int((kind_table()[codes] & LETTER).sum()) or 1
    if counts["kana"] > 0.1 * (counts["kana"] + counts["zh"]):
        share = (counts["kana"] + counts["zh"]) / letters
        return ("ja", min(1.0, share)) if share > 0.5 else _identify_latin(text)
    best = max(counts, key=lambda lang: counts[lang])
    # A Chinese character says as much as a Latin word of several letters.
    weight = 3 if best == "zh" else 1
    share = weight * counts[best] / max(1, weight * counts[best] + letters - counts[best])
    return (best, min(1.0, share)) if share > 0.5 else _identify_latin(text)


def _identify_latin(text: str) -> tuple[str, float]:
    words = text.lower().split()
    votes = Counter(word for word in words if word in _VOTERS)
    if not votes:
        return UNKNOWN
    counts: Counter[str] = Counter()
    for word, count in votes.items():
        for lang in _VOTERS[word]:
            counts[lang] += count
    best, most = counts.most_common(1)[0]
    scale = _VOTE * min(1.0, _MOST_VOTES / votes.total())
    total = sum(math.exp(scale * (counts[lang] - most)) for lang in _FUNCTION_WORDS)
    return best, min(1.0, most / len(words) / _PROSE_SHARE) / total


@cache
def load_identifier(model: str) -> Identify:
    """Return the identifier: fastText's model at this path, or the built-in one for an empty path.

    Raises:
        MissingFileError: no such file.
    """
    if not model:
        return identify_by_script
    path = Path(model).expanduser()
    if not path.is_file():
        raise MissingFileError(
            expected=f"a fastText language model at `{model}`",
            found="nothing",
            fix="Give the path of lid.176.ftz in `language.model`, or leave it empty",
        )
    import fasttext

    loaded = fasttext.load_model(str(path))

    def identify(text: str) -> tuple[str, float]:
        labels, probabilities = loaded.predict(text.replace("\n", " "))
        if not labels:
            return UNKNOWN
        # Rounding inside the model may take it a little above 1.
        return labels[0].removeprefix("__label__"), min(1.0, float(probabilities[0]))

    return identify
