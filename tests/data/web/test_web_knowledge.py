"""World knowledge: entries of books as documents, marks by rule and endpoint, what is learned."""

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from web_builder import (
    changelog,
    documents,
    help_page,
    small_config,
    write_references,
    write_rows,
)

from fivefold.artifact import read_json
from fivefold.data.curate.classify_step import score_file
from fivefold.data.curate.shard import find_shards
from fivefold.data.maths.config import ScorerConfig
from fivefold.data.maths.endpoint import EndpointScorer
from fivefold.data.maths.score_step import ScoringError
from fivefold.data.web import label_step
from fivefold.data.web.config import KnowledgeConfig, KnowledgeLabelConfig
from fivefold.data.web.entry import book_documents
from fivefold.data.web.glm5_web import run_glm5_web
from fivefold.data.web.knowledge_label import RUBRIC, excerpt, open_labeller, rule_mark
from fivefold.data.web.label_step import read_marks
from fivefold.errors import CorruptFileError

HISTORY = (
    "In 1848 the town of Seneca Falls was the place of a convention that Elizabeth Cady Stanton "
    "and Lucretia Mott called. Frederick Douglass spoke for the resolution, which was adopted by "
    "a narrow vote. Susan B. Anthony, who met Stanton in 1851, led the movement in New York until "
    "she died in 1906.\n"
)
USAGE = (
    "To open a file, choose File - Open and select the name in the dialog; you can also press the "
    "key. The option returns the default value of the parameter if no table is specified.\n"
)


def test_marks_follow_facts_and_not_length_or_fluency():
    narrated, used = rule_mark(HISTORY * 2), rule_mark(USAGE * 3)
    assert narrated > 4
    assert used < 1
    assert rule_mark(help_page(1)) < 1.5
    assert rule_mark(changelog(1)) < 1.5
    assert rule_mark("") == rule_mark("\n\n") == 0
    # Fluent prose about nobody, and a caption with two names, are no knowledge.
    assert rule_mark("We think of it as it is and as it ought to be for all of us here. " * 9) < 1.5
    assert rule_mark("Ada Lovelace and Charles Babbage") < 3
    marks = open_labeller(ScorerConfig()).score([HISTORY * 2, USAGE * 3])
    np.testing.assert_allclose(marks, [narrated, used])


def test_an_excerpt_is_head_middle_and_tail():
    text = "".join(f"{n:05d}" for n in range(2000))
    assert excerpt(text, 300) == "\n...\n".join((text[:100], text[4950:5050], text[-100:]))
    assert excerpt("short", 300) == "short"


def test_an_endpoint_is_asked_for_knowledge():
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        (message,) = json.loads(request.content)["messages"]
        asked.append(message["content"])
        content = '{"score": 4}' if "Seneca" in message["content"] else "no"
        return httpx.Response(200, json={"choices": [{"message": {"content": content}}]})

    config = ScorerConfig(kind="endpoint", url="http://server", served_model="m")
    labeller = EndpointScorer(config, httpx.MockTransport(answer), RUBRIC)
    marks = labeller.score([HISTORY, USAGE])
    assert marks[0] == 4
    assert math.isnan(marks[1])
    assert all("knowledge of the world" in one and "mathematics" not in one for one in asked)
    assert isinstance(open_labeller(config), EndpointScorer)


def digits(number: int) -> str:
    """Write a number as the index of a book does."""
    places = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return (digits(number // 64) if number >= 64 else "") + places[number % 64]


def book(entries: list[tuple[str, str]]) -> dict[str, bytes]:
    text, index = b"", []
    for head, body in entries:
        content = f"{head}\n\n{body}\n\n".encode()
        index.append(f"{head}\t{digits(len(text))}\t{digits(len(content))}")
        text += content
    index.append(index[1].replace(entries[1][0], "another name of it"))
    return {
        "usr/share/dictd/b.dict.dz": gzip.compress(text),
        "usr/share/dictd/b.index": "\n".join(sorted(index)).encode(),
    }


def test_a_book_becomes_prose_entry_by_entry():
    bodies = [
        ("00-database-info", "   This file was converted " * 20),
        ("zinc", "   <chemistry> A {metal} of\n   group 12" + ", known since antiquity" * 4 + "."),
        ("alias", "   See {zinc}."),
        *((f"thing {n}", f"   Number {n} was found in 18{n:02d}. " * 9 + "\n\n   (1998-02-06)")
          for n in range(9)),
    ]  # fmt: skip
    found = list(book_documents("b", book(bodies)))
    whole = "\n\n".join(one.text for one in found)
    assert whole.startswith("zinc.\nA metal of group 12, known since antiquity")
    assert whole.count("zinc.") == 1
    assert "alias" not in whole
    assert "1998-02-06" not in whole
    assert "converted" not in whole
    assert [head in whole for head, _ in bodies[3:]] == [True] * 9
    assert all(len(one.text) >= 1500 for one in found[:-1])
    assert len({one.id for one in found}) == len(found) > 1


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"b.index": b"a\tA\tB"},
        {"b.index": b"a\tA\tB", "b.dict.dz": b"no gzip"},
        {"b.index": b"a\tA\t\xff\xff", "b.dict.dz": gzip.compress(b"x" * 99)},
    ],
)
def test_a_damaged_book_is_named(members: dict[str, bytes]):
    with pytest.raises(CorruptFileError, match="index of `b`"):
        list(book_documents("b", members))


