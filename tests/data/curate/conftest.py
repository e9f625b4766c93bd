import re
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics
from random import Random

import pytest

from fivefold.data.document import read_documents

FIXTURES = Path(__file__).parents[2] / "fixtures" / "text"
_PART = 4000


def _parts(text: str) -> list[str]:
    return [text[i : i + _PART] for i in range(0, len(text), _PART)]


@pytest.fixture(scope="session")
def pages() -> list[str]:
    """Real pages: readmes of installed packages, chapters on Python, plays, poems in Chinese."""
    readmes = {
        distribution.metadata["Name"]: distribution.read_text("METADATA") or ""
        for distribution in distributions()
    }
    found = [part for name in sorted(readmes) for part in _parts(readmes[name])]
    chapters = [part for name in sorted(topics) for part in _parts(topics[name])]
    chapters += _parts((FIXTURES / "guide.md").read_text())
    for name in ("plays", "poems", "notes"):
        for document in read_documents(FIXTURES / f"{name}.jsonl"):
            chapters += _parts(document.text)
    # With each paragraph in one line, as extraction from HTML gives it.
    unbroken = [re.sub(r"(?<!\n)\n(?!\n) *", " ", page) for page in [*chapters, *found[::5]]]
    found += [*chapters[::4], *unbroken]
    return [page for page in found if page.strip()]


@pytest.fixture(scope="session")
def six_hundred(pages: list[str]) -> list[str]:
    """Return 600 of the real pages, spread evenly over their kinds."""
    return [pages[number * len(pages) // 600] for number in range(600)]


_FUNCTION = "the of and to a in that it for was with as his her they from have not which by"
_CONTENT = (
    "river mill ferry orchard bridge brother autumn harvest stone letter window market "
    "captain island winter garden soldier candle mountain teacher village kitchen morning "
    "forest painter sailor silver bottle weather carriage blanket stranger journey kingdom "
    "shoulder whisper promise measure question answer shadow country daughter machine "
    "minister music number office paper picture"
)


@pytest.fixture(scope="session")
def english() -> Callable[[int], str]:
    """Return distinct pages of English words that pass all rules, by number."""

    function, content = _FUNCTION.split(), _CONTENT.split()

    def write(number: int) -> str:
        random = Random(number)
        lines = []
        for _ in range(4):
            pairs = [f"{random.choice(function)} {random.choice(content)}" for _ in range(18)]
            lines.append((" ".join(pairs[:9]) + ". " + " ".join(pairs[9:]) + ".").capitalize())
        return "\n".join(lines)

    return write
