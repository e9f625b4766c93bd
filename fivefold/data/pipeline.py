"""The corpus as a list of steps: read, extract, filter, de-duplicate, split, write.

Documents stream through; what is kept in memory is a fingerprint and a size for each. They are
staged once on disk because two decisions need the whole corpus: which of several equal texts
stays, and which documents are held out. Both are functions of hashes, so the result does not
depend on the order of reading. The full curation recipe (language, heuristics, quality and
knowledge classifiers, MinHash) takes its place between `long_enough` and `stage_documents`, as
further steps of the same shape.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fivefold.artifact import remove
from fivefold.data.config import CorpusConfig
from fivefold.data.dedup import duplicate_ids, text_fingerprint
from fivefold.data.document import Document, document_id, document_writer, read_documents
from fivefold.data.extract import cut_text
from fivefold.data.ledger import Ledger
from fivefold.data.reader import Input, read_input
from fivefold.data.split import Part, choose_heldout
from fivefold.errors import ConfigError

_UNREADABLE_SHARE = 0.01
"""Share of U+FFFD from which on a text counts as wrongly decoded."""


@dataclass(frozen=True)
class Staged:
    """What the whole-corpus decisions know of a staged document."""

    part: Part
    fingerprint: bytes


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


def build_corpus(
    inputs: Sequence[Input],
    config: CorpusConfig,
    out: Path,
    advance: Callable[[str], None] = lambda name: None,
) -> Corpus:
    """Write `train.jsonl.zst` and `heldout.jsonl.zst` into `out`.

    `advance` is told the name of each source that has been read.

    Raises:
        ConfigError: no document is left.
        CorruptFileError, StorageError: an input cannot be read, or the disk is full.
    """
    ledger = Ledger()
    staging = out / "staging.jsonl.zst"
    staged = stage_documents(_all_sources(inputs, config, ledger, advance), staging, ledger)
    dropped = duplicate_ids({name: facts.fingerprint for name, facts in staged.items()})
    kept = {name: facts for name, facts in staged.items() if name not in dropped}
    if not kept:
        raise ConfigError(
            expected="a corpus with at least one document",
            found=f"{sum(ledger.read.values())} documents read, none kept",
            fix="Lower `corpus.min_document_bytes`, or give other files",
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


def _all_sources(
    inputs: Sequence[Input],
    config: CorpusConfig,
    ledger: Ledger,
    advance: Callable[[str], None],
) -> Iterator[Document]:
    for source_input in inputs:
        documents = count_read(cut_long(read_input(source_input), config), ledger)
        documents = readable(documents, ledger)
        documents = long_enough(documents, config, ledger)
        yield from until_full(documents, config, ledger)
        advance(source_input.source.name)


def cut_long(documents: Iterable[Document], config: CorpusConfig) -> Iterator[Document]:
    """Cut documents beyond `max_document_characters` at blank lines; each part is a document.

    Its `meta` says of what it is a part: `part_of` (the id of the whole text) and `part`.
    """
    for document in documents:
        if len(document.text) <= config.max_document_characters:
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


def count_read(documents: Iterable[Document], ledger: Ledger) -> Iterator[Document]:
    """Enter each document into the accounts."""
    for document in documents:
        ledger.read[document.source] += 1
        yield document


def readable(documents: Iterable[Document], ledger: Ledger) -> Iterator[Document]:
    """Drop texts that came out of a wrong character set."""
    for document in documents:
        if document.text.count("\ufffd") > _UNREADABLE_SHARE * len(document.text):
            ledger.drop(document, "undecodable")
        else:
            yield document


def long_enough(
    documents: Iterable[Document], config: CorpusConfig, ledger: Ledger
) -> Iterator[Document]:
    """Drop texts below `min_document_bytes`."""
    for document in documents:
        if len(document.text.encode()) < config.min_document_bytes:
            ledger.drop(document, "too short")
        else:
            yield document


def until_full(
    documents: Iterable[Document], config: CorpusConfig, ledger: Ledger
) -> Iterator[Document]:
    """Stop reading a source once its documents hold `max_bytes_per_source`."""
    taken = 0
    for document in documents:
        yield document
        taken += len(document.text.encode())
        if config.max_bytes_per_source is not None and taken >= config.max_bytes_per_source:
            ledger.full.add(document.source)
            return


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
    text_id, number = document.meta.get("part_of"), document.meta.get("part")
    return Part(
        document.source,
        len(document.text.encode()),
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
    with document_writer(train_path) as to_train, document_writer(heldout_path) as to_heldout:
        for document in read_documents(staging):
            facts = kept.get(document.id)
            if facts is None:
                ledger.drop(document, "duplicate")
                continue
            ledger.keep(document, facts.part.size_bytes)
            character_counts.append(len(document.text))
            if document.id in heldout:
                to_heldout(document)
                before = heldout_bytes.get(document.source, 0)
                heldout_bytes[document.source] = before + facts.part.size_bytes
            else:
                to_train(document)
    return Corpus(train_path, heldout_path, ledger, heldout_bytes, character_counts)
