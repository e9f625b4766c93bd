from pathlib import Path

import pytest

from fivefold.data.reader import Input, read_input, user_inputs
from fivefold.data.source import CATALOGUE
from fivefold.errors import ConfigError, MissingFileError, StorageError


def test_every_kind_of_own_file_is_read(tmp_path: Path):
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.md").write_text("# marked")
    (tmp_path / "c.html").write_text("<html><body><main><p>A page with a sentence.</p></main>")
    (tmp_path / "d.jsonl").write_text('{"text": "row", "id": "7", "meta": {"k": 1}}\n')
    (tmp_path / "e.bin").write_text("not text")
    (entry,) = user_inputs((str(tmp_path),))
    documents = {document.url: document for document in read_input(entry)}
    assert {url: document.text for url, document in documents.items()} == {
        "a.txt": "plain",
        "b.md": "# marked",
        "c.html": "A page with a sentence.",
        "d.jsonl#1": "row",
    }
    assert documents["d.jsonl#1"].id == "7"
    assert documents["d.jsonl#1"].meta == {"k": 1}
    assert {document.source for document in documents.values()} == {entry.source.name}


def test_source_names_are_safe_and_different(tmp_path: Path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "My Text (1).txt").write_text("x")
    paths = tuple(str(tmp_path / folder / "My Text (1).txt") for folder in ("one", "two"))
    assert [entry.source.name for entry in user_inputs(paths)] == ["my-text-1", "my-text-1-2"]


def test_missing_unknown_and_empty_paths_are_named(tmp_path: Path):
    with pytest.raises(MissingFileError, match=r"nowhere\.txt"):
        user_inputs((str(tmp_path / "nowhere.txt"),))
    (tmp_path / "x.pdf").write_text("x")
    with pytest.raises(ConfigError, match=r"x\.pdf"):
        user_inputs((str(tmp_path / "x.pdf"),))
    with pytest.raises(ConfigError, match="none"):
        user_inputs((str(tmp_path),))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_unreadable_file_is_named(tmp_path: Path):
    # Reading a process's memory from address 0 fails for root, too.
    (tmp_path / "dark.txt").symlink_to("/proc/self/mem")
    (entry,) = user_inputs((str(tmp_path / "dark.txt"),))
    with pytest.raises(StorageError, match=r"dark\.txt"):
        list(read_input(entry))


def test_archive_members_lose_their_furniture_and_carry_the_licence(make_deb):
    source = CATALOGUE["sqlite-doc"]
    page = (
        "<html><body><div>Small. Fast. Reliable.<br>Choose any three.</div>"
        "<p>The rowid is the key of a table that has no other key.</p></body></html>"
    )
    archive = make_deb(
        {
            "./usr/share/doc/sqlite3/rowid.html": page.encode(),
            "./usr/share/doc/sqlite3/sitemap.html": b"<p>left out</p>",
            "./usr/share/doc/other/rowid.html": b"<p>left out</p>",
        }
    )
    (document,) = read_input(Input(source, archive))
    assert document.text == "The rowid is the key of a table that has no other key."
    assert document.url == "usr/share/doc/sqlite3/rowid.html"
    assert (document.lang, document.meta["licence"]) == ("en", "public domain")
