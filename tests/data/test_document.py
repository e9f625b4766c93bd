import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.document import (
    Document,
    LargeRowError,
    document_id,
    document_writer,
    read_documents,
    read_good_rows,
    read_rows,
)
from fivefold.errors import CorruptFileError


def write(path: Path, documents: list[Document]) -> None:
    with document_writer(path) as add:
        for document in documents:
            add(document)


def some_documents(count: int) -> list[Document]:
    return [
        Document(document_id("s", str(n)), f"text {n} \u4e2d\n" * 50, "s", str(n), "en", {"n": n})
        for n in range(count)
    ]


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=8))
def test_documents_read_back_equal(texts: list[str], tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("d") / "x.jsonl.zst"
    documents = [Document(str(n), text, "s", f"u{n}") for n, text in enumerate(texts)]
    write(path, documents)
    assert list(read_documents(path)) == documents


def test_reader_follows_several_frames(tmp_path: Path):
    path = tmp_path / "x.jsonl.zst"
    lines = [b'{"text": "one"}\n', b'{"text": "two"}\n{"text": "three"}']
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(line) for line in lines))
    assert [document.text for document in read_documents(path)] == ["one", "two", "three"]


def test_reader_reports_any_truncation(tmp_path: Path):
    path = tmp_path / "x.jsonl.zst"
    write(path, some_documents(20))
    whole = path.read_bytes()
    for kept in range(len(whole)):
        path.write_bytes(whole[:kept])
        with pytest.raises(CorruptFileError, match="zstd"):
            list(read_documents(path))


def test_reader_reports_a_flipped_bit(tmp_path: Path):
    path = tmp_path / "x.jsonl.zst"
    write(path, some_documents(20))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(CorruptFileError):
        list(read_documents(path))


@pytest.mark.parametrize("line", ["{", '{"text": 3}', "[1]", '{"no": "text"}', "\xff"])
def test_reader_names_file_and_line_of_a_bad_row(line: str, tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(CorruptFileError, match=r"line 2 of .*mine\.jsonl"):
        list(read_documents(path))


def test_user_rows_need_only_text(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b", "source": "web"}\n')
    first, second = read_documents(path)
    assert (first.text, first.source, first.url) == ("a", "mine", "mine.jsonl#1")
    assert second.source == "web"
    assert first.id != second.id


def test_names_that_are_no_unicode_have_an_id_and_can_be_written(tmp_path: Path):
    assert document_id("web", "\udce9") != document_id("web", "\udce8")
    path, names = tmp_path / "mine.jsonl", ["\ud800", "\ud801"]
    path.write_text("".join(json.dumps({"text": "a" + n, "id": n, "url": n}) + "\n" for n in names))
    found = list(read_documents(path))
    assert [one.id for one in found] == ["\\ud800", "\\ud801"]
    write(tmp_path / "x.jsonl.zst", found)
    assert list(read_documents(tmp_path / "x.jsonl.zst")) == found


def test_writer_leaves_nothing_when_interrupted(tmp_path: Path):
    path = tmp_path / "x.jsonl.zst"

    def interrupted() -> None:
        with document_writer(path) as add:
            add(some_documents(1)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_writer_killed_at_any_moment_leaves_no_file_of_that_name(tmp_path: Path):
    path = tmp_path / "x.jsonl.zst"
    program = (
        "import os, sys, pathlib\n"
        "from fivefold.data.document import Document, document_writer\n"
        "with document_writer(pathlib.Path(sys.argv[1])) as add:\n"
        "    for n in range(3000):\n"
        "        add(Document(str(n), os.urandom(500).hex(), 's'))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert result.returncode == -9
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl.zst.partial"]
    write(path, some_documents(3))
    assert list(read_documents(path)) == some_documents(3)
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl.zst"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_row_longer_than_allowed_is_named_and_the_others_are_read(suffix: str, tmp_path: Path):
    path = tmp_path / f"mine{suffix}"
    # Lines that begin and end at, before and after the edges of the reader's blocks.
    texts = ["a" * size for size in (1, 3_000_000, (1 << 20) - 25, 9, 1_500_000, 2)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(pack.get(path.suffix, bytes)(lines[:-1]))
    assert [one.text for one in read_documents(path)] == texts
    rows = list(read_rows(path, max_bytes=1 << 20))
    assert [number for number, _ in rows] == [1, 2, 3, 4, 5, 6]
    large = [number for number, row in rows if isinstance(row, LargeRowError)]
    assert large == [2, 5]
    assert [row.text for _, row in rows if isinstance(row, Document)] == [
        text for text in texts if len(text) < 1 << 20
    ]
    path.write_bytes(pack.get(path.suffix, bytes)(b'{"no": "document"}\n'))
    with pytest.raises(CorruptFileError, match="no text"):
        list(read_good_rows(path, max_bytes=1 << 20))


def test_reading_a_long_row_takes_time_in_proportion_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"text": "a" * 1_000_000}))
    monkeypatch.setattr("fivefold.data.document._BLOCK_BYTES", 64)
    began = time.process_time()
    (one,) = read_documents(path)
    assert len(one.text) == 1_000_000
    # 16 thousand blocks: what is joined anew for each takes 8 GB of copies.
    assert time.process_time() - began < 0.5
