"""The files of a repository as texts: imports before what imports them, some rearranged.

A text begins with the repository's name and goes on file by file, each under its path; where the
next file would go beyond the budget a new text begins. A file that is to be seen n times stands in
the first n editions of the repository, each with cuts of its own for the middle.

Headings are plain text. Where a file begins and ends, and where marks for the middle stand, is in
the document's `meta`, in characters, so that nothing has to be parsed back and every file can be
restored to the letter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fivefold.data.code.config import PackConfig
from fivefold.data.code.fim import Marked, fill_in_middle, restore_text
from fivefold.data.code.imports import PathIndex, dependency_order, imported_paths
from fivefold.data.document import Document, document_id

SOURCE = "code"
"""Source of packed documents."""


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file to be packed."""

    id: str
    path: str
    language: str
    text: str
    copies: int = 1
    licence: str = ""


def order_files(files: Sequence[PackedFile]) -> list[PackedFile]:
    """Return a repository's files, imports first where they can."""
    by_path = {file.path: file for file in files}
    index = PathIndex(by_path)
    imports = {
        path: imported_paths(path, file.text, file.language, index)
        for path, file in by_path.items()
    }
    return [by_path[path] for path in dependency_order(imports)]


def pack_repository(
    repository: str, files: Sequence[PackedFile], config: PackConfig
) -> Iterator[Document]:
    """Yield a repository's texts, edition by edition."""
    ordered = order_files(files)
    for edition in range(max((file.copies for file in files), default=0)):
        pages = _Pages(repository, edition)
        for file in ordered:
            if file.copies > edition:
                marked = fill_in_middle(file.text, f"{file.id}.{edition}", config.fim)
                if pages.size + len(marked.text) > config.max_characters and pages.files:
                    yield pages.finish()
                pages.add(file, marked)
        if pages.files:
            yield pages.finish()


class _Pages:
    """The text being written."""

    def __init__(self, repository: str, edition: int) -> None:
        self._repository, self._edition, self._number = repository, edition, 0
        self._begin()

    def _begin(self) -> None:
        self._parts = [f"<repository> {self._repository}\n"]
        self.size = len(self._parts[0])
        self.files: list[dict] = []
        self._marks: list[tuple[int, str]] = []
        self._licences: list[str] = []

    def _write(self, text: str) -> None:
        self._parts.append(text)
        self.size += len(text)

    def add(self, file: PackedFile, marked: Marked) -> None:
        self._write(f"<file> {file.path}\n")
        begin = self.size
        self._marks += [(begin + place, mark) for place, mark in marked.marks]
        self._write(marked.text)
        facts = {"path": file.path, "language": file.language, "order": marked.order}
        self.files.append({**facts, "begin": begin, "end": self.size})
        self._licences.append(file.licence)
        if not marked.text.endswith("\n"):
            self._write("\n")

    def finish(self) -> Document:
        """Return the text so far and begin the next."""
        sizes: dict[str, int] = {}
        for one in self.files:
            sizes[one["language"]] = sizes.get(one["language"], 0) + one["end"] - one["begin"]
        url = f"{self._repository}#{self._edition}.{self._number}"
        document = Document(
            id=document_id(SOURCE, url),
            text="".join(self._parts),
            source=SOURCE,
            url=url,
            lang=min(sizes, key=lambda name: (-sizes[name], name)),
            meta={
                "repository": self._repository,
                "licences": sorted({one for one in self._licences if one}),
                "files": self.files,
                "marks": [list(mark) for mark in self._marks],
            },
        )
        self._number += 1
        self._begin()
        return document


def unpack(document: Document) -> list[tuple[str, str]]:
    """Return path and text of every file in a packed document, as they were before packing."""
    found = []
    for file in document.meta["files"]:
        begin, end = file["begin"], file["end"]
        marks = tuple(
            (place - begin, mark) for place, mark in document.meta["marks"] if begin <= place < end
        )
        found.append((file["path"], restore_text(Marked(document.text[begin:end], marks))))
    return found
