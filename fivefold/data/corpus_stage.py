"""The corpus stage: pages and repositories in, the document files of a corpus out.

    corpus     train.jsonl.zst, heldout.jsonl.zst, and where asked for long.jsonl.zst
               sources.json, drops.json, tiers.json
               accounts.json and summary.json, by recipe; benchmarks.json

Each recipe of `recipe_table` that the config has runs on what it reads: pages of packages, files or
the fixture text; repositories; or the training documents that the others left, of which long
sequences are made, so that no held-out text comes back in them. Documents are held out after
curation, by the hash of their ids: they went through the same rules.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xxhash

from fivefold.artifact import read_json, remove, write_json
from fivefold.config import Config, hash_config
from fivefold.data.command import Acquired, fixture_inputs, get_data
from fivefold.data.corpus_config import CurateStageConfig, OwnClassifierConfig
from fivefold.data.curate.benchmark_source import PUBLIC, cached_benchmarks
from fivefold.data.curate.config import CurateConfig, EngineConfig, QualityClassifierConfig
from fivefold.data.curate.run import BENCHMARKS_FILE
from fivefold.data.document import Document, document_writer, read_documents
from fivefold.data.mixture import mixed_name
from fivefold.data.source import PYTHON_STDLIB
from fivefold.errors import ConfigError
from fivefold.stage import Stage, StageContext

if TYPE_CHECKING:
    from fivefold.data.curate.account import Account
    from fivefold.data.curate.command import Recipe
    from fivefold.data.curate.dclm_baseline import Curated
    from fivefold.data.pipeline import Corpus

logger = logging.getLogger(__name__)

Reads = Literal["pages", "repositories", "documents"]
"""What a recipe is given: `documents` are the training documents of the corpus."""


def recipe_table() -> dict[str, tuple["Recipe", Reads]]:
    """Return the recipes that a corpus can be made with, by the name of their field."""
    from fivefold.data.code.recipe import GLM5_CODE
    from fivefold.data.curate.command import DCLM_BASELINE
    from fivefold.data.long.recipe import MIDTRAIN_LONG
    from fivefold.data.maths.recipe import GLM5_MATH
    from fivefold.data.web.recipe import GLM5_WEB

    return {
        "dclm_baseline": (DCLM_BASELINE, "pages"),
        "glm5_web": (GLM5_WEB, "pages"),
        "glm5_math": (GLM5_MATH, "pages"),
        "glm5_code": (GLM5_CODE, "repositories"),
        "midtrain_long": (MIDTRAIN_LONG, "documents"),
    }


class CurateStage(Stage):
    """Curates pages and repositories into documents, then splits them; needs nothing."""

    what = "curates documents"
    is_seeded = False
    config: CurateStageConfig

    def __init__(
        self, name: str, config: CurateStageConfig, needs: Mapping[str, str] | None = None
    ) -> None:
        """See `Stage`; what is looked for decides what the corpus is."""
        found = {"public_benchmarks": _public_benchmarks(config)}
        super().__init__(name, config.model_copy(update=found), needs)

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Write the document files, their accounts and the page."""
        from fivefold.data.pipeline import build_corpus

        config, state = self.config, out / "state"
        work = Path(config.work_dir).expanduser() if config.work_dir else state / "curate"
        acquired, shards = _find(config, state, context)
        curated = {
            name: recipe.run(shards[reads], part, work / name, context.track)
            for name, (recipe, reads) in recipe_table().items()
            if (part := _part(config, name)) and shards.get(reads)
        }
        if config.classifier and "dclm_baseline" in curated:
            curated["dclm_baseline"] = _select(
                config, config.classifier, shards["pages"], curated["dclm_baseline"], work, context
            )
        _refuse_nothing(curated, work)
        files = group_by_name([f for one in curated.values() for f in one.documents], state)
        with context.track("split", len(files), "files") as task:
            corpus = build_corpus(files, config, out, lambda name: task.advance(file=name))
        curated |= _make_long(config, corpus, out, work, context)
        benchmarks = _looked_for(curated, work)
        _write(acquired, shards, curated, corpus, benchmarks, out)
        remove(state)
        _tell(curated, corpus, benchmarks, context)


