"""Configs of the curation of maths and science.

GLM-5 (section 2.2) names the parts (scores by a language model, long documents in chunks, no
synthetic, AI-written or template text) and publishes no number; a value with a source names it, the
others are ours.
"""

from typing import Literal

import pydantic

from fivefold.config import Config, Runtime
from fivefold.data.curate.config import (
    EngineConfig,
    ExtractConfig,
    LanguageConfig,
    MinHashConfig,
    Share,
    UrlConfig,
)
from fivefold.data.long.config import ModelSource
from fivefold.errors import ConfigError


class FormulaConfig(Config):
    """How much of a page's formulas the main content must hold."""

    min_kept: Share = 0.8
    """Share of a page's formulas below which its whole text is taken, furniture included."""


class AdmitConfig(Config):
    """Which documents are about maths or science at all."""

    min_words: int = pydantic.Field(default=100, ge=1)
    """Words of a document."""
    min_signals: float = pydantic.Field(default=1.0, ge=0)
    """Formulas and words of the field for every hundred words."""
    min_different: int = pydantic.Field(default=5, ge=0)
    """Different words of the field, where there is no formula."""


class TemplateConfig(Config):
    """Pages that a program filled in, told by lines that many pages share but for their values."""

    min_documents: int = pydantic.Field(default=10, ge=2)
    """Documents of a source from which on it is looked at."""
    line_share: Share = 0.2
    """Share of a source's documents in which a skeleton makes a template of its line."""
    min_line_documents: int = pydantic.Field(default=5, ge=2)
    """Fewest such documents, whatever the source's size."""
    max_characters: Share = 0.6
    """Share of a document's characters in such lines above which it goes."""
    min_line_words: int = pydantic.Field(default=3, ge=1)
    """Words of a line that counts: shorter ones, such as headings, are everybody's."""
    min_cluster: int = pydantic.Field(default=10, ge=2)
    """Documents whose masked texts are near-duplicates of each other, from which on they are one
    template's."""
    kept: int = pydantic.Field(default=2, ge=0)
    """Of such documents, how many stay, the first by their ids."""
    minhash: MinHashConfig = MinHashConfig(bands=8, rows=14)
    """When masked texts are near-duplicates: half of the time at similarity 0.84."""


class MachineTextConfig(Config):
    """Text that a language model wrote; the threshold is calibrated on text that people wrote."""

    human: tuple[str, ...] = ("anarchism", "shakespeare")
    """Files, directories or names of the catalogue whose text is older than such models."""
    machine: tuple[str, ...] = ()
    """The same for text that models wrote, from which the detector learns; empty: the rule."""
    false_positives: float = pydantic.Field(default=0.01, gt=0, lt=1)
    """Share that may be flagged of all human text, and of each of its sources; of a source with too
    few pieces for a bound none is."""
    confidence: float = pydantic.Field(default=0.95, gt=0, lt=1)
    """Confidence with which each of these shares holds (Clopper and Pearson's bound)."""
    window_characters: int = pydantic.Field(default=6_000, ge=200)
    """Characters of a piece of human text, and of a document, that are judged at a time."""
    windows_per_source: int = pydantic.Field(default=2_000, ge=50)
    """Pieces of each source at most; by the hash of their texts."""
    model: ModelSource = ModelSource()
    """A model for the curvature of its probabilities (Fast-DetectGPT, arXiv:2310.05130)."""


class ChunkConfig(Config):
    """How long documents are cut, sampled, and their scores joined."""

    chunk_characters: int = pydantic.Field(default=6_000, ge=100)
    """Characters of a chunk at most, about 1,500 tokens; a formula or code block stays whole."""
    max_chunks: int = pydantic.Field(default=16, ge=3)
    """Chunks of a document that are scored: the first, the last, and the others evenly spread."""
    trimmed: float = pydantic.Field(default=0.1, ge=0, lt=1)
    """Share of the weight, its worst chunks, that the mean leaves out."""
    spread_penalty: float = pydantic.Field(default=0.25, ge=0)
    """Standard deviations that are taken off the mean."""
    coverage: Share = 0.3
    """Weight of the lower quartile beside the mean."""
    restless: float = pydantic.Field(default=1.0, ge=0)
    """Standard deviation above which as many chunks again are scored, once."""


