"""Texts of a known kind, from which classifiers learn: encyclopaedic entries, help, changelogs.

Names are looked for here, then in the catalogue, then as files. The archives are downloaded at run
time, as those of the catalogue are. Books of entries are read by `entry`.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from fivefold.data.archive import read_members
from fivefold.data.config import CorpusConfig
from fivefold.data.curate.config import ExtractConfig
from fivefold.data.curate.raw_page import read_texts
from fivefold.data.curate.shard import Shard, find_shards
from fivefold.data.document import Document
from fivefold.data.download import Tools, cache_directory, fetch_archive
from fivefold.data.pipeline import cut_long
from fivefold.data.source import Source
from fivefold.data.web.entry import WORDNET, book_documents, wordnet_documents

_SOURCES = (
    Source(
        name=WORDNET,
        kind="debian",
        package="wordnet-base",
        download_bytes=6_500_000,
        licence="WordNet",
        what="nouns and what they mean (WordNet)",
        lang="en",
        members=r"usr/share/wordnet/data\.noun",
        form="text",
    ),
    Source(
        name="foldoc",
        kind="debian",
        package="dict-foldoc",
        download_bytes=2_400_000,
        licence="GFDL-1.1-or-later",
        what="an encyclopaedia of computing (FOLDOC)",
        lang="en",
        members=r"usr/share/dictd/foldoc\.(?:dict\.dz|index)",
        form="text",
    ),
    Source(
        name="elements",
        kind="debian",
        package="dict-elements",
        download_bytes=25_000,
        licence="public domain",
        what="the chemical elements",
        lang="en",
        members=r"usr/share/dictd/elements\.(?:dict\.dz|index)",
        form="text",
    ),
    Source(
        name="debian-faq",
        kind="debian",
        package="debian-faq",
        download_bytes=500_000,
        licence="GPL-2.0-or-later",
        what="questions about Debian, answered",
        lang="en",
        members=r"usr/share/doc/debian/FAQ/(?!index).*\.en\.html",
        form="html",
    ),
    Source(
        name="developers-reference",
        kind="debian",
        package="developers-reference",
        download_bytes=1_100_000,
        licence="GPL-2.0-or-later",
        what="how Debian's developers work",
        lang="en",
        members=r"usr/share/developers-reference/(?!index|developers-reference)[a-z0-9-]*\.html",
        form="html",
    ),
    Source(
        name="fortunes",
        kind="debian",
        package="fortunes",
        download_bytes=850_000,
        licence="see the package's copyright",
        what="sayings and banter",
        lang="en",
        members=r"usr/share/games/fortunes/(?!.*\.)(?!definitions)[a-z-]*",
        form="fortunes",
    ),
    Source(
        name="django-releases",
        kind="pip",
        package="django==5.2.1",
        download_bytes=10_800_000,
        licence="BSD-3-Clause",
        what="release notes of Django",
        lang="en",
        members=r"[Dd]jango-[^/]*/docs/releases/.*\.txt",
        form="text",
    ),
)
REFERENCES = {source.name: source for source in _SOURCES}
"""All references by name."""
_BOOKS = ("foldoc", "elements")
References = dict[str, list[Shard]]
"""Shards by the field of `ReferenceConfig` that names them."""


def find_references(
    names: Sequence[str], cache_dir: str, tools: Tools | None = None
) -> list[Shard]:
    """Return the shards behind names of references or of the catalogue, and paths.

    Raises:
        MissingFileError: neither a path nor a name.
        DownloadError: a package cannot be had.
    """
    tools = tools or Tools()
    shards = []
    for name in names:
        if name in REFERENCES:
            source = REFERENCES[name]
            path = fetch_archive(source, cache_directory(cache_dir), tools).path
            shard = Shard(path, name, path.name, "archive", source.form, source.members)
            shards.append(Shard(**{**vars(shard), "lang": source.lang, "licence": source.licence}))
        else:
            shards += find_shards([name], cache_dir, tools)
    return shards


def read_references(shards: Sequence[Shard], max_characters: int) -> Iterator[Document]:
    """Yield the documents of shards, none longer than `max_characters`.

    Raises:
        CorruptFileError, StorageError: as `read_texts`.
    """
    cut = CorpusConfig(max_document_characters=max_characters)
    # Plain shards go together: what reads their pages is begun once.
    for is_packaged, group in groupby(shards, _is_packaged):
        if not is_packaged:
            yield from cut_long(read_texts(list(group), ExtractConfig()), cut)
            continue
        for shard in group:
            if shard.source == WORDNET:
                for name, content in read_members(shard.path, shard.members):
                    yield from wordnet_documents(content.decode("utf-8", errors="replace"), name)
            else:
                members = dict(read_members(shard.path, shard.members))
                yield from cut_long(book_documents(shard.source, members), cut)


def _is_packaged(shard: Shard) -> bool:
    """Return whether a shard is an archive that is no collection of pages."""
    return shard.kind == "archive" and (shard.source == WORDNET or shard.source in _BOOKS)
