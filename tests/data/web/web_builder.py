"""Small pages of a known kind: prose, sales talk, entries, help, changelogs, banter."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from fivefold.data.curate.config import ClassifierTrainingConfig
from fivefold.data.document import Document, document_id, document_writer
from fivefold.data.web.config import HeadConfig, ReferenceConfig, WebConfig

_FUNCTION = "the of and to a in that it for was with as his her they from have not which by"
_CONTENT = (
    "river mill ferry orchard bridge brother autumn harvest stone letter window market captain "
    "island winter garden soldier candle mountain teacher village kitchen morning forest painter "
    "sailor silver bottle weather carriage blanket stranger journey kingdom shoulder whisper"
)
_SALES = "buy now cheap offer deal click shop cart order discount price sale coupon bargain free"
_PLACES = "Aldora Brenn Castel Dunmore Elvas Fenwick Garda Holm Iver Jarrow Keld Lorne Marl Norby"
_THINGS = "river town painter genus battle mineral composer island treaty bridge dynasty poet"
_MENUS = "File Edit View Insert Format Table Tools Window Help Sheet Data Slide"
_ACTIONS = "open save copy paste select delete print export align rotate undo search"


def prose(number: int, content: str = _CONTENT, sentences: int = 8) -> str:
    random = Random(number)
    pairs = [
        [f"{random.choice(_FUNCTION.split())} {random.choice(content.split())}" for _ in range(9)]
        for _ in range(sentences)
    ]
    return "\n".join(f"{' '.join(some)}.".capitalize() for some in pairs)


def sale(number: int) -> str:
    return prose(number, f"{_SALES} {_CONTENT[:60]}")


def entry(number: int) -> str:
    random = Random(5_000 + number)
    lines = []
    for _ in range(7):
        place, other = random.sample(_PLACES.split(), 2)
        thing, year = random.choice(_THINGS.split()), random.randint(1100, 1990)
        lines.append(
            f"{place} is a {thing} in the east of {other}, known as the {thing} of {place}; it was "
            f"one of {random.randint(2, 40)} that stood there in {year}."
        )
    return "\n".join(lines)


def help_page(number: int) -> str:
    random = Random(6_000 + number)
    lines = []
    for _ in range(7):
        menu, action = random.choice(_MENUS.split()), random.choice(_ACTIONS.split())
        lines.append(
            f"To {action} your work, choose {menu} and then click the button to {action} it; you "
            f"can press the key again if you want to {random.choice(_ACTIONS.split())} it."
        )
    return "\n".join(lines)


def changelog(number: int) -> str:
    random = Random(7_000 + number)
    lines = []
    for _ in range(9):
        action = random.choice(_ACTIONS.split())
        verb = random.choice(("Fixed", "Added", "Removed"))
        lines.append(
            f"- {verb} an option to {action} when the {random.choice(_ACTIONS.split())} dialog "
            f"fails (#{random.randint(10, 9999)})."
        )
    return "\n".join(lines)


def banter(number: int) -> str:
    random = Random(8_000 + number)
    parts = (
        "lol I know what you mean", "well my cat did that again", "please tell me you are kidding",
        "I think you should just restart it", "haha that is so true", "we all love you anyway",
        "I never said that and you know it", "my boss thinks so too",
    )  # fmt: skip
    return "\n".join(f"{random.choice(parts)}, {random.choice(parts)}!" for _ in range(8))


def documents(
    write: Callable[[int], str], count: int, source: str, first: int = 0
) -> list[Document]:
    return [
        Document(document_id(source, str(n)), write(n), source, str(n))
        for n in range(first, first + count)
    ]


class Letters:
    """Embeds a text by how often each letter stands in it; counts the texts."""

    def __init__(self) -> None:
        self.asked = 0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += len(texts)
        counts = [[text.count(chr(97 + k)) for k in range(26)] for text in texts]
        return np.array(counts, dtype=np.float32)


def open_letters(model: str) -> Letters:
    return Letters()


def write_rows(path: Path, rows: Sequence[Document]) -> Path:
    with document_writer(path) as append:
        for one in rows:
            append(one)
    return path


def write_references(folder: Path, count: int = 40) -> ReferenceConfig:
    folder.mkdir(exist_ok=True)
    plain = [
        *documents(help_page, count, "help"),
        *documents(changelog, count, "changes"),
        *documents(banter, count, "forum"),
        *documents(sale, count, "ads", 900),
    ]
    places = {
        "quality": write_rows(folder / "prose.jsonl.zst", documents(prose, count, "prose", 900)),
        "knowledge": write_rows(
            folder / "entries.jsonl.zst", documents(entry, count, "entries", 900)
        ),
        "plain": write_rows(folder / "plain.jsonl.zst", plain),
    }
    return ReferenceConfig.model_validate({name: (str(path),) for name, path in places.items()})


def small_config(reference: ReferenceConfig, **changes: object) -> WebConfig:
    plain = {"url": None, "language": None, "heuristics": None, "minhash": None, "bloom": None}
    return WebConfig.model_validate(
        {
            **plain,
            "reference": reference,
            "training": ClassifierTrainingConfig(
                dim=20, buckets=2000, epochs=10, learning_rate=0.5
            ),
            "head": HeadConfig(max_documents=120, folds=3),
            "embed": {"dimensions": 128},
            "tasks": 3,
            **changes,
        }
    )
