"""Repository packs: what is used comes first."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from long_builder import make_document, make_library

from fivefold.data.document import Document
from fivefold.data.long.config import LongConfig, RepositoryConfig
from fivefold.data.long.measure import Ruler
from fivefold.data.long.repository import (
    LibraryFile,
    Repository,
    imported_files,
    order_files,
    read_file,
)

CHARACTERS = Ruler(None, 4.0)


def file(path: str, text: str, repository: str = "r") -> LibraryFile:
    return LibraryFile(repository, path, text, 0)


def test_imports_of_several_languages_are_found():
    files = [
        file("src/alpha.py", "from pkg.beta import x\nimport gamma as g\n# delta is no import\n"),
        file("pkg/beta.py", "value = 1\n"),
        file("gamma/__init__.py", "def f(): ...\n"),
        file("delta.js", "const a = require('./alpha')\n"),
        file("main.c", '#include "util.h"\n'),
        file("util.h", "int f(void);\n"),
        file("lib.rs", "mod parser;\nuse parser::parse;\n"),
        file("parser.rs", "pub fn parse() {}\n"),
    ]
    assert imported_files(files) == [{1, 2}, set(), set(), {0}, {5}, set(), {7}, set()]


@given(st.integers(1, 12), st.data())
@settings(max_examples=60)
def test_files_without_circles_come_after_what_they_import(count: int, data: st.DataObject):
    names = data.draw(st.permutations([f"m{number:02d}" for number in range(count)]))
    # A file may import those that come before it in `names`: no circle.
    uses = [
        data.draw(st.sets(st.sampled_from(names[:k]), max_size=3)) if k else set()
        for k in range(count)
    ]
    files = [
        file(f"{name}.py", "".join(f"import {other}\n" for other in sorted(used)))
        for name, used in zip(names, uses, strict=True)
    ]
    order = order_files(files)
    assert sorted(order) == list(range(count))
    place = {names[number]: k for k, number in enumerate(order)}
    for name, used in zip(names, uses, strict=True):
        assert all(place[other] < place[name] for other in used)


def test_a_circle_is_broken_by_path():
    files = [file("b.py", "import a\n"), file("a.py", "import b\n"), file("c.py", "")]
    assert [files[k].path for k in order_files(files)] == ["c.py", "a.py", "b.py"]


def test_packs_hold_whole_files_of_one_repository(tmp_path: Path):
    body = "x = 1\n" * 40
    documents = [
        Document(
            f"{number:032d}",
            f"import m{number - 1}\n{body}",
            "s",
            f"p{number % 2}/m{number}.py",
            "python",
        )
        for number in range(12)
    ]
    documents.append(make_document("words " * 100, "page"))
    documents.append(Document("f" * 32, body * 20, "s", "p0/huge.py", "python"))
    documents.append(Document("e" * 32, body, "s", "p2/only.py", "python"))
    library = make_library(tmp_path, documents, CHARACTERS)
    config = LongConfig(context_tokens=256, min_fill=0.4, repository=RepositoryConfig())
    method = Repository(library, config, CHARACTERS)
    made = [one for task in range(2) for unit in method.units(task, 2) for one in method.make(unit)]
    reasons = {one.document.url: one.reason for one in made}
    assert len(made) == len(library.documents)
    assert reasons["page"] == "repository.no_code"
    assert reasons["p0/huge.py"] == "repository.long_file"
    assert reasons["p2/only.py"] == "repository.few_files"
    texts = {one.url: one.text for one in documents}
    packed = []
    for one in made:
        if one.sequence:
            files = one.sequence.meta["files"]
            assert len({name.split("/")[0] for name in files}) == 1
            assert CHARACTERS.size(one.sequence.text) <= CHARACTERS.room(256)
            assert all(texts[name] in one.sequence.text for name in files)
            packed += files
    assert sorted(packed) == sorted(url for url, reason in reasons.items() if not reason)
    assert len(packed) == 12


def test_declared_repository_and_path_win():
    meta = {"repository": "org/name", "path": "src/a.py"}
    document = Document("0" * 32, "x", "s", "elsewhere/b.py", "Python", meta)
    assert read_file(document, 3) == LibraryFile("org/name", "src/a.py", "x", 3)
    assert read_file(make_document("x", "a.html"), 0) is None
