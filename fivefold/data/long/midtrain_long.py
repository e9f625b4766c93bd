"""The recipe of long documents for mid-training, from files of any kind to sequences and accounts.

`extract` reads, cleans and, where there is a list of benchmarks, takes their items out: before
documents are cut, so that one item costs one document and not every sequence that it went into.
`library` (one task) drops copies, cuts and embeds; `score` measures
long documents where there is a model; then every method has a stage of its own over the whole
library: `natural`, `nextlong`, `entropylong`, `interleave`, `repository` and `mrcr`. The accounts
are a chain (`extract`, `benchmarks`, `unique`) and a fan of methods, each of which accounts for
every document of the library; `mrcr` for every conversation that was asked for.

Folders are named by a hash of what their content depends on, as in `dclm_baseline`: a relaunch
redoes only tasks that did not finish, another config only what is downstream, and the workers never
change the result.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from fivefold.artifact import atomic_write, digest_directory, remove, write_json
from fivefold.config import hash_config
from fivefold.data.curate.benchmark_items import decontamination_parts
from fivefold.data.curate.dclm_baseline import Curated, digest_file
from fivefold.data.curate.run import CurationRun, name_folders, remove_results, write_results
from fivefold.data.curate.shard import Shard
from fivefold.data.long.config import LongConfig
from fivefold.data.long.entropylong import CEILING
from fivefold.data.long.gap import Statistics, read_statistics
from fivefold.data.long.made import WITH_MODEL
from fivefold.errors import MissingFileError
from fivefold.stage import Track

if TYPE_CHECKING:
    from fivefold.data.curate.summary import Summary

logger = logging.getLogger(__name__)

METHODS = ("natural", "nextlong", "entropylong", "interleave", "repository", "mrcr")


def run_midtrain_long(
    shards: Sequence[Shard], config: LongConfig, out: Path, track: Track | None = None
) -> Curated:
    """Make long sequences of `shards` in `out`; what lies there from before is used again.

    Writes `accounts.json`, `summary.json`, `statistics.json`, `conversations.jsonl` and a block for
    the report into `out`, and documents into each method's folder.

    Raises:
        MissingFileError: an input, a tokenizer or a model does not exist.
        ConfigError: a model that cannot be opened, or whose context is too short.
        QuarantineError: a method failed on too many documents.
    """
    remove_results(out)
    run = _Run(long_stage_folders(shards, config, out), config, track)
    run.prepare(shards)
    for method in run.methods:
        run.synthesise(method)
    summary = run.summary()
    write_results(out, run.accounts, summary)
    run.check()
    documents = [
        file
        for method in run.methods
        for file in sorted((run.folders[method] / "documents").glob("*.jsonl.zst"))
    ]
    write_json(out / "statistics.json", {n: one.to_json() for n, one in run.statistics.items()})
    if "mrcr" in run.methods:
        _join_conversations(run.folders["mrcr"] / "conversations", out / "conversations.jsonl")
    _write_page(out / "page", run.statistics)
    for method, statistics in run.statistics.items():
        logger.info("%s: %s", method, statistics.describe())
    run.warn_of_weak_model()
    return Curated(documents, run.accounts, summary, run.empty_shards("extract"))


class _Run(CurationRun):
    """The stages one after the other, and the accounts that they leave."""

    def __init__(self, folders: dict[str, Path], config: LongConfig, track: Track | None) -> None:
        super().__init__(folders, config, track)
        self.config = config
        self.statistics: dict[str, Statistics] = {}
        self.methods = [name for name in METHODS if getattr(config, name) is not None]
        if not config.model.checkpoint:
            without = [name for name in self.methods if name in WITH_MODEL]
            self.methods = [name for name in self.methods if name not in WITH_MODEL]
            without += ["the perplexity of natural documents"] if config.natural else []
            if without:
                logger.warning("no `model`, and so without %s", " and ".join(without))
        if not (config.tokenizer or config.model.checkpoint):
            logger.warning(
                "no `tokenizer`: a token is counted as %g characters", config.characters_per_token
            )

    def prepare(self, shards: Sequence[Shard]) -> None:
        """Read the documents, build the library, score long documents."""
        from fivefold.data.curate.dedup_step import WriteSorted
        from fivefold.data.curate.extract_step import ExtractText, ReadShards
        from fivefold.data.long.step import BuildLibrary, ScoreLong

        self.index_benchmarks()
        config, folder = self.config, self.folders["extract"]
        seconds = config.page_seconds
        extract = ExtractText(config.extract, folder / "accounts", seconds)
        judges = [extract, *self.benchmark_steps("extract")]
        reader = ReadShards(shards, config.extract, folder / "reading", seconds)
        self.execute("extract", [reader, *judges, WriteSorted(folder / "documents")])
        self.enter("extract", [judge.name for judge in judges])
        library = self.folders["library"]
        builder = BuildLibrary(folder / "documents", config.tasks, config, library)
        self.execute("library", [builder], 1)
        self.enter("library", ["unique"], 1)
        if self._is_scored:
            scorer = ScoreLong(library, config, self.folders["score"])
            self.execute_scores("score", [scorer], config.tasks)

    @property
    def _is_scored(self) -> bool:
        return bool(self.config.natural and self.config.model.checkpoint)

    def synthesise(self, method: str) -> None:
        """Run one method's stage."""
        from fivefold.data.long.step import Synthesise

        folder = self.folders[method]
        scores = self.folders["score"] if method == "natural" and self._is_scored else None
        step = Synthesise(method, self.folders["library"], self.config, scores, folder)
        self.execute(method, [step])
        self.enter(method, [method])
        self.statistics[method] = read_statistics(folder / "statistics", self.config.tasks)

    def check(self) -> None:
        """Assert that every method accounts for every document, and that few failed."""
        before = self.accounts.keys() - set(self.methods)
        for method in self.methods:
            others = set(self.methods) - {method}
            self.check_accounts(others | before if method == "mrcr" else others)

    def forget(self, stage: str) -> None:
        """See `CurationRun`; `natural` alone reads scores, and nothing a method's work."""
        read_by = {"score": ("score", "natural"), **{name: (name,) for name in METHODS}}
        if stage not in read_by:
            super().forget(stage)
        for name in read_by.get(stage, ()):
            remove(self.folders[name])

    def warn_of_weak_model(self) -> None:
        """Say so where the model does not even make use of a copy of what it is asked."""
        own, found = self.config.entropylong, self.statistics.get("entropylong")
        if own and found and CEILING in found.means and found.mean(CEILING) < own.min_gain:
            logger.warning(
                "entropylong: a verbatim copy of what is asked lowers the entropy by %.1f%%, and "
                "`entropylong.min_gain` asks for %.0f%%: this model is too weak to verify with; "
                "nextlong needs none",
                100 * max(0.0, found.mean(CEILING)),
                100 * own.min_gain,
            )

    def summary(self) -> "Summary":
        """Return what all sequences are."""
        from fivefold.data.curate.summary import Summary, read_summary

        whole = Summary()
        for method in self.methods:
            folder = self.folders[method] / "summary"
            whole.add(read_summary(folder, self.config.tasks).to_json())
        return whole


