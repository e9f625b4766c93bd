"""GLM-5's web pipeline: DCLM's pages, a second classifier of quality, rescued facts, tiers.

GLM-5 (section 2.2): a classifier on sentence embeddings adds pages that DCLM's own misses, and one
for world knowledge keeps pages of medium and low quality that state facts. GLM-4.5 (section 2.2):
pages by tiers of quality, the best seen 3.2 times, the lowest left out.

After the stages of `dclm_baseline` up to `decontaminate`: `learn_quality` and `score` (fastText),
`label` (marks for world knowledge), `learn` and `assess` (vectors, of a sample where there are more
documents than can be embedded), `tier` (all scores at once) and `select`. What a config names is
not learned. Scores lie in side files, so that other tiers ask no model again. The result depends on
documents and configs alone, not on files, tasks or workers.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fivefold.artifact import read_json, write_json
from fivefold.data.curate.dclm_baseline import (
    Curated,
    curate_pages,
    digest_file,
    digest_shards,
    page_parts,
)
from fivefold.data.curate.run import CurationRun, name_folders, remove_results, write_results
from fivefold.data.curate.shard import Shard
from fivefold.data.web.classifier import digest_classifier
from fivefold.data.web.config import Kind, ReferenceConfig, WebConfig
from fivefold.data.web.reference import References, find_references
from fivefold.stage import Track


def run_glm5_web(
    shards: Sequence[Shard], config: WebConfig, out: Path, track: Track | None = None
) -> Curated:
    """Curate `shards` into `out`; what lies there from before is used again.

    Writes `accounts.json`, `summary.json`, `tiers.json` (documents, bytes and epochs by tier) and
    `plan.json` into `out`, and documents with `tier` and `epochs` in their `meta` into the last
    stage's folder.

    Raises:
        MissingFileError: an input, a list or a model does not exist.
        DownloadError: a reference cannot be had.
        CorruptFileError: an input is cut or altered.
        ConfigError: too few documents to learn from.
        ScoringError: who labels failed too often.
        QuarantineError: steps failed on too many documents.
    """
    from fivefold.data.curate.summary import read_summary

    remove_results(out)
    references = find_needed(config)
    run = CurationRun(web_stage_folders(shards, references, config, out), config, track)
    documents = curate_pages(run, shards, config)
    _score_quality(run, documents, references, config)
    _score_vectors(run, documents, references, config)
    documents = _select(run, documents, config)
    summary = read_summary(run.folders["select"] / "summary", len(documents))
    write_results(out, run.accounts, summary)
    run.check_accounts()
    plan = read_json(run.folders["tier"] / "plan.json")
    assert plan, "the stage `tier` wrote it"
    kept = sum(tier["documents"] for tier in plan["tiers"].values())
    assert kept == summary.documents, f"{kept} in tiers, {summary.documents} written"
    write_json(out / "tiers.json", plan["tiers"])
    shutil.copyfile(run.folders["tier"] / "plan.json", out / "plan.json")
    return Curated(documents, run.accounts, summary, run.empty_shards("extract"))


def find_needed(config: WebConfig) -> References:
    """Return the references that the classifiers to be learned need, by field of their config.

    Raises:
        MissingFileError: neither a path nor a name.
        DownloadError: a package cannot be had.
    """
    needed = set()
    if config.classifier is None:
        needed |= {"quality"}
    if config.embedding and not config.embedding.model:
        needed |= {"quality", "knowledge"}
    if config.knowledge and not config.knowledge.model:
        needed |= {"knowledge", "plain"}
    return {
        name: find_references(getattr(config.reference, name), config.cache_dir)
        for name in ReferenceConfig.model_fields
        if name in needed
    }


def _score_quality(
    run: CurationRun, documents: list[Path], references: References, config: WebConfig
) -> None:
    """Score every document by fastText, with models that are given or learned."""
    from fivefold.data.curate.classify_step import ScoreDocuments
    from fivefold.data.web.learn_step import LearnQuality
    from fivefold.data.web.score_step import ScoreQuality

    folder, seconds = run.folders["score"], config.page_seconds
    if config.classifier:
        step = ScoreDocuments(documents, config.classifier, folder, seconds)
    else:
        models = run.folders["learn_quality"]
        run.execute("learn_quality", [LearnQuality(documents, references, config, models)], 1)
        step = ScoreQuality(documents, models, folder, seconds)
    run.execute_scores("score", [step], len(documents))


def _score_vectors(
    run: CurationRun, documents: list[Path], references: References, config: WebConfig
) -> None:
    """Score the documents that are embedded."""
    from fivefold.data.web.label_step import LabelKnowledge
    from fivefold.data.web.learn_step import LearnClassifiers
    from fivefold.data.web.score_step import ScoreVectors

    folders = run.folders
    models: dict[Kind, str] = {}
    if config.embedding:
        models["embedding"] = config.embedding.model or str(folders["learn"] / "embedding")
    if config.knowledge:
        own = folders["learn"] / "world_knowledge"
        models["world_knowledge"] = config.knowledge.model or str(own)
    if any(Path(place).is_relative_to(folders["learn"]) for place in models.values()):
        labels = folders["label"]
        if config.knowledge and not config.knowledge.model:
            labeller = LabelKnowledge(documents, folders["score"], config, labels)
            run.execute("label", [labeller], len(documents))
            _check_marks(run, documents, config.knowledge.label.max_failed)
        learner = LearnClassifiers(
            documents, folders["score"], labels, references, config, folders["learn"]
        )
        run.execute("learn", [learner], 1)
    scorer = ScoreVectors(
        documents,
        folders["score"],
        models,
        config.most_embedded,
        folders["assess"],
        config.page_seconds,
    )
    run.execute_scores("assess", [scorer], len(documents))


def _check_marks(run: CurationRun, documents: list[Path], max_failed: float) -> None:
    from fivefold.data.maths.score_step import ScoringError
    from fivefold.data.web.label_step import read_marks

    try:
        read_marks(documents, run.folders["label"], max_failed)
    except ScoringError:
        run.forget("label")
        raise


def _select(run: CurationRun, documents: list[Path], config: WebConfig) -> list[Path]:
    """Decide about all documents, apply it; return the files that are left."""
    from fivefold.data.curate.extract_step import WriteTask
    from fivefold.data.curate.summary import Summarise
    from fivefold.data.web.tier_step import AssignTiers, ReadTiered, SelectTiers

    folders, folder = run.folders, run.folders["select"]
    assign = AssignTiers(documents, folders["score"], folders["assess"], config, folders["tier"])
    run.execute_scores("tier", [assign], 1)
    select = SelectTiers(folder / "accounts", config.page_seconds)
    steps = [
        ReadTiered(documents, folders["tier"]),
        select,
        Summarise(folder / "summary"),
        WriteTask(folder / "documents"),
    ]
    run.execute("select", steps, len(documents))
    run.enter("select", [select.name], len(documents))
    return sorted((folder / "documents").glob("*.jsonl.zst"))


def web_stage_folders(
    shards: Sequence[Shard], references: References, config: WebConfig, out: Path
) -> dict[str, Path]:
    """Return each stage's folder, named by what its content depends on.

    Raises:
        MissingFileError: an input, a list or a model does not exist.
    """
    digests = {name: digest_shards(found, 0) for name, found in references.items()}
    reference = [config.reference.max_characters, digests]
    model = config.classifier
    embedding, knowledge = config.embedding, config.knowledge
    given = [digest_classifier(one.model) if one else None for one in (embedding, knowledge)]
    is_learned = [one is not None and not one.model for one in (embedding, knowledge)]
    quantiles = digest_file(config.quantiles)
    parts = {
        **page_parts(config),
        "learn_quality": [config.training, config.head.max_documents, reference],
        "score": [model and (model.label, digest_file(model.model))],
        "label": [knowledge and knowledge.label, config.most_embedded, quantiles],
        "learn": [config.embed, config.head, reference, is_learned],
        "assess": [given, embedding is None, knowledge is None],
        "tier": [embedding, knowledge, [tier.model_dump() for tier in config.tiers], quantiles],
        "select": [],
    }
    folders = name_folders(digest_shards(shards, config.tasks), parts, out)
    return folders | name_folders([], {"benchmarks": parts["decontaminate"]}, out)
