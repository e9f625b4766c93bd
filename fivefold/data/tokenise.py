"""Documents to token files and packs, a source and a batch at a time.

A batch is encoded on the tokenizer library's own threads and written in order; marks for filling in
the middle become special tokens. Training text is kept apart by source and tier, for the mixture;
sequences that curation made for long contexts go into the source `long` alone. The summary goes
into `tokens.json`, from which loaders open everything. The gzip number stands here because it
measures the same held-out bytes: a language model has to beat what a 1992 compressor finds.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from fivefold.artifact import remove, write_json
from fivefold.data.code.fim import encode_marked, marks_of
from fivefold.data.config import LONG, PLANTED, TokensConfig
from fivefold.data.document import Document, read_documents
from fivefold.data.mixture import epochs_of, mixed_name
from fivefold.data.packing import pack_documents, pack_long_pieces, save_pack
from fivefold.data.planted_tokens import PlantedTokens, tokenise_planted
from fivefold.data.token_file import TokenManifest, open_token_file, write_token_file
from fivefold.errors import ConfigError, CorruptFileError
from fivefold.stage import ProgressTask, Track
from fivefold.text.tokenizer import Tokenizer

_BATCH_CHARACTERS = 1_000_000
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class PackFacts:
    """One pack, for the page."""

    split: str
    source: str
    context_tokens: int
    rows: int
    utilisation: float


@dataclass(frozen=True)
class TokensSummary:
    """What a tokens directory holds."""

    manifests: dict[str, list[TokenManifest]]
    """By split."""
    packs: list[PackFacts]
    """Those of `long` and `planted` included."""
    planted: dict[str, PlantedTokens]
    """By split; empty where none were asked for."""
    epochs: dict[str, float]
    """Times that curation wants each training source seen."""
    long: list[TokenManifest] = field(default_factory=list)
    """Sequences made for long contexts; no part of `manifests`."""

    def tokens(self, split: str) -> int:
        """Tokens of a split, without the planted ones."""
        return sum(manifest.tokens for manifest in self.manifests[split])

    def documents(self, split: str) -> int:
        """Documents of a split, without the planted ones."""
        return sum(manifest.documents for manifest in self.manifests[split])


def tokenise_corpus(
    corpus: Path, out: Path, tokenizer: Tokenizer, config: TokensConfig, track: Track
) -> TokensSummary:
    """Tokenise both splits of `corpus` into `out`, pack every context, write `tokens.json`.

    Raises:
        ConfigError: too few long documents or too little text for what the config asks, or a
            source with the name of a derived one.
        CorruptFileError: a document file is damaged.
        StorageError: the disk is full.
    """
    manifests: dict[str, list[TokenManifest]] = {}
    epochs: dict[str, float] = {}
    packs: list[PackFacts] = []
    planted: dict[str, PlantedTokens] = {}
    for split in SPLITS:
        remove(out / split)
        path = corpus / f"{split}.jsonl.zst"
        with track(f"tokenise {split}", _count_documents(path), "documents") as task:
            name_of = mixed_name if split == "train" else _source_of
            manifests[split] = _tokenise_file(
                path, out / split, tokenizer, task, name_of, epochs if split == "train" else {}
            )
        for manifest in manifests[split]:
            packs += _pack_source(out / split, manifest, split, config)
        if config.planted.contexts:
            planted[split] = tokenise_planted(path, out / split, config.planted, tokenizer, track)
            packs += [
                PackFacts(split, PLANTED, context, pack.rows, round(pack.utilisation, 5))
                for context, pack in planted[split].packs.items()
            ]
    made = _tokenise_long(corpus / "long.jsonl.zst", out / "train", tokenizer, config, track)
    taken = {manifest.source for manifest in manifests["train"]}
    _refuse_clash(sorted(taken & {manifest.source for manifest in made}))
    long_members = {}
    for context in config.long_contexts:
        facts = _pack_long(out / "train", [*manifests["train"], *made], context, config)
        packs += facts
        names = [fact.source.removesuffix(f".{LONG}") for fact in facts]
        long_members[str(context)] = {"train": names}
    summary = TokensSummary(manifests, packs, planted, epochs, made)
    write_json(
        out / "tokens.json",
        {
            "sources": {split: [m.source for m in manifests[split]] for split in SPLITS},
            "epochs": epochs,
            "tokens": {split: summary.tokens(split) for split in SPLITS},
            "contexts": list(config.contexts),
            "long": long_members,
            "planted": {
                str(context): {split: [PLANTED] for split in SPLITS}
                for context in config.planted.contexts
            },
            "pack": config.pack,
            "mixture": config.mixture.model_dump(mode="json"),
            "tokenizer_hash": tokenizer.content_hash,
            "vocab_size": tokenizer.vocab_size,
            "pad_id": tokenizer.pad_id,
            "packs": [asdict(pack) for pack in packs],
        },
    )
    return summary


def _count_documents(path: Path) -> int:
    return sum(1 for _ in read_documents(path))


def _source_of(document: Document) -> str:
    return document.source


def _tokenise_long(
    path: Path, out: Path, tokenizer: Tokenizer, config: TokensConfig, track: Track
) -> list[TokenManifest]:
    """Write a token file for each way in which long sequences were made, where there are any."""
    if not path.is_file() or not config.long_contexts:
        return []
    with track("tokenise long", _count_documents(path), "documents") as task:
        return _tokenise_file(path, out, tokenizer, task, _source_of, {})


def _tokenise_file(
    path: Path,
    out: Path,
    tokenizer: Tokenizer,
    task: ProgressTask,
    name_of: Callable[[Document], str],
    epochs: dict[str, float],
) -> list[TokenManifest]:
    """Write a token file for each name; a document file holds its names one after the other.

    `epochs` receives each name's epochs, the mean over its characters.
    """
    manifests: list[TokenManifest] = []
    for name, documents in groupby(read_documents(path), key=name_of):
        if any(manifest.source == name for manifest in manifests):
            raise CorruptFileError(
                expected=f"the documents of each source and tier together in `{path}`",
                found=f"`{name}` in two places",
                fix="Make the corpus again: run the recipe with `--fresh`",
            )
        _refuse_clash([name] if name == PLANTED else [])
        seen: list[tuple[int, float]] = []
        manifests.append(
            write_token_file(
                out / name,
                _framed(_noted(documents, seen), tokenizer, task),
                vocab_size=tokenizer.vocab_size,
                tokenizer_hash=tokenizer.content_hash,
                source=name,
            )
        )
        characters = sum(size for size, _ in seen)
        epochs[name] = sum(size * one for size, one in seen) / max(1, characters)
    return sorted(manifests, key=lambda manifest: manifest.source)


def _refuse_clash(names: Sequence[str]) -> None:
    if names:
        raise ConfigError(
            expected="no source of the corpus with the name of a derived one",
            found=", ".join(names),
            fix="Rename the file that it comes from",
        )


def _noted(documents: Iterable[Document], seen: list[tuple[int, float]]) -> Iterator[Document]:
    for document in documents:
        seen.append((len(document.text), epochs_of(document)))
        yield document


def _framed(
    documents: Iterator[Document], tokenizer: Tokenizer, task: ProgressTask
) -> Iterator[list[int]]:
    for batch in _batches(documents):
        marks = [marks_of(document) for document in batch]
        plain = tokenizer.encode_batch(
            [document.text for document, some in zip(batch, marks, strict=True) if not some]
        )
        unmarked = iter(plain)
        for document, some in zip(batch, marks, strict=True):
            ids = encode_marked(tokenizer, document.text, some) if some else next(unmarked)
            yield tokenizer.frame_document(ids)
        task.advance(len(batch))


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _pack_source(
    out: Path, manifest: TokenManifest, split: str, config: TokensConfig
) -> list[PackFacts]:
    lengths: np.ndarray = open_token_file(out / manifest.source).lengths
    facts = []
    for context_tokens in config.contexts:
        pack = pack_documents(lengths, context_tokens, config.pack)
        save_pack(out / f"{manifest.source}.{context_tokens}.npz", pack, manifest.sha256)
        facts.append(
            PackFacts(split, manifest.source, context_tokens, pack.rows, round(pack.utilisation, 5))
        )
    return facts


def _pack_long(
    out: Path, manifests: Sequence[TokenManifest], context_tokens: int, config: TokensConfig
) -> list[PackFacts]:
    """Write the long pieces' pack of each source that has some.

    Raises:
        ConfigError: no source has one.
    """
    smallest = config.long_share * context_tokens
    facts = []
    longest = 0
    for manifest in manifests:
        lengths = open_token_file(out / manifest.source).lengths
        longest = max(longest, int(lengths.max(initial=0)))
        pack = pack_long_pieces(lengths, context_tokens, smallest)
        if pack.rows:
            name = f"{manifest.source}.{LONG}"
            save_pack(out / f"{name}.{context_tokens}.npz", pack, manifest.sha256)
            utilisation = round(pack.utilisation, 5)
            facts.append(PackFacts("train", name, context_tokens, pack.rows, utilisation))
    if not facts:
        raise ConfigError(
            expected=f"a document of at least {math.ceil(smallest):,} tokens, "
            f"{config.long_share:g} of the context {context_tokens:,}, for the source `{LONG}`",
            found=f"none; the longest has {longest:,} tokens",
            fix="Add longer documents or raise `corpus.max_document_characters`; or take "
            f"{context_tokens} out of `tokens.long_contexts`, or lower `tokens.long_share`",
        )
    return facts


def gzip_bits_per_byte(path: Path) -> tuple[float, int]:
    """Return bits a byte of `gzip -9` over a file's concatenated texts, and the bytes of text."""
    text = b"".join(document.text.encode() for document in read_documents(path))
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    compressed = len(compressor.compress(text)) + len(compressor.flush())
    return (8 * compressed / len(text) if text else 0.0), len(text)