def long_stage_folders(shards: Sequence[Shard], config: LongConfig, out: Path) -> dict[str, Path]:
    """Return each stage's folder, named by what its content depends on.

    Raises:
        MissingFileError: an input, a benchmark, a tokenizer or a model does not exist.
    """
    files = [{**vars(shard), "path": digest_file(str(shard.path))} for shard in shards]
    benchmarks = decontamination_parts(config.benchmarks)
    extract = _hash([config.tasks, hash_config(config.extract), benchmarks, files])
    model = [_digest_model(config.model.checkpoint), config.model.factory]
    ruler = [_digest_tokenizer(config.tokenizer or config.model.checkpoint)]
    ruler.append(str(config.characters_per_token))
    library = _hash([extract, hash_config(config.index), ruler])
    score = _hash([library, config.natural and hash_config(config.natural), model])
    folders = {"extract": extract, "library": library, "score": score}
    shape = [config.context_tokens, config.min_fill, config.seed]
    for method in METHODS:
        own = getattr(config, method)
        parts = [library, shape, own and hash_config(own)]
        parts += [score] if method == "natural" else [model] if method in WITH_MODEL else []
        folders[method] = _hash(parts)
    own_folders = {name: out / f"{name}-{value[:16]}" for name, value in folders.items()}
    return own_folders | name_folders([], {"benchmarks": benchmarks}, out)


def _hash(parts: list) -> str:
    text = json.dumps(parts, sort_keys=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def _digest_model(checkpoint: str) -> str:
    if not checkpoint:
        return ""
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        raise MissingFileError(
            expected=f"the directory of a model at `{checkpoint}`",
            found="nothing",
            fix="Correct `model.checkpoint`",
        )
    return digest_directory(folder)


def _digest_tokenizer(directory: str) -> str:
    return digest_file(str(Path(directory) / "tokenizer.json")) if directory else ""


def _join_conversations(folder: Path, path: Path) -> None:
    with atomic_write(path) as partial, partial.open("wb") as whole:
        for file in sorted(folder.glob("*.jsonl")):
            whole.write(file.read_bytes())


def _write_page(folder: Path, statistics: dict[str, Statistics]) -> None:
    from fivefold.data.page import write_block

    columns = ["method", "sequences", "M tokens", "dependencies", "mean gap", "early", "late"]
    rows = []
    for name, one in statistics.items():
        count = max(1, one.dependencies)
        early = sum(one.depths[tenth] for tenth in range(5))
        mean = round(one.gap_tokens / count)
        late = round(100 * (one.dependencies - early) / count, 1)
        sizes = [one.sequences, round(one.tokens / 1e6, 3), one.dependencies, mean]
        rows.append([name, *sizes, round(100 * early / count, 1), late])
    write_block(
        folder,
        "04_gaps",
        "table",
        "How far back the sequences look",
        "Gap: tokens between a place and what it depends on. Early and late: % of dependencies "
        "whose earlier place stands in the first and in the second half.",
        columns=columns,
        rows=rows,
    )