def _public_benchmarks(config: CurateStageConfig) -> tuple[str, ...]:
    """Return the names of the public benchmarks that some recipe finds in the cache."""
    parts = [getattr(config, name) for name in type(config).model_fields]
    rules = [one.benchmarks for one in parts if isinstance(one, EngineConfig)]
    if not any(rule and PUBLIC in rule.benchmarks for rule in rules):
        return ()
    return tuple(cached_benchmarks(config.cache_dir))


def _part(config: CurateStageConfig, name: str) -> Any:
    from fivefold.data.curate.command import in_cache

    part = getattr(config, name)
    assert part is None or isinstance(part, Config), f"`{name}` is no recipe's config"
    return part and in_cache(part, config.cache_dir)


def _find(
    config: CurateStageConfig, state: Path, context: StageContext
) -> tuple[Acquired, dict[Reads, Sequence[Any]]]:
    """Return what was downloaded, and the shards of pages and repositories."""
    from fivefold.data.curate.sample import sample_shards
    from fivefold.data.curate.shard import find_shards

    table, repositories = recipe_table(), list(config.repositories)
    is_fixture = config.profile == "fixture"
    if config.files:
        acquired, pages = Acquired("files", [], []), find_shards(config.files)
    elif is_fixture:
        acquired = Acquired("fixture", fixture_inputs(), [])
        pages = find_shards([entry.path for entry in acquired.inputs])
    else:
        acquired = get_data(config, logger.debug, context.track)
        names = [entry.source.name for entry in acquired.inputs]
        found = find_shards([n for n in names if n != PYTHON_STDLIB], config.cache_dir)
        pages = sample_shards(found, config.max_bytes_per_source, state / "sample")
        own = config.profile_repositories or ([PYTHON_STDLIB] if PYTHON_STDLIB in names else [])
        repositories += own
    find = table["glm5_code"][0].find
    code = find(repositories, config.cache_dir) if config.glm5_code and repositories else []
    return acquired, {"pages": pages, "repositories": code}


def _select(
    config: CurateStageConfig,
    own: OwnClassifierConfig,
    shards: Sequence[Any],
    curated: "Curated",
    work: Path,
    context: StageContext,
) -> "Curated":
    """Train the quality classifier on the distinct pages and keep the best of them."""
    from fivefold.data.curate.classifier import train_classifier

    pages: CurateConfig | None = _part(config, "dclm_baseline")
    assert pages, "checked by the config"
    documents = [one for file in curated.documents for one in read_documents(file)]
    good = [one for one in documents if one.source in own.positive]
    other = [one for one in documents if one.source not in own.positive]
    if not good or not other:
        logger.info("no quality classifier: no pages of %s beside others", list(own.positive))
        return curated
    digest = xxhash.xxh3_64(hash_config(own).encode())
    for one in documents:
        digest.update(one.text.encode())
    model = work / f"classifier-{digest.hexdigest()}"
    if not (model / "classifier.json").is_file():
        with context.track("classifier", 1, "models") as task:
            trained = train_classifier(good, other, model, own.training)
            task.advance()
        logger.info("quality classifier: AUC %.3f on held-out pages", trained.auc)
    wanted = QualityClassifierConfig(model=str(model / "model.bin"), keep_share=own.keep_share)
    selecting = pages.model_copy(update={"classifier": wanted})
    recipe, _ = recipe_table()["dclm_baseline"]
    # What was done before is found by the hashes of its folders: only the last steps run.
    return recipe.run(shards, selecting, work / "dclm_baseline", context.track)


