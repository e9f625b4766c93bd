"""Reads a source as documents: out of an archive, a directory tree or a user's own file.

Every way ends in the same stream of documents in an order that does not depend on the file system.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from fivefold.data.archive import read_members
from fivefold.data.document import Document, document_id, read_documents
from fivefold.data.extract import Form, clean_text, extract_texts
from fivefold.data.source import Source
from fivefold.errors import ConfigError, MissingFileError, StorageError

_FORMS: dict[str, Form] = {".txt": "text", ".md": "text", ".html": "html", ".htm": "html"}
_ROWS = (".jsonl", ".jsonl.zst")
_READABLE = ", ".join([*_FORMS, *_ROWS])


@dataclass(frozen=True)
class Input:
    """A source and the place on this machine where its text lies."""

    source: Source
    path: Path
    """The archive, directory or file."""


def read_input(source_input: Input) -> Iterator[Document]:
    """Yield the documents of one source.

    Raises:
        CorruptFileError: a damaged archive or document file.
        StorageError: a file that cannot be read.
    """
    source, path = source_input.source, source_input.path
    if source.kind in ("debian", "pip"):
        for url, content in read_members(path, source.members):
            yield from _documents(source, source.form, url, content)
    elif path.is_dir():
        for file in _hashed_files(path, source.members):
            yield from _read_file(source, file, file.relative_to(path).as_posix())
    else:
        yield from _read_file(source, path, path.name)


def _read_file(source: Source, path: Path, url: str) -> Iterator[Document]:
    if path.name.endswith(_ROWS):
        for document in read_documents(path, source.name):
            text = clean_text(document.text)
            yield Document(
                document.id, text, source.name, document.url, document.lang, document.meta
            )
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(
            expected=f"to be able to read `{path}`",
            found=str(error.strerror),
            fix="Correct the file's permissions, or leave it out of `corpus.files`",
        ) from error
    yield from _documents(source, _FORMS.get(path.suffix, source.form), url, content)


def _documents(source: Source, form: Form, url: str, content: bytes) -> Iterator[Document]:
    texts = extract_texts(content, form)
    for number, text in enumerate(texts):
        address = f"{url}#{number}" if len(texts) > 1 else url
        text = re.sub(source.furniture, "", text) if source.furniture else text
        yield Document(
            id=document_id(source.name, address),
            text=text,
            source=source.name,
            url=address,
            lang=source.lang,
            meta={"licence": source.licence},
        )


def _hashed_files(root: Path, members: str) -> list[Path]:
    """Return the files below `root` whose relative path matches, ordered by its hash."""
    wanted = re.compile(members)
    names = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and wanted.fullmatch(path.relative_to(root).as_posix())
    ]
    names.sort(key=lambda name: (xxhash.xxh3_64_intdigest(name.encode()), name))
    return [root / name for name in names]


def directory_input(name: str, path: Path, licence: str, what: str) -> Input:
    """Return the input for every readable file below a directory."""
    source = Source(
        name=name,
        kind="directory",
        package=str(path),
        download_bytes=0,
        licence=licence,
        what=what,
        lang="",
        members=r".*\.(?:txt|md|html?|jsonl|jsonl\.zst)",
        form="text",
    )
    return Input(source, path)


def user_inputs(files: tuple[str, ...], licence: str = "the user's own") -> list[Input]:
    """Return the inputs for files and directories, each a source of its own.

    Raises:
        MissingFileError: a path that does not exist.
        ConfigError: a file of a kind that cannot be read, or a directory without readable files.
    """
    inputs: list[Input] = []
    taken: set[str] = set()
    for given in files:
        path = Path(given).expanduser()
        if not path.exists():
            raise MissingFileError(
                expected=f"a file or directory at `{given}`",
                found="nothing",
                fix="Correct `corpus.files`; relative paths start where the command runs",
            )
        name = _unused_name(path, taken)
        whole = directory_input(name, path, licence, path.name)
        if path.is_dir() and not _hashed_files(path, whole.source.members):
            raise ConfigError(
                expected=f"files that end in {_READABLE} below `{given}`",
                found="none",
                fix="Choose another directory",
            )
        if path.is_file() and not path.name.endswith((*_FORMS, *_ROWS)):
            raise ConfigError(
                expected=f"a file that ends in {_READABLE}",
                found=f"`{given}`",
                fix="Convert it to plain text or to JSON lines with a field `text`",
            )
        inputs.append(whole)
    return inputs


def _unused_name(path: Path, taken: set[str]) -> str:
    """Return a source name from a path: letters, digits and `-`, unique among `taken`."""
    stem = re.sub(r"[^a-z0-9]+", "-", path.name.split(".")[0].lower()).strip("-") or "text"
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name