class ScorerConfig(Config):
    """Who says how educational a chunk is, 0 to 5."""

    kind: Literal["rule", "head", "ratio", "rubric", "endpoint"] = "rule"
    """`rule`: features; `head`: vectors, learned in an earlier run; `ratio`: two models'
    likelihood; `rubric`: a model asked for a mark; `endpoint`: the same over OpenAI's protocol."""
    head: str = ""
    """File of the head, for example an earlier run's `head.npz`; kind `head` only."""
    model: ModelSource = ModelSource()
    """The model; for `ratio` the one that knows good text."""
    general: ModelSource = ModelSource()
    """The model of text at large; kind `ratio` only."""
    url: str = ""
    """Server without `/v1`; kind `endpoint` only."""
    served_model: str = ""
    """Name of the model there."""
    api_key_file: Runtime[str] = ""
    """File that holds the key, if there is one."""
    connections: Runtime[int] = pydantic.Field(default=8, ge=1)
    """Requests under way at once."""
    attempts: Runtime[int] = pydantic.Field(default=3, ge=1)
    """Times that a request is made while the server is overloaded or does not answer."""
    timeout_seconds: Runtime[float] = pydantic.Field(default=120.0, gt=0)
    """Wait for the next bytes of an answer."""
    max_disagreement: int = pydantic.Field(default=1, ge=0)
    """Difference of two marks above which a third is asked for."""

    @pydantic.model_validator(mode="after")
    def _check_kind(self) -> "ScorerConfig":
        needed = {
            "head": (("head", self.head),),
            "ratio": (
                ("model.checkpoint", self.model.checkpoint),
                ("general.checkpoint", self.general.checkpoint),
            ),
            "rubric": (("model.checkpoint", self.model.checkpoint),),
            "endpoint": (("url", self.url), ("served_model", self.served_model)),
        }
        missing = [name for name, value in needed.get(self.kind, ()) if not value]
        if missing:
            raise ConfigError(
                expected=f"{' and '.join(missing)} for a scorer of kind `{self.kind}`",
                found="nothing",
                fix="Set it, or choose another kind",
            )
        return self


class DistilConfig(Config):
    """The small scorer that learns from the scorer's labels and judges everything."""

    max_labels: int = pydantic.Field(default=1_500, ge=20)
    """Documents that the scorer labels, by the hash of their ids."""
    min_labels: int = pydantic.Field(default=100, ge=10)
    """Labelled documents below which nothing is learned and the scorer judges everything."""
    heldout_share: float = pydantic.Field(default=0.2, gt=0, lt=1)
    """Share of them on which the agreement is measured."""
    dimensions: int = pydantic.Field(default=2_048, ge=64)
    """Width of the hashed vectors."""
    ridge: float = pydantic.Field(default=1.0, gt=0)
    """Penalty on the weights."""


class SelectConfig(Config):
    """Tiers by the score's rank, and the times that each is seen."""

    keep_share: Share = 0.5
    """Share of documents that stay, the best ones."""
    min_score: float | None = None
    """Least score, beside the share."""
    high_share: Share = 0.15
    """Share of documents in the tier `high`."""
    high_epochs: float = pydantic.Field(default=3.2, gt=0)
    """Times that the tier `high` is seen (GLM-4.5: about 3.2 for its best bucket)."""
    mid_epochs: float = pydantic.Field(default=1.0, gt=0)
    """Times that the rest is seen."""

    @pydantic.model_validator(mode="after")
    def _check_shares(self) -> "SelectConfig":
        if self.high_share > self.keep_share:
            raise ConfigError(
                expected="`high_share` of at most `keep_share`",
                found=f"{self.high_share} above {self.keep_share}",
                fix="Lower `high_share`",
            )
        return self


class MathsConfig(EngineConfig):
    """The whole pipeline of maths and science; None leaves a part out."""

    extract: ExtractConfig = ExtractConfig()
    """Read raw pages as text; documents pass through."""
    formulas: FormulaConfig = FormulaConfig()
    """Keep the formulas of HTML."""
    url: UrlConfig | None = UrlConfig()
    """Refuse addresses."""
    language: LanguageConfig | None = LanguageConfig(keep=("en", "zh"), min_probability=0.5)
    """Label and choose languages; formulas make every language less sure than prose does."""
    admit: AdmitConfig | None = AdmitConfig()
    """Keep what is about maths or science."""
    minhash: MinHashConfig | None = MinHashConfig()
    """Drop near-duplicates over the whole corpus; exact copies always go."""
    templates: TemplateConfig | None = TemplateConfig()
    """Drop pages that a program filled in."""
    machine_text: MachineTextConfig | None = MachineTextConfig()
    """Drop text that a language model wrote."""
    chunks: ChunkConfig = ChunkConfig()
    """Long documents in parts."""
    scorer: ScorerConfig = ScorerConfig()
    """Who scores."""
    distil: DistilConfig | None = DistilConfig()
    """Learn a small scorer from the scorer; None lets the scorer judge everything."""
    select: SelectConfig = SelectConfig()
    """Tiers."""
    max_failed: Share = 0.05
    """Share of chunks that the scorer may fail on before the run does."""
    cache_dir: Runtime[str] = "~/.cache/fivefold"
    """Directory that keeps downloaded archives."""
