"""Repository packs: the files of one repository, what is used before what uses it.

Files are ordered so that a file comes after those that it imports, by the rule of DeepSeek-Coder
(arXiv:2401.14196, section 2.2): again and again the file with the fewest imports that have not been
placed; ties, and circles, go by path. An import is a line that begins like one in any of the usual
languages and names another file's stem, which is enough to order files and takes no parser.

Files come in through a protocol, so that whatever knows repositories can give them.

Its dependencies: each file on each earlier file that it imports.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol

from fivefold.data.document import Document
from fivefold.data.long.config import LongConfig
from fivefold.data.long.gap import Statistics
from fivefold.data.long.library import Library
from fivefold.data.long.made import Made, Unit, joinable, make_sequence
from fivefold.data.long.measure import Ruler

_IMPORT = re.compile(
    r"^[ \t]*(?:from|import|use|using|require|include|#[ \t]*include|mod)\b.*$|"
    r"^.*\brequire(?:_relative)?[ \t]*\(?[ \t]*['\"].*$",
    re.MULTILINE,
)
_NAME = re.compile(r"\w+")
_LANGUAGES = """c c++ cpp csharp go java javascript julia kotlin lua perl php python r ruby rust
scala shell swift typescript"""
_INDEX_NAMES = frozenset(("__init__", "index", "mod", "lib"))


class CodeFile(Protocol):
    """A file of a repository."""

    @property
    def repository(self) -> str:
        """Name of the repository, with its version where there are several."""
        ...

    @property
    def path(self) -> str:
        """Path inside it, with slashes."""
        ...

    @property
    def text(self) -> str:
        """Its content."""
        ...


class LibraryFile(NamedTuple):
    """A document of the library as a file."""

    repository: str
    path: str
    text: str
    place: int


def read_file(document: Document, place: int) -> LibraryFile | None:
    """Return a document as a file; None if it is no code.

    Repository and path are those of `meta`; without them the source and the first directory of its
    address stand for a repository.
    """
    if document.lang.lower() not in _LANGUAGES.split():
        return None
    repository, path = document.meta.get("repository"), document.meta.get("path")
    if repository and path:
        return LibraryFile(str(repository), str(path), document.text, place)
    path = document.url or document.id
    top = path.split("/", 1)[0] if "/" in path else ""
    return LibraryFile(f"{document.source}/{top}".rstrip("/"), path, document.text, place)


def imported_files(files: Sequence[CodeFile]) -> list[set[int]]:
    """Return for each file the numbers of the others that it imports."""
    named: dict[str, set[int]] = defaultdict(set)
    for number, file in enumerate(files):
        path = PurePosixPath(file.path)
        stem = path.name.split(".")[0]
        named[path.parent.name if stem in _INDEX_NAMES else stem].add(number)
    imports = []
    for number, file in enumerate(files):
        names = {name for line in _IMPORT.findall(file.text) for name in _NAME.findall(line)}
        found = {other for name in names & named.keys() for other in named[name]}
        imports.append(found - {number})
    return imports


def order_files(files: Sequence[CodeFile]) -> list[int]:
    """Return the numbers of the files in their order, see the module."""
    imports = imported_files(files)
    left = set(range(len(files)))
    order: list[int] = []
    while left:
        chosen = min(left, key=lambda n: (len(imports[n] & left), files[n].path, n))
        order.append(chosen)
        left.remove(chosen)
    return order


class Repository:
    """Packs the code of the library."""

    name = "repository"

    def __init__(self, library: Library, config: LongConfig, ruler: Ruler) -> None:
        """Take the library, and the sizes of the recipe."""
        assert config.repository
        self._library = library
        self._config = config.repository
        self._ruler = ruler
        self._room = ruler.room(config.context_tokens)
        self._min_tokens = config.min_fill * self._room
        self.statistics = Statistics()

    @cached_property
    def _groups(self) -> list[list[int]]:
        """Files by repository, and every other document alone."""
        groups: dict[str, list[int]] = defaultdict(list)
        for place, document in enumerate(self._library.documents):
            file = read_file(document, place)
            groups[f"file {file.repository}" if file else f"text {place}"].append(place)
        return [groups[name] for name in sorted(groups)]

    def units(self, rank: int, world_size: int) -> Iterator[Unit]:
        """See `Method`."""
        for places in self._groups[rank::world_size]:
            yield Unit(tuple(self._library.documents[k] for k in places), tuple(places))

    def make(self, unit: Unit) -> list[Made]:
        """See `Method`."""
        pairs = zip(unit.documents, unit.places, strict=True)
        files = [file for one, place in pairs if (file := read_file(one, place))]
        if not files:
            return [Made(one, "repository.no_code") for one in unit.documents]
        outcomes: dict[int, Made] = {}
        fitting: list[LibraryFile] = []
        for file in files:
            if self._ruler.size(_framed(file)) > self._config.max_file_share * self._room:
                outcomes[file.place] = Made(
                    self._library.documents[file.place], "repository.long_file"
                )
            else:
                fitting.append(file)
        for pack in self._packs(fitting):
            outcomes.update(self._settle(pack))
        return [outcomes[place] for place in unit.places]

    def _packs(self, files: list[LibraryFile]) -> Iterator[list[LibraryFile]]:
        """Cut the order of files wherever the context is full."""
        pack: list[LibraryFile] = []
        used = 0
        for number in order_files(files):
            size = self._ruler.size(_framed(files[number]))
            if pack and used + size > self._room:
                yield pack
                pack, used = [], 0
            pack.append(files[number])
            used += size
        if pack:
            yield pack

    def _settle(self, pack: list[LibraryFile]) -> dict[int, Made]:
        documents = self._library.documents
        texts = [_framed(file) for file in pack]
        sizes = self._ruler.sizes(texts).tolist()
        reason = ""
        if len(pack) < self._config.min_files:
            reason = "repository.few_files"
        elif sum(sizes) < self._min_tokens:
            reason = "repository.short"
        if reason:
            return {file.place: Made(documents[file.place], reason) for file in pack}
        self._count(pack, sizes)
        root = documents[pack[0].place]
        meta = {"repository": pack[0].repository, "files": [file.path for file in pack]}
        name = "+".join(documents[file.place].id for file in pack)
        sequence = make_sequence(self.name, name, "".join(texts), root.lang, meta)
        first, *others = pack
        return {
            first.place: Made(root, sequence=sequence),
            **{file.place: Made(documents[file.place]) for file in others},
        }

    def _count(self, pack: list[LibraryFile], sizes: list[int]) -> None:
        begins = [sum(sizes[:k]) for k in range(len(sizes))]
        self.statistics.enter_sequence(sum(sizes))
        resolved = total = 0
        for number, used in enumerate(imported_files(pack)):
            total += len(used)
            for other in sorted(used):
                if other < number:
                    resolved += 1
                    self.statistics.enter_dependency(begins[other], begins[number], sum(sizes))
        self.statistics.enter_value("imports that stand before their use", resolved, total)
        self.statistics.enter_value("files in a sequence", len(pack))


def _framed(file: CodeFile) -> str:
    return f"# file: {file.path}\n{joinable(file.text)}\n"
