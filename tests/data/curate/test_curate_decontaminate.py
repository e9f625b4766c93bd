"""Benchmark items in documents: planted in every dress, boilerplate and short items, policies."""

# Chinese is punctuated with full-width marks.
# ruff: noqa: RUF001

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.code.config import FimConfig
from fivefold.data.code.fim import fill_in_middle, marks_of, restore_text
from fivefold.data.curate.account import read_accounts
from fivefold.data.curate.benchmark import Item, digest_benchmarks, find_benchmarks, read_items
from fivefold.data.curate.benchmark_items import decontamination_parts
from fivefold.data.curate.config import ExtractConfig
from fivefold.data.curate.decontaminate import (
    BenchmarkIndex,
    build_index,
    decontaminate,
    plain_words,
    read_index,
    write_index,
)
from fivefold.data.curate.decontaminate_config import DecontaminationConfig
from fivefold.data.curate.decontaminate_step import BuildBenchmarkIndex, Decontaminate
from fivefold.data.curate.extract_step import ExtractText
from fivefold.data.curate.step import document_to_page, page_to_document
from fivefold.data.document import Document
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError

CONFIG = DecontaminationConfig(benchmarks=("unused",))
QUESTION = (
    "Mara's hens lay 16 eggs on each day of the week. She eats three of them for breakfast and "
    "sells the rest on the market for 2 dollars apiece. How many dollars does she earn each day?"
)
ANSWER = (
    "She sells 16 - 3 = <<16-3=13>>13 eggs and so earns 13 * 2 = <<13*2=26>>26 dollars.\n#### 26"
)


def index_of(*items: Item) -> BenchmarkIndex:
    return build_index(items, CONFIG)[0]


@pytest.fixture(scope="module")
def gsm8k(shared_data: Path) -> tuple[BenchmarkIndex, list[Item]]:
    files = find_benchmarks([str(shared_data / "gsm8k"), str(shared_data / "humaneval")])
    items = [item for file in files for item in read_items(file)]
    return build_index(items, CONFIG)[0], items