def _refuse_nothing(curated: Mapping[str, "Curated"], work: Path) -> None:
    if any(one.summary.documents for one in curated.values()):
        return
    read = {name: next(iter(one.accounts.values())).documents_in for name, one in curated.items()}
    raise ConfigError(
        expected="a document that passes the recipes of curation",
        found=", ".join(f"{count:,} pages read by {name}" for name, count in read.items())
        + ", all dropped or quarantined"
        if read
        else "no recipe for what was given",
        fix=f"Look at `fivefold data stats {work}/RECIPE`, and loosen a part, for example with "
        "`corpus.dclm_baseline.heuristics=null`",
    )


def group_by_name(documents: Sequence[Path], state: Path) -> list[Path]:
    """Write a file of documents for each source and tier; return them in the order of names."""
    folder = state / "sources"
    remove(folder)
    writers: dict[str, Callable[[Document], None]] = {}
    paths: dict[str, Path] = {}
    with ExitStack() as stack:
        for file in documents:
            for document in read_documents(file):
                name = mixed_name(document)
                if name not in writers:
                    paths[name] = folder / f"{len(writers):05d}.jsonl.zst"
                    writers[name] = stack.enter_context(document_writer(paths[name]))
                writers[name](document)
    return [paths[name] for name in sorted(paths)]


def _make_long(
    config: CurateStageConfig, corpus: "Corpus", out: Path, work: Path, context: StageContext
) -> dict[str, "Curated"]:
    """Run the recipes that read training documents; write `long.jsonl.zst`."""
    from fivefold.data.curate.shard import find_shards

    made: dict[str, Curated] = {}
    for name, (recipe, reads) in recipe_table().items():
        part = _part(config, name)
        if part is None or reads != "documents":
            continue
        sample = out / "state" / "long_sample.jsonl.zst"
        _sample_documents(corpus.train, config.long_bytes, sample)
        made[name] = recipe.run(find_shards([sample]), part, work / name, context.track)
    if made:
        files = [file for one in made.values() for file in one.documents]
        with document_writer(out / "long.jsonl.zst") as write:
            for path in group_by_name(files, out / "state"):
                for document in read_documents(path):
                    write(document)
    return made


def _sample_documents(train: Path, max_bytes: int | None, out: Path) -> None:
    """Write the documents with the smallest hashes, as they come in the file."""
    from fivefold.data.code.fim import marks_of, restore_document

    sizes = sorted(
        (xxhash.xxh3_64_intdigest(document.id.encode(), seed=3), len(document.text.encode()))
        for document in read_documents(train)
    )
    last, taken = -1, 0
    for place, size in sizes:
        if max_bytes is not None and taken >= max_bytes:
            break
        last, taken = place, taken + size
    with document_writer(out) as write:
        for document in read_documents(train):
            if xxhash.xxh3_64_intdigest(document.id.encode(), seed=3) <= last:
                # Long sequences have no marks: their texts are as somebody wrote them.
                write(restore_document(document) if marks_of(document) else document)


def _write(
    acquired: Acquired,
    shards: Mapping[Reads, Sequence[Any]],
    curated: Mapping[str, "Curated"],
    corpus: "Corpus",
    benchmarks: Mapping[str, Any],
    out: Path,
) -> None:
    """Write the accounts and the page."""
    from fivefold.data.corpus_page import corpus_page
    from fivefold.data.curate.page import benchmark_block, corpus_blocks, recipe_blocks
    from fivefold.data.curate.summary import Summary

    sources = _describe(acquired, shards, corpus)
    write_json(out / "sources.json", {"profile": acquired.profile, "sources": sources})
    write_json(out / "drops.json", corpus.ledger.to_json())
    tiers = {name: tier.to_json() for name, tier in corpus.tiers.items()}
    write_json(out / "tiers.json", tiers)
    accounts = {
        name: {step: account.to_json() for step, account in one.accounts.items()}
        for name, one in curated.items()
    }
    write_json(out / "accounts.json", accounts)
    write_json(out / BENCHMARKS_FILE, {"counts": benchmarks["counts"]})
    write_json(out / "summary.json", {n: one.summary.to_json() for n, one in curated.items()})
    whole = Summary()
    for path in (corpus.train, corpus.heldout):
        for document in read_documents(path):
            whole.enter(document.text, document.source, document.lang)
    page = out / "page"
    table = recipe_table()
    for number, (name, one) in enumerate(curated.items()):
        is_chain = table[name][1] != "documents"
        recipe_blocks(page, one.accounts, name, number, is_chain=is_chain)
    corpus_blocks(page, whole, tiers)
    benchmark_block(page, benchmarks)
    corpus_page(page, sources, corpus)


