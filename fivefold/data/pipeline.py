"""From curated documents to a corpus: cut, de-duplicate, split, write.

What a recipe of curation kept comes in, a file for each source and tier. Documents stream through;
what is kept in memory is a fingerprint and a size for each. They are staged once on disk because
two decisions need the whole corpus: which of several equal texts stays (recipes do not see each
other's documents), and which documents are held out. Both are functions of hashes, so the result
does not depend on the order of reading. The rules that judge a text stand in `curate`, `code` and
`long`; held-out texts went through the same ones as those trained on.

Surprise: a text of a repository passes whole, however long, for its marks and files are places in
it; and one that is held out gets its middles back, since nobody asks for bits per byte of
rearranged text.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fivefold.artifact import remove
from fivefold.data.code.fim import marks_of, restore_document
from fivefold.data.config import CorpusConfig
from fivefold.data.dedup import duplicate_ids, text_fingerprint
from fivefold.data.document import Document, document_id, document_writer, read_documents
from fivefold.data.extract import cut_text
from fivefold.data.ledger import Ledger
from fivefold.data.mixture import epochs_of
from fivefold.data.split import Part, choose_heldout
from fivefold.errors import ConfigError


@dataclass(frozen=True)
class Staged:
    """What the whole-corpus decisions know of a staged document."""

    part: Part
    fingerprint: bytes


@dataclass
class Tier:
    """Training text of one tier of quality."""

    documents: int = 0
    bytes: int = 0
    seen_bytes: float = 0.0
    """Bytes times the epochs that curation gave."""

    def to_json(self) -> dict[str, Any]:
        """Return documents, bytes, and epochs as the mean over bytes."""
        epochs = round(self.seen_bytes / max(1, self.bytes), 6)
        return {"documents": self.documents, "bytes": self.bytes, "epochs": epochs}


@dataclass(frozen=True)
class Corpus:
    """A finished corpus: two files of documents and their accounts."""

    train: Path
    heldout: Path
    ledger: Ledger
    heldout_bytes: dict[str, int]
    """UTF-8 bytes held out, by source."""
    character_counts: list[int]
    """Characters of each kept document."""
    tiers: dict[str, Tier] = field(default_factory=dict)
    """Training text by the tier in its `meta`; text without one is in none."""


def build_corpus(
    files: Sequence[Path],
    config: CorpusConfig,
    out: Path,
    advance: Callable[[str], None] = lambda name: None,
) -> Corpus:
    """Write `train.jsonl.zst` and `heldout.jsonl.zst` into `out`.

    Each of `files` holds documents of one source and tier. `advance` is told the name of each file
    that has been read.

    Raises:
        ConfigError: no document is left.
        CorruptFileError, StorageError: an input cannot be read, or the disk is full.
    """
    ledger = Ledger()
    staging = out / "staging.jsonl.zst"
    staged = stage_documents(_all_files(files, config, ledger, advance), staging, ledger)
    dropped = duplicate_ids({name: facts.fingerprint for name, facts in staged.items()})
    kept = {name: facts for name, facts in staged.items() if name not in dropped}
    if not kept:
        raise ConfigError(
            expected="a corpus with at least one document",
            found=f"{sum(ledger.read.values())} documents read, none kept",
            fix="Give other files, or loosen the recipe of curation",
        )
    heldout = choose_heldout(
        {name: facts.part for name, facts in kept.items()},
        config.heldout_bytes,
        config.heldout_share,
        config.heldout_seed,
    )
    corpus = write_split(staging, out, kept, heldout, ledger)
    remove(staging)
    ledger.check()
    return corpus


def _all_files(
    files: Sequence[Path],
    config: CorpusConfig,
    ledger: Ledger,
    advance: Callable[[str], None],
) -> Iterator[Document]:
    for file in files:
        yield from count_read(cut_long(read_documents(file), config), ledger)
        advance(file.name)


def cut_long(documents: Iterable[Document], config: CorpusConfig) -> Iterator[Document]:
    """Cut documents beyond `max_document_characters` at blank lines; each part is a document.

    Its `meta` says of what it is a part: `part_of` (the id of the whole text) and `part`. Texts of
    repositories pass whole.
    """
    for document in documents:
        if len(document.text) <= config.max_document_characters or _repository(document):
            yield document
            continue
        for number, part in enumerate(cut_text(document.text, config.max_document_characters)):
            url = f"{document.url}#part{number}"
            yield replace(
                document,
                id=document_id(document.source, url),
                url=url,
                text=part,
                meta={**document.meta, "part_of": document.id, "part": number},
            )


def _repository(document: Document) -> str:
    """Return the repository that a text is made of; empty for any other text."""
    repository = document.meta.get("repository")
    return repository if isinstance(repository, str) else ""


def count_read(documents: Iterable[Document], ledger: Ledger) -> Iterator[Document]:
    """Enter each document into the accounts."""
    for document in documents:
        ledger.read[document.source] += 1
        yield document


def stage_documents(
    documents: Iterable[Document], staging: Path, ledger: Ledger
) -> dict[str, Staged]:
    """Write the documents to `staging` and return what is known of each, by id."""
    staged: dict[str, Staged] = {}
    with document_writer(staging) as write:
        for document in documents:
            if document.id in staged:
                ledger.drop(document, "repeated id")
                continue
            write(document)
            staged[document.id] = Staged(_part(document), text_fingerprint(document.text))
    return staged


def _part(document: Document) -> Part:
    """Describe a document to the split; `meta` may be the user's, with anything in it."""
    size = len(document.text.encode())
    repository = _repository(document)
    if repository:
        return Part(document.source, size, repository, None)
    text_id, number = document.meta.get("part_of"), document.meta.get("part")
    return Part(
        document.source,
        size,
        text_id if isinstance(text_id, str) else document.id,
        number if isinstance(number, int) else 0,
    )


def write_split(
    staging: Path, out: Path, kept: dict[str, Staged], heldout: set[str], ledger: Ledger
) -> Corpus:
    """Send each staged document to training, to validation, or to the drops."""
    train_path, heldout_path = out / "train.jsonl.zst", out / "heldout.jsonl.zst"
    heldout_bytes: dict[str, int] = {}
    character_counts = []
    tiers: defaultdict[str, Tier] = defaultdict(Tier)
    with document_writer(train_path) as to_train, document_writer(heldout_path) as to_heldout:
        for document in read_documents(staging):
            facts = kept.get(document.id)
            if facts is None:
                ledger.drop(document, "duplicate")
                continue
            if document.id in heldout and marks_of(document):
                document = restore_document(document)
            size = len(document.text.encode())
            ledger.keep(document, size)
            character_counts.append(len(document.text))
            if document.id in heldout:
                to_heldout(document)
                heldout_bytes[document.source] = heldout_bytes.get(document.source, 0) + size
                continue
            to_train(document)
            tier = document.meta.get("tier")
            if isinstance(tier, str):
                tiers[tier].documents += 1
                tiers[tier].bytes += size
                tiers[tier].seen_bytes += size * epochs_of(document)
    return Corpus(
        train_path,
        heldout_path,
        ledger,
        heldout_bytes,
        character_counts,
        dict(sorted(tiers.items())),
    )