DRESSES: dict[str, Callable[[str], str]] = {
    "verbatim": str,
    "upper": str.upper,
    "lower": str.lower,
    "spaces": lambda text: text.replace(" ", "  \n "),
    "no punctuation": lambda text: re.sub(r"[.,'?$%]", " ", text),
    "full width": lambda text: text.translate({code: code + 0xFEE0 for code in range(48, 58)}),
    "markup": lambda text: "**Q:** " + text.replace(". ", ".\n\n> "),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_an_item_is_found_in_every_dress_and_anywhere_in_a_page(
    gsm8k: tuple[BenchmarkIndex, list[Item]], english: Callable[[int], str], dress: str
):
    index, items = gsm8k
    for item in items[::400]:
        planted = DRESSES[dress](item.prompt)
        page = "\n".join([english(1), planted, english(2), english(3)])
        verdict = decontaminate(page, index, CONFIG)
        assert verdict.reason == f"benchmark.{item.benchmark}"
        assert verdict.span
        begin, end = verdict.span
        assert planted.strip()[-20:-2] in page[begin:end]
        assert end - begin <= len(planted) + 2


def test_answer_alone_is_found_with_and_without_the_calculators_marks(
    gsm8k: tuple[BenchmarkIndex, list[Item]], english: Callable[[int], str]
):
    index, items = gsm8k
    long = [one for one in items if one.benchmark == "gsm8k" and len(one.answer.split()) > 30]
    for item in long[::200]:
        for answer in (item.answer, re.sub(r"<<[^<>]*>>", "", item.answer)):
            page = f"{english(1)}\n{answer}\n{english(2)}"
            assert decontaminate(page, index, CONFIG).reason == "benchmark.gsm8k"


def test_half_of_a_question_is_found_and_less_is_not():
    words = [f"w{number}" for number in range(52)]
    index = index_of(Item("b", "b#0", " ".join(words)))
    # 52 words are 40 runs; n words in a row hold n - 12 of them.
    assert not decontaminate(" ".join(words[:31]), index, CONFIG).reason
    assert decontaminate(" ".join(words[:32]), index, CONFIG).reason == "benchmark.b"


def test_one_run_with_a_word_of_the_answer_is_enough_and_one_of_the_question_is_not():
    words = [f"w{number}" for number in range(60)]
    index = index_of(Item("b", "b#0", " ".join(words), "seven"))
    assert decontaminate(" ".join([*words[-12:], "seven"]), index, CONFIG).reason
    assert not decontaminate(" ".join([*words[-12:], "eight"]), index, CONFIG).reason
    assert not decontaminate(" ".join(words[:13]), index, CONFIG).reason


def test_short_items_are_found_whole_only_and_very_short_ones_never():
    ten, seven = " ".join("abcdefghij"), " ".join("klmnopq")
    index, counts = build_index([Item("b", "0", ten), Item("b", "1", seven)], CONFIG)
    assert decontaminate(f"x y {ten} z", index, CONFIG).reason == "benchmark.b"
    assert not decontaminate(f"x y {ten[:-2]} z", index, CONFIG).reason
    assert not decontaminate(f"x y {seven} z", index, CONFIG).reason
    assert counts == {"b": {"items": 2, "short": 1, "boilerplate": 0}}


def test_runs_that_many_items_share_are_nobodys():
    shared = " ".join(f"s{number}" for number in range(20))
    items = [
        Item("b", str(n), f"{shared} " + " ".join(f"q{n}x{k}" for k in range(15)))
        for n in range(11)
    ]
    index, counts = build_index(items, CONFIG)
    assert not decontaminate(shared, index, CONFIG).reason
    assert decontaminate(items[3].prompt, index, CONFIG).reason
    assert counts["b"]["boilerplate"] == 0
    others = [Item("b", str(n), shared + "!" * n) for n in range(11)]
    index, counts = build_index([*others, Item("c", "copy", shared)], CONFIG)
    assert [counts[name]["boilerplate"] for name in "bc"] == [11, 1]
    assert not decontaminate(shared, index, CONFIG).reason
    assert (
        decontaminate(
            shared, index_of(*(Item("b", str(n), shared) for n in range(11))), CONFIG
        ).reason
        == "benchmark.b"
    )


def test_cut_takes_item_and_margin_out_and_drops_where_little_is_left(
    english: Callable[[int], str],
):
    index = index_of(Item("hens", "0", QUESTION, ANSWER))
    config = CONFIG.model_copy(update={"policy": "cut", "margin_characters": 10})
    page = f"{english(1)}\n{QUESTION}\n{english(2)}"
    verdict = decontaminate(page, index, config)
    assert verdict.is_kept
    (edit,) = verdict.edits
    assert edit.reason == "benchmark.hens"
    begin = page.index(QUESTION)
    assert (edit.begin, edit.end) == (begin - 10, begin + len(QUESTION) - 1 + 10)
    assert edit.removed == page[edit.begin : edit.end]
    assert verdict.text == page[: edit.begin].strip() + "\n\n" + page[edit.end :].strip()
    assert decontaminate(QUESTION + " Well?", index, config).reason == "benchmark.hens"
    many = f"{english(1)}\n{QUESTION}\n{english(2)}\n{QUESTION.upper()}\n{english(3)}"
    assert len(decontaminate(many, index, config).edits) == 2


@given(st.lists(st.sampled_from("abcdefgh"), min_size=0, max_size=60), st.integers(0, 40))
def test_matching_equals_a_search_for_words_in_a_row(words: list[str], begin: int):
    prompt = [f"w{(7 * k * k + begin) % 53}" for k in range(30)]
    index = index_of(Item("b", "0", " ".join(prompt)))
    text = " ".join([*words, *prompt[begin % 18 :], *words])
    in_text = {tuple(plain_words(text)[k : k + 13]) for k in range(len(plain_words(text)) - 12)}
    runs = {tuple(prompt[k : k + 13]) for k in range(18)}
    expected = len(runs & in_text) / len(runs) >= CONFIG.prompt_share
    assert bool(decontaminate(text, index, CONFIG).reason) == expected


def test_chinese_items_are_found_by_character():
    text = "小明有十六个鸡蛋，每天早饭吃三个，剩下的拿去市场上卖，每个两元，他每天能得到多少元？"
    index = index_of(Item("zh", "0", text))
    page = f"这是一个很长的网页。{text.replace('，', ' ')}后面还有别的内容。"
    assert decontaminate(page, index, CONFIG).reason == "benchmark.zh"


def test_real_pages_hold_no_item(pages: list[str], gsm8k: tuple[BenchmarkIndex, list[Item]]):
    index, _ = gsm8k
    assert len(pages) >= 600
    found = [page for page in pages[:600] if decontaminate(page, index, CONFIG).reason]
    assert not found


def test_every_shape_of_file_gives_its_items(tmp_path: Path):
    rows = [{"question": "Why so?", "answer": "So."}]
    nested = {"data": [{"paragraphs": [{"context": "C", "qas": rows}]}]}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "one" / "lines.json").write_text("\n".join(map(json.dumps, rows * 2)))
    (tmp_path / "nested.json").write_text(json.dumps(nested))
    with gzip.open(tmp_path / "pairs.json.gz", "wt") as file:
        json.dump({"test": [["Why so?", "label"]], "names": [1, 2]}, file)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Problem", "Short Answer"], ["Why\nso?", "So."]])
    parquet.write_table(
        arrow.table({"prompt": ["Why so?"], "target": ["So."]}), tmp_path / "p.parquet"
    )
    chat = {
        "question": [[{"role": "user", "content": "Why so?"}]],
        "ground_truth": [{"f": {"x": [1]}}],
    }
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    (tmp_path / "README.md").write_text("question?")
    (tmp_path / "picture.png").write_bytes(b"x")
    files = find_benchmarks([str(tmp_path)])
    items = {(file.benchmark, file.name): list(read_items(file)) for file in files}
    flat = [(i.prompt.replace("\n", " "), i.answer) for found in items.values() for i in found]
    assert sorted(set(flat)) == [("Why so?", "1"), ("Why so?", "So."), ("Why so?", "label")]
    assert len(flat) == 8
    assert ("one", "one/rows.jsonl") in items
    assert (tmp_path.name.lower(), "nested.json") in items


