"""Curation as a stage: raw pages in, the two document files of a corpus out.

The output has the form of `CorpusStage`'s (`train.jsonl.zst`, `heldout.jsonl.zst`, `sources.json`,
`drops.json`), so that tokenizer and tokens are made from it as from any corpus; `accounts.json`
and `summary.json` come on top. Held-out texts go through the same recipe as those trained on.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.artifact import remove, write_json
from fivefold.data.config import CorpusConfig
from fivefold.data.curate.config import CurateStageConfig
from fivefold.data.document import Document, document_writer, read_documents
from fivefold.errors import ConfigError
from fivefold.stage import Stage, StageContext

if TYPE_CHECKING:
    from fivefold.data.curate.dclm_baseline import Curated
    from fivefold.data.curate.shard import Shard
    from fivefold.data.pipeline import Corpus
    from fivefold.data.reader import Input

logger = logging.getLogger(__name__)


class CurateStage(Stage):
    """Curates web pages into documents, then splits them; needs nothing."""

    what = "curates documents"
    is_seeded = False
    config: CurateStageConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Write the two document files, their accounts and the page."""
        from fivefold.data.curate.dclm_baseline import run_dclm_baseline
        from fivefold.data.curate.page import curation_page
        from fivefold.data.curate.shard import find_shards
        from fivefold.data.page import corpus_page
        from fivefold.data.pipeline import build_corpus

        config, state = self.config, out / "state"
        shards = find_shards(config.sources, config.cache_dir)
        work = Path(config.work_dir).expanduser() if config.work_dir else state / "curate"
        curated = run_dclm_baseline(shards, config.curate, work, context.track)
        if not curated.summary.documents:
            first = next(iter(curated.accounts.values()))
            raise ConfigError(
                expected=f"a document that passes the recipe `{config.recipe}`",
                found=f"{first.documents_in:,} pages read, all dropped or quarantined",
                fix=f"Look at `fivefold data stats {work}`, and loosen `curate`",
            )
        entries = group_by_source(curated.documents, shards, state / "sources")
        corpus = build_corpus(entries, _split_config(config), out)
        write_json(out / "sources.json", _describe(entries, corpus, config))
        write_json(out / "drops.json", corpus.ledger.to_json())
        accounts = {name: account.to_json() for name, account in curated.accounts.items()}
        write_json(out / "accounts.json", accounts)
        write_json(out / "summary.json", curated.summary.to_json())
        curation_page(out / "page", curated.accounts, curated.summary)
        corpus_page(out / "page", entries, corpus)
        remove(state)
        _tell(curated, corpus, context)


def _split_config(config: CurateStageConfig) -> CorpusConfig:
    return CorpusConfig(
        min_document_bytes=1,
        max_document_characters=config.max_document_characters,
        heldout_bytes=config.heldout_bytes,
        heldout_share=config.heldout_share,
        heldout_seed=config.heldout_seed,
    )


def group_by_source(
    documents: Sequence[Path], shards: Sequence["Shard"], folder: Path
) -> list["Input"]:
    """Write a file of documents for each source, and return what the corpus reads them from."""
    from fivefold.data.reader import Input
    from fivefold.data.source import Source

    remove(folder)
    writers: dict[str, Callable[[Document], None]] = {}
    langs: dict[str, Counter[str]] = {}
    with ExitStack() as stack:
        for file in documents:
            for document in read_documents(file):
                name = document.source
                if name not in writers:
                    path = folder / f"{len(writers):05d}.jsonl.zst"
                    writers[name] = stack.enter_context(document_writer(path))
                    langs[name] = Counter()
                writers[name](document)
                langs[name][document.lang] += 1
    licences = {shard.source: shard.licence for shard in shards}
    entries = []
    for number, name in enumerate(writers):
        source = Source(
            name=name,
            kind="directory",
            package="",
            download_bytes=0,
            licence=licences.get(name) or "not stated",
            what="curated pages",
            lang=langs[name].most_common(1)[0][0],
            members="",
            form="text",
        )
        entries.append(Input(source, folder / f"{number:05d}.jsonl.zst"))
    return sorted(entries, key=lambda entry: entry.source.name)


def _describe(entries: Sequence["Input"], corpus: "Corpus", config: CurateStageConfig) -> dict:
    return {
        "profile": config.recipe,
        "sources": [
            {
                "name": entry.source.name,
                "what": entry.source.what,
                "licence": entry.source.licence,
                "lang": entry.source.lang,
                "archive": "",
                "sha256": None,
                "documents": corpus.ledger.kept[entry.source.name],
                "bytes": corpus.ledger.kept_bytes[entry.source.name],
                "heldout_bytes": corpus.heldout_bytes.get(entry.source.name, 0),
            }
            for entry in entries
        ],
    }


def _tell(curated: "Curated", corpus: "Corpus", context: StageContext) -> None:
    first = next(iter(curated.accounts.values()))
    documents, size = sum(corpus.ledger.kept.values()), sum(corpus.ledger.kept_bytes.values())
    logger.info(
        "%s of %s pages stay: %s documents, %.1f MB of text",
        f"{curated.summary.documents:,}",
        f"{first.documents_in:,}",
        f"{documents:,}",
        size / 1e6,
    )
    if curated.empty:
        logger.warning("%s input files hold no page", f"{len(curated.empty):,}")
    context.metrics.write(
        0,
        {
            "data/raw_pages": first.documents_in,
            "data/documents": documents,
            "data/text_bytes": size,
        },
    )
