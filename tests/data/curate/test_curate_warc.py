import contextlib
import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warc_builder import warc_bytes, warc_record

from fivefold.data.curate.warc import read_warc
from fivefold.errors import CorruptFileError

SUFFIXES = (".warc", ".warc.gz", ".warc.zst")
BODIES = [b"<p>first</p>", b"<p>second</p>" * 300, b"", b"<p>\xff\x00last</p>"]
RECORDS = [
    warc_record("https://a.org/info", b"", kind="warcinfo"),
    *(warc_record(f"https://a.org/{n}", body) for n, body in enumerate(BODIES)),
]
LIMIT = 1_000_000


def write(folder: Path, content: bytes, suffix: str) -> Path:
    path = folder / f"crawl{suffix}"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_responses_come_out_byte_by_byte(tmp_path: Path, suffix: str):
    path = write(tmp_path, warc_bytes(RECORDS, suffix)[0], suffix)
    found = list(read_warc(path, LIMIT))
    assert [(one.url, one.content) for one in found] == [
        (f"https://a.org/{n}", body) for n, body in enumerate(BODIES)
    ]
    assert {(one.form, one.status, one.date) for one in found} == {
        ("html", 200, "2024-05-01T00:00:00Z")
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_is_an_error_unless_it_takes_no_page(
    tmp_path: Path, suffix: str, data: st.DataObject
):
    content, ends = warc_bytes(RECORDS, suffix)
    cut = data.draw(st.one_of(st.integers(0, len(content)), st.sampled_from(ends)))
    path = write(tmp_path, content[:cut], suffix)
    whole = max(0, sum(end - 4 <= cut for end in ends) - 1)
    if cut in ends:
        assert len(list(read_warc(path, LIMIT))) == max(0, ends.index(cut))
    elif cut < ends[0] or (suffix == ".warc" and any(end - 4 <= cut < end for end in ends)):
        # Within the description of the archive, or a record's closing line: no page is lost.
        with contextlib.suppress(CorruptFileError):
            assert len(list(read_warc(path, LIMIT))) == whole
    else:
        with pytest.raises(CorruptFileError, match="whole WARC records"):
            list(read_warc(path, LIMIT))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0), bit=st.integers(0, 7), suffix=st.sampled_from(SUFFIXES[1:]))
def test_a_flipped_bit_never_changes_a_page_without_a_word(
    tmp_path: Path, place: int, bit: int, suffix: str
):
    content, _ = warc_bytes(RECORDS, suffix)
    altered = bytearray(content)
    altered[place % len(altered)] ^= 1 << bit
    try:
        found = list(read_warc(write(tmp_path, bytes(altered), suffix), LIMIT))
    except CorruptFileError:
        return
    # Bits of a frame's own header, such as its time, do not matter.
    assert [one.content for one in found] == BODIES


def test_what_the_server_packed_is_unpacked(tmp_path: Path):
    packed = warc_record(
        "https://a.org/", gzip.compress(b"<p>text</p>"), headers="Content-Encoding: gzip\r\n"
    )
    (found,) = read_warc(write(tmp_path, packed, ".warc"), LIMIT)
    assert found.content == b"<p>text</p>"


def test_types_charsets_and_states_are_reported(tmp_path: Path):
    records = [
        warc_record("u:1", b"x", content_type="text/html; charset=gb2312"),
        warc_record("u:2", b"x", content_type="image/png"),
        warc_record("u:3", b"x", content_type="text/plain", status="404 Not Found"),
        warc_record("u:4", b"x", content_type="application/xhtml+xml"),
    ]
    path = write(tmp_path, warc_bytes(records, ".warc.gz")[0], ".warc.gz")
    assert [(one.form, one.charset, one.status) for one in read_warc(path, LIMIT)] == [
        ("html", "gb2312", 200),
        ("", "", 200),
        ("text", "", 404),
        ("html", "", 200),
    ]


def test_a_page_beyond_the_limit_is_reported_and_the_next_one_read(tmp_path: Path):
    records = [warc_record("u:1", b"x" * 5000), warc_record("u:2", b"<p>small</p>")]
    path = write(tmp_path, warc_bytes(records, ".warc.gz")[0], ".warc.gz")
    large, small = read_warc(path, 1000)
    assert (large.content, small.content) == (b"", b"<p>small</p>")
    assert large.size_bytes > 5000


@pytest.mark.parametrize("content", [b"", b"no warc at all\r\n\r\n" * 50, b"<html></html>\n\n"])
def test_what_is_no_warc_is_named(tmp_path: Path, content: bytes):
    path = write(tmp_path, content, ".warc")
    with pytest.raises(CorruptFileError, match=r"crawl\.warc"):
        list(read_warc(path, LIMIT))