def history(number: int) -> str:
    """A page that tells of people and years, in words that no reference has."""
    years = [1700 + (37 * number + 13 * k) % 250 for k in range(8)]
    return "\n".join(
        f"In {year} the quarrel of Count Odo Varga{number} with Bishop Emeric Zoll{k} was ended by "
        f"the treaty that Queen Ilka Morava{k} had signed at Castle Brenn {year + 2}."
        for k, year in enumerate(years)
    )


def rare(number: int) -> str:
    """A page of usage, in words that no reference has."""
    parts = ("gadget", "widget", "sprocket", "flange", "gasket")
    return "\n".join(
        f"Set the {parts[(number + k) % 5]} option so that your {parts[k % 5]} returns its default "
        f"value, then press lever {8 * number + k} and you should see the parameter."
        for k in range(8)
    )


def test_marked_pages_teach_what_facts_look_like_on_pages(tmp_path: Path):
    reference = write_references(tmp_path / "reference")
    pages = {"rare": documents(rare, 60, "rare"), "history": documents(history, 20, "history")}
    rows = write_rows(tmp_path / "rows.jsonl.zst", [*pages["rare"], *pages["history"]])
    found = {}
    for most in (1000, 0):
        label = KnowledgeLabelConfig(max_documents=most, percentiles=(0.0, 1.0))
        knowledge = KnowledgeConfig(label=label, share=0.2)
        config = small_config(reference, knowledge=knowledge, embedding=None)
        out = tmp_path / f"out{most}"
        curated = run_glm5_web(find_shards([rows]), config, out)
        (path,) = out.glob("tier-*/*.parquet")
        chances = {
            row["id"]: row["knowledge_probability"] for row in parquet.read_table(path).to_pylist()
        }
        found[most] = {k: [chances[one.id] >= 0.5 for one in some] for k, some in pages.items()}
        (facts,) = out.glob("learn-*/world_knowledge/classifier.json")
        trained = read_json(facts)
        assert trained
        assert (trained["positives"], trained["negatives"]) == (
            # The best two pages are at percentile 1 and not below it.
            (40 + 18, 120 + 60) if most else (40, 120)
        )
        assert most == 0 or curated.accounts["tiers"].edits["tier.rescued"] > 0
    assert all(found[1000]["history"])
    assert not any(found[1000]["rare"])
    # What was learned from entries and help alone takes usage for knowledge, or history for none.
    alone = sum(found[0]["history"]) - sum(found[0]["rare"])
    assert alone < 15


class Mute:
    """Gives no text a mark."""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        return np.full(len(texts), math.nan)


def test_a_labeller_that_failed_is_asked_again_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = write_rows(tmp_path / "rows.jsonl.zst", documents(rare, 40, "rare"))
    label = KnowledgeLabelConfig(max_documents=20, percentiles=(0.0, 1.0))
    knowledge = KnowledgeConfig(label=label, share=0.2)
    config = small_config(
        write_references(tmp_path / "reference"), knowledge=knowledge, embedding=None
    )
    shards, out = find_shards([rows]), tmp_path / "out"
    monkeypatch.setattr(label_step, "open_labeller", lambda _: Mute())
    with pytest.raises(ScoringError, match="without a mark"):
        run_glm5_web(shards, config, out)
    assert list(out.glob("score-*"))
    monkeypatch.setattr(label_step, "open_labeller", open_labeller)
    assert run_glm5_web(shards, config, out).documents


def test_a_labeller_that_fails_too_often_is_an_error(tmp_path: Path):
    files = []
    for name, values in (("a", [4.0, math.nan]), ("b", [1.0])):
        files.append(tmp_path / f"{name}.jsonl.zst")
        columns = {
            "id": [f"{name}{k}" for k in range(len(values))],
            "quality": np.array(values, np.float32),
        }
        parquet.write_table(arrow.table(columns), score_file(tmp_path, files[-1]))
    assert read_marks(files, tmp_path, 0.5) == {"a0": 4.0, "b0": 1.0}
    with pytest.raises(ScoringError, match="found 1"):
        read_marks(files, tmp_path, 0.05)