def test_damaged_and_missing_files_are_named(tmp_path: Path):
    with pytest.raises(MissingFileError):
        find_benchmarks([str(tmp_path / "none")])
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="other files"):
        find_benchmarks([str(tmp_path)])
    path = tmp_path / "b.jsonl"
    path.write_text('{"question": "cut')
    with pytest.raises(CorruptFileError, match=r"b\.jsonl"):
        list(read_items(find_benchmarks([str(path)])[0]))
    path.write_text('{"question": "too short"}\n')
    config = DecontaminationConfig(benchmarks=(str(path),))
    with pytest.raises(ConfigError, match="none long enough"):
        list(BuildBenchmarkIndex(config, tmp_path / "index").run())


def test_the_step_drops_with_the_benchmarks_name_and_keeps_the_account(
    tmp_path: Path, english: Callable[[int], str]
):
    rows = tmp_path / "hens.jsonl"
    rows.write_text(json.dumps({"question": QUESTION, "answer": ANSWER}) + "\n")
    config = DecontaminationConfig(benchmarks=(str(rows),))
    list(BuildBenchmarkIndex(config, tmp_path / "index").run())
    step = Decontaminate(config, tmp_path / "index", tmp_path / "accounts", 60.0)
    texts = [english(1), f"{english(2)}\n{QUESTION.upper()}", english(3)]
    documents = [Document(str(n), text, "web", f"u{n}") for n, text in enumerate(texts)]
    left = [page.id for page in step.run(map(document_to_page, documents))]
    assert left == ["0", "2"]
    account = read_accounts(tmp_path / "accounts" / "benchmarks", 1)
    assert dict(account.drops) == {"benchmark.hens": 1}
    assert account.samples["benchmark.hens"][0]["marked"].startswith("MARA'S HENS LAY")


