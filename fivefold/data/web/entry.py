"""Entries of dictionaries and encyclopaedias to documents as long as pages are.

WordNet's names (nouns that are an instance of something: people, places, events, works) become
`NAME: GLOSS`, twelve of one field to a document; what a common noun means is no knowledge of the
world, and a classifier that learns from glosses rescues pages that define a function. Books of the
DICT server (RFC 2229's `dictd`: a text, and an index of headword, offset and length in base 64)
become prose, each entry with its headword, several to a document, in the order of the book.

Surprise: FOLDOC ends each entry with the day of its last change, which says nothing about its
subject; with it, a year alone would mark an encyclopaedia.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence

from fivefold.data.document import Document, document_id
from fivefold.errors import CorruptFileError

WORDNET = "wordnet"
_ENTRIES = 12
_GLOSS_LINE = re.compile(r"^\d{8} (\d\d) n ([0-9a-f]{2}) (.*?) \| (.*?)\s*$")
_INSTANCE = " @i "
"""The pointer from a name to what it is one of."""
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_LAST_CHANGE = re.compile(r"\s*\(\d{4}-\d\d-\d\d\)\s*\Z")
_SUBJECT = re.compile(r"\A\s*<[^<>\n]*(?:\n[^<>\n]*)?>\s*")
_MIN_BODY_CHARACTERS = 80
"""An entry below this is a pointer to another one."""
_DOCUMENT_CHARACTERS = 1_500


def wordnet_documents(text: str, url: str) -> Iterator[Document]:
    """Yield the names in a data file of WordNet's nouns, twelve of one field to a document."""
    field, entries, number = "", [], 0
    for line in text.split("\n"):
        found = _GLOSS_LINE.match(line)
        if found is None or _INSTANCE not in found[3]:
            continue
        if entries and (found[1] != field or len(entries) == _ENTRIES):
            yield _to_document(WORDNET, "\n".join(entries), url, number)
            entries, number = [], number + 1
        field = found[1]
        words = found[3].split(" ")[: 2 * int(found[2], 16) : 2]
        entries.append(f"{', '.join(word.replace('_', ' ') for word in words)}: {found[4]}.")
    if entries:
        yield _to_document(WORDNET, "\n".join(entries), url, number)


def book_documents(source: str, members: Mapping[str, bytes]) -> Iterator[Document]:
    """Yield the entries of a book of the DICT server, given its text and its index by name.

    Raises:
        CorruptFileError: one of them is missing, or the text cannot be decompressed.
    """
    try:
        (index,) = (one for name, one in members.items() if name.endswith(".index"))
        ((url, packed),) = (item for item in members.items() if item[0].endswith(".dict.dz"))
        text, places = gzip.decompress(packed), _places(index.decode("utf-8", "replace"))
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise CorruptFileError(
            expected=f"the text `.dict.dz` and the index of `{source}` in its package",
            found=f"{', '.join(sorted(members)) or 'neither'} ({error})",
            fix="Delete the package from the cache; the next run downloads it again",
        ) from error
    entries, size, number = [], 0, 0
    for begin, length in places:
        entry = _prose(text[begin : begin + length].decode("utf-8", "replace"))
        if len(entry) < _MIN_BODY_CHARACTERS:
            continue
        entries.append(entry)
        size += len(entry)
        if size >= _DOCUMENT_CHARACTERS:
            yield _to_document(source, "\n\n".join(entries), url, number)
            entries, size, number = [], 0, number + 1
    if entries:
        yield _to_document(source, "\n\n".join(entries), url, number)


def _places(index: str) -> Sequence[tuple[int, int]]:
    """Return offset and length of every entry once, in order; the book's own notes are left out."""
    rows = (line.split("\t") for line in index.split("\n"))
    return sorted(
        {
            (_number(row[1]), _number(row[2]))
            for row in rows
            if len(row) == 3 and not row[0].startswith(("00-database", "00database"))
        }
    )


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = 64 * value + _DIGITS.index(digit)
    return value


def _prose(entry: str) -> str:
    """Return an entry as its headword and paragraphs, without the book's own marks."""
    head, _, body = entry.partition("\n")
    body = _SUBJECT.sub("", _LAST_CHANGE.sub("", body)).replace("{", "").replace("}", "")
    paragraphs = (" ".join(one.split()) for one in re.split(r"\n[ \t]*\n", body))
    return "\n".join([f"{head.strip()}.", *filter(None, paragraphs)])


def _to_document(source: str, text: str, url: str, number: int) -> Document:
    address = f"{url}#{number}"
    return Document(document_id(source, address), text, source, address, "en")