def _looked_for(curated: Mapping[str, "Curated"], work: Path) -> dict[str, Any]:
    """Return what the recipes kept out of the corpus, and what they had no items of."""
    found = [read_json(work / name / BENCHMARKS_FILE) or {} for name in curated]
    counts = {name: n for one in found for name, n in one.get("counts", {}).items()}
    missing = sorted({name for one in found for name in one.get("missing", [])})
    return {"counts": counts, "missing": missing}


def _describe(
    acquired: Acquired, shards: Mapping[Reads, Sequence[Any]], corpus: "Corpus"
) -> list[dict[str, Any]]:
    """Return name, content, licence, origin and size of each source of the corpus."""
    known = {entry.source.name: entry.source for entry in acquired.inputs}
    archives = {archive.source: archive for archive in acquired.archives}
    licences = {shard.source: shard.licence for shard in shards["pages"]}
    langs: dict[str, Counter[str]] = {}
    found: dict[str, set[str]] = {}
    for path in (corpus.train, corpus.heldout):
        for document in read_documents(path):
            langs.setdefault(document.source, Counter())[document.lang] += 1
            named = document.meta.get("licences") or [document.meta.get("licence")]
            found.setdefault(document.source, set()).update(str(one) for one in named if one)
    rows = []
    for name in sorted(corpus.ledger.kept):
        source, archive = known.get(name), archives.get(name)
        licence = licences.get(name) or "; ".join(sorted(found.get(name, ()))) or "not stated"
        rows.append(
            {
                "name": name,
                "what": source.what if source else "curated text",
                "licence": licence,
                "lang": langs[name].most_common(1)[0][0] if name in langs else "",
                "archive": archive.path.name if archive else "",
                "sha256": archive.sha256 if archive else None,
                "documents": corpus.ledger.kept[name],
                "bytes": corpus.ledger.kept_bytes[name],
                "heldout_bytes": corpus.heldout_bytes.get(name, 0),
            }
        )
    return rows


def count_kept(accounts: Mapping[str, "Account"]) -> int:
    """Return how many pages or files came through to the end.

    Their last account is that of the texts which hold them; those after it count other things
    (changes of a history) or the same documents again (each method of long sequences).
    """
    names = list(accounts)
    last = next((name for name in ("pack", "unique") if name in accounts), names[-1])
    return accounts[last].documents_out


def _tell(
    curated: Mapping[str, "Curated"],
    corpus: "Corpus",
    benchmarks: Mapping[str, Any],
    context: StageContext,
) -> None:
    from fivefold.data.curate.show import describe_benchmarks

    documents, size = sum(corpus.ledger.kept.values()), sum(corpus.ledger.kept_bytes.values())
    for name, one in curated.items():
        first = next(iter(one.accounts.values()))
        logger.info(
            "%s: %s of %s pages or files stay, as %s texts of %.1f MB",
            name,
            f"{count_kept(one.accounts):,}",
            f"{first.documents_in:,}",
            f"{one.summary.documents:,}",
            one.summary.characters / 1e6,
        )
        if one.empty:
            logger.warning("%s: %s inputs hold no page", name, f"{len(one.empty):,}")
    for line in describe_benchmarks(benchmarks):
        logger.info("%s", line)
    logger.info(
        "%s documents, %.1f MB of text from %d sources",
        f"{documents:,}",
        size / 1e6,
        len(corpus.ledger.kept),
    )
    read = sum(next(iter(one.accounts.values())).documents_in for one in curated.values())
    context.metrics.write(
        0,
        {"data/raw_pages": read, "data/documents": documents, "data/text_bytes": size},
    )
