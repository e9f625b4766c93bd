"""Kinds of characters: sentence ends, punctuation, letters, Chinese.

Source: Unicode's property Sentence_Terminal, and the punctuation that datatrove counts as such,
which the tests compare with datatrove's own set. The kinds lie in one table of a byte for each
code point, so that a whole page is looked up in one numpy call; it is built at its first use.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

_TERMINAL_RANGES = (
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e "
    "1735-1736 17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e "
    "1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 "
    "a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f "
    "ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 "
    "111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 "
    "11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 "
    "11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88"
)
_OTHER_RANGES = (
    "0-8 b-c d-1f 22-23 25 27-2d 2f 3a-3b 3c-3e 40 5b-60 7b 7d-9f ab b4 bb 2013-2014 2019 "
    "201c-201e 2026 2236 2501 3001 3008-300d 3010-3011 ff05 ff08-ff09 ff0c ff11 ff1a-ff1b "
    "ff5e 24 26 28-29 7c"
)


def _characters(ranges: str) -> frozenset[str]:
    bounds = [part.split("-") for part in ranges.split()]
    points = [range(int(bound[0], 16), int(bound[-1], 16) + 1) for bound in bounds]
    return frozenset(chr(point) for span in points for point in span)


TERMINAL = _characters(_TERMINAL_RANGES)
"""Characters that end a sentence, in any script."""
PUNCTUATION = TERMINAL | {"►"} | _characters(_OTHER_RANGES)
"""What is not a word by itself in datatrove's counting; control codes are among it."""

LETTER, MARK = 1, 2
"""Bits of the table: a letter (`str.isalpha`); punctuation as above."""


@cache
def kind_table() -> NDArray[np.uint8]:
    """Return the kinds of all code points as a sum of bits."""
    table = np.strings.isalpha(np.arange(0x110000, dtype=np.uint32).view("<U1")).astype(np.uint8)
    for character in PUNCTUATION:
        table[ord(character)] |= MARK
    return table


def text_to_codes(text: str) -> NDArray[np.uint32]:
    """Return the code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)


def han_share(text: str) -> float:
    """Return the share of Chinese characters among those that are not ASCII's white space."""
    if text.isascii():
        return 0.0
    codes = text_to_codes(text)
    han = ((codes >= 0x4E00) & (codes <= 0x9FFF)) | ((codes >= 0x3400) & (codes <= 0x4DBF))
    return float(han.sum() / max(1, (codes > 0x20).sum()))


def is_chinese(text: str, lang: str = "") -> bool:
    """Return whether Chinese characters make up the words: by its language, else by their share."""
    return lang.startswith("zh") if lang else han_share(text) >= 0.3
