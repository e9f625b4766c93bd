import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.token_file import TokenManifest, open_token_file, write_token_file
from fivefold.errors import CorruptFileError, MissingFileError

DOCUMENTS = [[1, 2, 3], [65_499], [], [7, 8]]


def write(path: Path, documents=DOCUMENTS, vocab_size: int = 65_500) -> TokenManifest:
    return write_token_file(
        path, documents, vocab_size=vocab_size, tokenizer_hash="abc", source="books"
    )


def decode_index(content: bytes) -> dict:
    """Decode Megatron's index field by field, by its published layout."""
    fields: dict[str, object] = {"magic": content[:9]}
    fields["version"] = struct.unpack("<Q", content[9:17])[0]
    fields["code"] = struct.unpack("<B", content[17:18])[0]
    sequences = struct.unpack("<Q", content[18:26])[0]
    marks = struct.unpack("<Q", content[26:34])[0]
    begin = 34
    for name, count, letter, size in (
        ("lengths", sequences, "i", 4),
        ("pointers", sequences, "q", 8),
        ("documents", marks, "q", 8),
    ):
        end = begin + count * size
        fields[name] = list(struct.unpack(f"<{count}{letter}", content[begin:end]))
        begin = end
    fields["rest"] = content[begin:]
    return fields


@pytest.mark.parametrize(
    ("vocab_size", "code", "letter", "size"), [(65_499, 8, "H", 2), (65_500, 4, "i", 4)]
)
def test_bytes_follow_the_megatron_layout(vocab_size, code, letter, size, tmp_path: Path):
    documents = [[1, 2, 3], [vocab_size - 1], [], [7, 8]]
    write(tmp_path / "x", documents, vocab_size)
    assert decode_index((tmp_path / "x.idx").read_bytes()) == {
        "magic": b"MMIDIDX\0\0",
        "version": 1,
        "code": code,
        "lengths": [3, 1, 0, 2],
        "pointers": [0, 3 * size, 4 * size, 4 * size],
        "documents": [0, 1, 2, 3, 4],
        "rest": b"",
    }
    expected = struct.pack(f"<6{letter}", 1, 2, 3, vocab_size - 1, 7, 8)
    assert (tmp_path / "x.bin").read_bytes() == expected


@given(
    documents=st.lists(st.lists(st.integers(0, 999), max_size=20), max_size=12),
    vocab_size=st.sampled_from([1000, 100_000]),
)
def test_documents_read_back_equal(documents, vocab_size, tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / "x"
    manifest = write(path, documents, vocab_size)
    tokens = open_token_file(path, verify=True)
    assert [tokens.document(n).tolist() for n in range(len(documents))] == documents
    assert tokens.lengths.tolist() == [len(ids) for ids in documents]
    assert tokens.manifest == manifest
    assert manifest.sha256 == hashlib.sha256(path.with_suffix(".bin").read_bytes()).hexdigest()


def test_index_with_several_sequences_a_document_opens(tmp_path: Path):
    write(tmp_path / "x", [[1, 2], [3], [4, 5, 6]])
    index = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 4, 3, 3)
    index += np.array([2, 1, 3], "<i4").tobytes() + np.array([0, 8, 12], "<i8").tobytes()
    (tmp_path / "x.idx").write_bytes(index + np.array([0, 2, 3], "<i8").tobytes())
    tokens = open_token_file(tmp_path / "x")
    assert [tokens.document(n).tolist() for n in range(2)] == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_any_truncation_is_reported(suffix: str, tmp_path: Path):
    write(tmp_path / "x")
    path = tmp_path / f"x{suffix}"
    whole = path.read_bytes()
    # The manifest's last byte is a line break, which JSON does not need.
    for kept in range(len(whole) - (suffix == ".json")):
        path.write_bytes(whole[:kept])
        with pytest.raises(CorruptFileError):
            open_token_file(tmp_path / "x")


def test_altered_ids_are_reported_on_request(tmp_path: Path):
    write(tmp_path / "x")
    content = bytearray((tmp_path / "x.bin").read_bytes())
    content[0] ^= 1
    (tmp_path / "x.bin").write_bytes(content)
    open_token_file(tmp_path / "x")
    with pytest.raises(CorruptFileError, match="sha256"):
        open_token_file(tmp_path / "x", verify=True)


def test_altered_offsets_are_reported(tmp_path: Path):
    write(tmp_path / "x")
    content = bytearray((tmp_path / "x.idx").read_bytes())
    content[34 + 4 * 4 + 8] ^= 1
    (tmp_path / "x.idx").write_bytes(content)
    with pytest.raises(CorruptFileError, match="offsets"):
        open_token_file(tmp_path / "x")


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_missing_part_is_named(suffix: str, tmp_path: Path):
    write(tmp_path / "x")
    (tmp_path / f"x{suffix}").unlink()
    with pytest.raises(MissingFileError, match=rf"x\{suffix}"):
        open_token_file(tmp_path / "x")


def test_manifest_is_missing_when_writing_stops(tmp_path: Path):
    def failing():
        yield [1, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x", failing())
    assert list(tmp_path.iterdir()) == []


def test_manifest_counts_what_was_written(tmp_path: Path):
    write(tmp_path / "x")
    manifest = json.loads((tmp_path / "x.json").read_text())
    assert (manifest["tokens"], manifest["documents"]) == (6, 4)
    assert (manifest["tokenizer_hash"], manifest["source"]) == ("abc", "books")
