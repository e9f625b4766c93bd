import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from data_builder import deb_bytes
from warc_builder import warc_bytes, warc_record

from fivefold.data.curate.account import QuarantineError
from fivefold.data.curate.config import CurateConfig, ExtractConfig
from fivefold.data.curate.dclm_baseline import Curated, run_dclm_baseline
from fivefold.data.curate.raw_page import read_texts
from fivefold.data.curate.shard import Shard, find_shards
from fivefold.data.document import Document, document_writer, read_documents
from fivefold.data.source import CATALOGUE
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError, StorageError

English = Callable[[int], str]
ALL = CurateConfig(url=None, language=None, heuristics=None, minhash=None, bloom=None, tasks=2)


def html(text: str) -> bytes:
    return f"<html lang=en><title>t</title><body><p>{text}</p></body></html>".encode()


def write_one_of_each(folder: Path, texts: list[str]) -> None:
    """One text in each kind of file, in this order."""
    warc, warc_gz, deb, rows, rows_zst, table, page, plain = texts
    folder.mkdir(exist_ok=True)
    for suffix, text in ((".warc", warc), (".warc.gz", warc_gz)):
        record = warc_record(f"https://x.org/{suffix}", html(text))
        (folder / f"crawl{suffix}").write_bytes(warc_bytes([record], suffix)[0])
    package = {"./usr/share/doc/a.html": html(deb), "./usr/share/doc/a.png": b"\x89PNG"}
    (folder / "doc.deb").write_bytes(deb_bytes(package))
    (folder / "rows.jsonl").write_text(json.dumps({"text": rows, "url": "r"}) + "\n")
    with document_writer(folder / "rows2.jsonl.zst") as append:
        append(Document("id", rows_zst, "own"))
    columns = {"text": [table], "url": ["https://x.org/p"], "language": ["en"], "score": [1.0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "table.parquet")
    (folder / "deep").mkdir()
    (folder / "deep" / "page.html").write_bytes(html(page))
    (folder / "plain.txt").write_text(plain)
    (folder / "ignored.png").write_bytes(b"\x89PNG")


def curate(source: Path, out: Path, config: CurateConfig = ALL) -> Curated:
    return run_dclm_baseline(find_shards([source]), config, out)


def texts_of(curated: Curated) -> dict[str, str]:
    return {one.url: one.text for file in curated.documents for one in read_documents(file)}


def test_every_kind_of_file_gives_its_text_once(tmp_path: Path, english: English):
    texts = [english(number) for number in range(8)]
    write_one_of_each(tmp_path / "in", texts)
    curated = curate(tmp_path / "in", tmp_path / "out")
    found = texts_of(curated)
    whole = [" ".join(text.split()) for text in texts]
    assert sorted(" ".join(text.split()) for text in found.values()) == sorted(whole)
    assert {"https://x.org/.warc", "usr/share/doc/a.html", "deep/page.html", "plain.txt"} < set(
        found
    )
    documents = [one for file in curated.documents for one in read_documents(file)]
    assert {one.source for one in documents} == {"in", "own"}
    assert {one.meta.get("title") for one in documents} == {"t", None}
    assert curated.accounts["extract"].documents_in == 8
    assert curated.empty == []


def test_result_is_the_same_for_any_place_and_any_tasks(tmp_path: Path, english: English):
    write_one_of_each(tmp_path / "in", [english(number) for number in range(8)])
    first = curate(tmp_path / "in", tmp_path / "one")
    other = ALL.model_copy(update={"tasks": 5})
    second = curate(tmp_path / "in", tmp_path / "two", other)
    assert [file.read_bytes() for file in first.documents] == [
        file.read_bytes() for file in second.documents
    ]


def test_pages_that_cannot_be_read_go_for_a_reason(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    records = [
        warc_record("u:image", b"\x89PNG", content_type="image/png"),
        warc_record("u:gone", b"<p>gone</p>", status="404 Not Found"),
        warc_record("u:huge", b"x" * 3000),
        warc_record("u:blank", b"<html><script>1</script></html>"),
        warc_record("u:good", b"<p>good</p>"),
    ]
    (folder / "a.warc.gz").write_bytes(warc_bytes(records, ".warc.gz")[0])
    (folder / "huge.html").write_bytes(b"x" * 3000)
    (folder / "bomb.html.gz").write_bytes(gzip.compress(b"x" * 1_000_000))
    (folder / "rows.jsonl").write_text(f'{{"text": "{"x" * 3000}"}}\n{{"text": "row", "url": "u"}}')
    (folder / "broken.txt").write_text("bl\ufffd " * 50)
    (folder / "nothing.jsonl").write_bytes(b"")
    config = ALL.model_copy(update={"extract": ExtractConfig(max_page_bytes=2000)})
    curated = curate(folder, tmp_path / "out", config)
    assert curated.accounts["extract"].drops == {
        "extract.content_type": 1,
        "extract.http_status": 1,
        "extract.too_large": 4,
        "extract.empty": 1,
        "extract.undecodable": 1,
    }
    assert texts_of(curated) == {"u:good": "good", "u": "row"}
    assert curated.empty == [str(folder / "nothing.jsonl")]


def test_a_bad_row_goes_for_a_reason_and_the_others_stay(tmp_path: Path):
    (tmp_path / "in").mkdir()
    rows = ['{"text": "one"}', '{"text": null}', "{", '{"text": "two"}']
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(rows) + "\n")
    table = pyarrow.table({"text": ["three", None, "four"]})
    pyarrow.parquet.write_table(table, tmp_path / "in" / "b.parquet")
    curated = curate(tmp_path / "in", tmp_path / "out", ALL.model_copy(update={"tasks": 1}))
    account = curated.accounts["extract"]
    assert account.drops == {"extract.bad_row": 3}
    urls = {sample["url"] for sample in account.samples["extract.bad_row"]}
    assert urls == {"a.jsonl#2", "a.jsonl#3", "b.parquet#2"}
    assert set(texts_of(curated).values()) == {"one", "two", "three", "four"}


def test_files_that_are_not_read_are_counted_and_gzipped_pages_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for name in ("a.json.gz", "b.png", "c.png", "LICENCE"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "p.html.gz").write_bytes(gzip.compress(html("a page")))
    (tmp_path / "README.md").write_text("read me")
    with caplog.at_level(logging.INFO):
        shards = find_shards([tmp_path])
    assert "4 files below" in caplog.text
    for counted in ("2 .png", "1 .json.gz", "1 none"):
        assert counted in caplog.text
    assert [document.text for document in read_texts(shards, ExtractConfig())] == [
        "read me",
        "a page",
    ]
    (tmp_path / "p.html.gz").write_bytes(b"<p>")
    with pytest.raises(CorruptFileError, match=r"gzip members in .*p\.html\.gz"):
        list(read_texts(shards, ExtractConfig()))


def test_a_cut_file_stops_the_run_or_is_quarantined(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    records = [warc_record(f"u:{n}", f"<p>text {n}</p>".encode()) for n in range(4)]
    content, ends = warc_bytes(records, ".warc.gz")
    (folder / "a.warc.gz").write_bytes(content[: ends[2] + 30])
    (folder / "b.html").write_bytes(b"<p>other</p>")
    with pytest.raises(CorruptFileError, match=r"a\.warc\.gz"):
        curate(folder, tmp_path / "stop")
    patient = ALL.model_copy(update={"extract": ExtractConfig(damaged_files="quarantine")})
    with pytest.raises(QuarantineError, match=r"at most 0\.10% of 5"):
        curate(folder, tmp_path / "strict", patient)
    lenient = patient.model_copy(update={"max_quarantined": 0.5})
    curated = curate(folder, tmp_path / "lenient", lenient)
    assert set(texts_of(curated)) == {"u:0", "u:1", "u:2", "b.html"}
    (poisoned,) = curated.accounts["extract"].quarantined
    assert poisoned["url"] == "a.warc.gz"
    assert "CorruptFileError" in poisoned["trace"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"PAR1 and no more"),
        ("a.deb", b"!<arch>\nbroken"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd"),
        ("a.jsonl", b"{'no json'"),
        ("a.warc.gz", b"\x1f\x8b\x08\x00"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(CorruptFileError, match=name):
        curate(tmp_path / "in", tmp_path / "out")


def test_a_table_without_texts_is_named(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), path)
    with pytest.raises(CorruptFileError, match="column `text`"):
        curate(path, tmp_path / "out")


def test_catalogue_names_stand_for_their_files():
    shards = find_shards(["python-stdlib"])
    assert all(one.path.is_file() and one.licence == "PSF-2.0" for one in shards)
    assert {one.form for one in shards} == {"text"}
    names = [one.name for one in shards]
    assert "json/decoder.py" in names
    assert not any(name.startswith(("test/", "site-packages/")) for name in names)
    assert names == sorted(names)


def test_sources_that_cannot_be_are_named(tmp_path: Path):
    with pytest.raises(MissingFileError, match="sqlite-doc"):
        find_shards(["no-such-source"])
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"\.parquet"):
        find_shards([tmp_path / "a.docx"])
    with pytest.raises(ConfigError, match="below"):
        find_shards([tmp_path])


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_an_unreadable_file_is_named(tmp_path: Path):
    # Reading a process's memory from address 0 fails for root, too.
    (tmp_path / "dark.txt").symlink_to("/proc/self/mem")
    with pytest.raises(StorageError, match=r"dark\.txt"):
        curate(tmp_path, tmp_path / "out")


def test_pages_of_a_package_lose_their_furniture_and_carry_the_licence(
    tmp_path: Path, make_deb: Callable[..., Path]
):
    source = CATALOGUE["sqlite-doc"]
    content = (
        "<html><body><div>Small. Fast. Reliable.<br>Choose any three.</div>"
        "<p>The rowid is the key of a table that has no other key.</p></body></html>"
    )
    members = {
        "./usr/share/doc/sqlite3/rowid.html": content.encode(),
        "./usr/share/doc/sqlite3/sitemap.html": b"<p>left out</p>",
        "./usr/share/doc/other/rowid.html": b"<p>left out</p>",
    }
    facts = {"lang": source.lang, "licence": source.licence, "furniture": source.furniture}
    whole = Shard(make_deb(members), source.name, "doc.deb", "archive", source.form, source.members)
    curated = run_dclm_baseline([Shard(**{**vars(whole), **facts})], ALL, tmp_path / "out")
    (document,) = (one for file in curated.documents for one in read_documents(file))
    assert document.text == "The rowid is the key of a table that has no other key."
    assert document.url == "usr/share/doc/sqlite3/rowid.html"
    assert (document.lang, document.meta["licence"]) == ("en", "public domain")


def test_texts_for_training_a_classifier_are_those_of_the_pipeline(
    tmp_path: Path, english: English, caplog: pytest.LogCaptureFixture
):
    write_one_of_each(tmp_path / "in", [english(number) for number in range(8)])
    (tmp_path / "in" / "blank.html").write_text("<html></html>")
    shards = find_shards([tmp_path / "in"])
    with caplog.at_level("INFO", logger="fivefold"):
        read = list(read_texts(shards, ExtractConfig()))
    curated = run_dclm_baseline(shards, ALL, tmp_path / "out")
    assert {one.url: one.text.strip() for one in read} == texts_of(curated)
    assert "1 pages of in without text left out" in caplog.text


def test_equal_names_of_different_places_stay_apart(tmp_path: Path):
    for place in ("a", "b"):
        (tmp_path / place / "Web (1)").mkdir(parents=True)
        (tmp_path / place / "Web (1)" / "p.txt").write_text(f"text of {place}")
    shards = find_shards([tmp_path / "a" / "Web (1)", tmp_path / "b" / "Web (1)"])
    curated = run_dclm_baseline(shards, ALL, tmp_path / "out")
    documents = [one for file in curated.documents for one in read_documents(file)]
    assert {(one.source, one.text) for one in documents} == {
        ("web-1", "text of a"),
        ("web-1-2", "text of b"),
    }
    assert curated.summary.to_json()["sources"] == {"web-1": 1, "web-1-2": 1}