def test_a_text_with_marks_is_never_cut(tmp_path: Path, english: Callable[[int], str]):
    rows = tmp_path / "hens.jsonl"
    rows.write_text(json.dumps({"question": QUESTION, "answer": ANSWER}) + "\n")
    config = DecontaminationConfig(benchmarks=(str(rows),), policy="cut")
    list(BuildBenchmarkIndex(config, tmp_path / "index").run())
    step = Decontaminate(config, tmp_path / "index", tmp_path / "accounts", 60.0)
    texts = [f"{english(1)}\n{QUESTION}\n{english(2)}", f"\n\n\n{english(3)}  \n"]
    whole = [fill_in_middle(text, "key", FimConfig(rate=1.0, min_characters=3)) for text in texts]
    documents = [
        Document(str(n), one.text, "code", f"u{n}", meta={"marks": [list(m) for m in one.marks]})
        for n, one in enumerate(whole)
    ]
    documents.append(Document("plain", texts[0], "web", "p"))
    extract = ExtractText(ExtractConfig(), tmp_path / "accounts", 60.0)
    pages = [document_to_page(one) for one in documents]
    for page in pages:
        page.metadata["raw"] = None
    left = {page.id: page_to_document(page) for page in step.run(extract.run(pages))}
    assert set(left) == {"1", "plain"}
    assert QUESTION not in left["plain"].text
    assert marks_of(left["1"]) == list(whole[1].marks)
    assert restore_text(whole[1]) == texts[1]
    assert left["1"].text == whole[1].text


def test_index_survives_its_file_and_its_digest_follows_content(tmp_path: Path):
    index = index_of(Item("b", "0", QUESTION, ANSWER), Item("c", "1", " ".join("abcdefghij")))
    write_index(index, tmp_path / "i.npz")
    again = read_index(tmp_path / "i.npz")
    for text in (QUESTION, " ".join("abcdefghij"), "nothing"):
        assert again.find(text, CONFIG) == index.find(text, CONFIG)
    rows = tmp_path / "a" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text(json.dumps({"question": QUESTION}))
    moved = tmp_path / "b" / "a"
    moved.mkdir(parents=True)
    (moved / "rows.jsonl").write_text(rows.read_text())
    first = DecontaminationConfig(benchmarks=(str(rows.parent),))
    assert decontamination_parts(first) == decontamination_parts(
        DecontaminationConfig(benchmarks=(str(moved),))
    )
    before = digest_benchmarks([str(rows)])
    rows.write_text(json.dumps({"question": QUESTION + "!"}))
    assert digest_benchmarks([str(rows)]) != before


@pytest.mark.slow
def test_every_benchmark_that_lies_there_is_read(shared_data: Path, english: Callable[[int], str]):
    files = find_benchmarks([str(shared_data)])
    items = [item for file in files for item in read_items(file)]
    index, counts = build_index(items, CONFIG)
    expected = {"gsm8k": 1719, "humaneval": 165, "ifeval": 541, "ifbench": 300, "imobench": 460}
    assert {name: counts[name]["items"] for name in expected} == expected
    assert {"bbh", "banking77", "bfcl", "clinc150", "squad_ruler", "tau2"} <= counts.keys()
    for item in items[::997]:
        if len(plain_words(item.prompt)) >= 40 and item.benchmark != "bbh":
            page = f"{english(1)}\n{item.prompt.upper()}\n{english(2)}"
            assert decontaminate(page, index, CONFIG).reason.startswith("benchmark.")
