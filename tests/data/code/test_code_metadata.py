"""Do records belong to their contents: permuted rows, lost contents, git's own ids."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.code.metadata import Record, check, digest_of, realign
from fivefold.errors import CorruptFileError

CONTENTS = st.lists(st.binary(max_size=20), unique=True, min_size=1, max_size=12)


@given(CONTENTS, st.randoms(use_true_random=False), st.sampled_from(["sha1", "sha256", "git"]))
def test_permuted_contents_find_their_records(contents: list[bytes], random, kind):
    shuffled = list(contents)
    random.shuffle(shuffled)
    rows = [
        (i, Record(digest_of(right, kind), kind), found)
        for i, (right, found) in enumerate(zip(contents, shuffled, strict=True))
    ]
    aligned = list(realign(rows))
    assert {row: content for row, content, _ in aligned} == dict(enumerate(contents))
    for row, _, state in aligned:
        assert state == ("fits" if shuffled[row] == contents[row] else "realigned")


@given(CONTENTS, st.data())
def test_content_that_no_record_names_is_reported_and_nothing_is_lost(contents, data):
    lost = data.draw(st.integers(0, len(contents) - 1))
    shifted = contents[1:] + contents[:1]
    shifted[lost] = b"no file has this content, whatever is drawn"
    rows = [
        (i, Record(digest_of(right, "sha1"), "sha1"), found)
        for i, (right, found) in enumerate(zip(contents, shifted, strict=True))
    ]
    aligned = list(realign(rows))
    assert sorted(row for row, _, _ in aligned) == list(range(len(contents)))
    bad = [row for row, _, state in aligned if state == "digest"]
    assert bad == [(lost + 1) % len(contents)]
    for row, content, state in aligned:
        assert state == "digest" or content == contents[row]


def test_sizes_are_checked_where_no_digest_is_known():
    assert check(Record(size_bytes=3), b"abc") == "fits"
    assert check(Record(size_bytes=4), b"abc") == "size"
    assert check(Record(), b"abc") == "unchecked"
    assert check(Record(digest_of(b"abc", "git"), "git", 99), b"abc") == "fits"


@pytest.mark.parametrize("content", [b"", b"a\n", b"\0\xff" * 50])
def test_digests_are_those_of_git_and_of_wheels(tmp_path: Path, content: bytes):
    done = subprocess.run(
        ["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True
    )
    assert digest_of(content, "git") == done.stdout.decode().strip()
    assert len(digest_of(content, "sha256-base64")) == 43


def test_an_unknown_kind_of_digest_is_named():
    with pytest.raises(CorruptFileError, match="md4"):
        check(Record("00", "md4"), b"")  # type: ignore[arg-type]
