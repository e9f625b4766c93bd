"""Configs of GLM-5's web pipeline. The report (section 2.2) names its parts and no number.

Epochs of the best tier are GLM-4.5's (arXiv:2508.06471, section 2.2: about 3.2, the lowest class
left out), the share that counts as best is DCLM's; the other values are ours.
"""

from typing import Literal

import pydantic

from fivefold.config import Config, Runtime
from fivefold.data.curate.config import (
    ClassifierTrainingConfig,
    PageConfig,
    QualityClassifierConfig,
    Share,
)
from fivefold.data.maths.config import ScorerConfig
from fivefold.errors import ConfigError

Kind = Literal["embedding", "world_knowledge"]
"""What a classifier over vectors tells apart: quality, or pages that state facts."""


class EmbedConfig(Config):
    """How a text becomes a vector; without a model: hashed TF-IDF over words."""

    factory: str = ""
    """`MODULE:FUNCTION` that opens `model` and returns an embedder, for example
    `fivefold.serve.embedder:open_checkpoint` or `fivefold.serve.embedder:open_sentence_model`."""
    model: str = ""
    """Directory of the model, or its name at the endpoint."""
    url: str = ""
    """Server with OpenAI's `/v1/embeddings`, address without `/v1`; instead of `factory`."""
    windows: int = pydantic.Field(default=3, ge=1)
    """Windows of a text, evenly spread: head, middle and tail."""
    window_characters: int = pydantic.Field(default=1_000, ge=50)
    """Characters of a window: about 256 tokens."""
    dimensions: int = pydantic.Field(default=1024, ge=64)
    """Width of TF-IDF vectors; a model has its own."""
    max_document_share: Share = 0.5
    """TF-IDF: words in more than this share of the texts say nothing."""

    @pydantic.model_validator(mode="after")
    def _check_source(self) -> "EmbedConfig":
        if (self.factory and self.url) or (self.url and not self.model):
            raise ConfigError(
                expected="a `factory`, or a `url` with the name of a `model`, or neither",
                found=f"factory {self.factory!r}, url {self.url!r}, model {self.model!r}",
                fix="Take one of them out, or name the model",
            )
        return self


class HeadConfig(Config):
    """How a classifier over vectors is trained."""

    penalty: float = pydantic.Field(default=0.001, gt=0)
    """Weight of the squared coefficients beside the mean log-loss."""
    folds: int = pydantic.Field(default=5, ge=2)
    """Parts of the documents; each is scored by a head that did not see it."""
    max_documents: int = pydantic.Field(default=2_000, ge=10)
    """Documents of each side that are learned from at most, by the hash of their ids."""
    hard_share: Share = 0.5
    """Of the run's own documents, the share that comes from those that the fastText classifier
    puts between `hard_percentiles`."""
    hard_percentiles: tuple[Share, Share] = (0.5, 0.9)
    """What it finds good without choosing it."""


class ReferenceConfig(Config):
    """Documents of a known kind, from which classifiers learn.

    Names of `reference`'s sources or of the catalogue, or files.
    """

    quality: tuple[str, ...] = ("debian-faq", "developers-reference")
    """Explanatory prose: positives of quality. Against them stand the run's own pages."""
    knowledge: tuple[str, ...] = ("wordnet", "foldoc", "elements")
    """Encyclopaedic entries: positives of world knowledge, and of the embedding classifier."""
    plain: tuple[str, ...] = ("libreoffice-help-en", "django-releases", "fortunes")
    """Help for user interfaces, changelogs, banter: negatives of world knowledge."""
    max_characters: int = pydantic.Field(default=4_000, ge=100)
    """Longer reference documents are cut at blank lines, so that they are as long as pages are."""


class EmbeddingClassifierConfig(Config):
    """The classifier that adds what the fastText one missed."""

    model: str = ""
    """Directory that `fivefold data train-classifier --kind embedding` made; empty: the run learns
    one."""
    min_percentile: Share = 0.95
    """Percentile from which on it adds a document to the top tier."""
    min_quality: Share = 0.5
    """Percentile that such a document must have with the fastText classifier."""
    max_added: float = pydantic.Field(default=0.35, ge=0)
    """Documents added at most, for each one that fastText chose."""


class KnowledgeLabelConfig(Config):
    """Pages of the run that are labelled: the classifier learns what facts look like there."""

    scorer: ScorerConfig = ScorerConfig()
    """Who gives marks, 0 to 5: kind `rule`, or a model by kind `endpoint`."""
    max_documents: int = pydantic.Field(default=1_000, ge=0)
    """Pages that are labelled, by the hash of their ids; 0: none."""
    percentiles: tuple[Share, Share] = (0.25, 0.75)
    """Where they stand with the fastText classifier: among pages such as those to be rescued."""
    max_characters: int = pydantic.Field(default=6_000, ge=300)
    """Characters of a page that are shown: of its head, middle and tail."""
    positive_from: float = pydantic.Field(default=3.0, ge=0, le=5)
    """Mark from which on a page is a positive."""
    negative_to: float = pydantic.Field(default=1.5, ge=0, le=5)
    """Mark up to which it is a negative; between the two it is not learned from."""
    max_failed: Share = 0.05
    """Share of pages that may get no mark before the run fails."""

    @pydantic.model_validator(mode="after")
    def _check_labels(self) -> "KnowledgeLabelConfig":
        if self.scorer.kind not in ("rule", "endpoint") or self.negative_to >= self.positive_from:
            raise ConfigError(
                expected="a `scorer` of kind rule or endpoint, and `negative_to` below "
                "`positive_from`",
                found=f"kind {self.scorer.kind}, {self.negative_to:g} and {self.positive_from:g}",
                fix="Correct `knowledge.label`",
            )
        return self


class KnowledgeConfig(Config):
    """The classifier that rescues pages which state facts."""

    model: str = ""
    """Directory that `fivefold data train-classifier --kind world_knowledge` made; empty: the run
    learns one."""
    label: KnowledgeLabelConfig = KnowledgeLabelConfig()
    """Pages of the run that it learns from, where the run learns it."""
    share: Share = 0.05
    """Share of the set's bytes that is rescued at most."""
    min_score: Share = 0.8
    """Least probability, calibrated on labelled documents; below it nothing is rescued. Chosen on
    one half of the manuals and essays that we read, where 6 of 9 pages above it state facts, and 7
    of 18 at 0.7; of the other half 7 of 7 do, and 10 of 15 at 0.7."""
    site_share: Share = 0.02
    """Share of the set's bytes that is rescued from one site at most; of a crawl of many sites
    0.001. A page without a host, such as one of a package, is of no site."""
    rescue_from: tuple[str, ...] = ("middle", "fair")
    """Tiers out of which a document is rescued."""
    epochs: float = pydantic.Field(default=1.0, gt=0, le=1)
    """Times that a rescued document is seen."""


class Tier(Config):
    """Documents that are seen equally often."""

    name: str
    """How the tier is called; `knowledge` is that of rescued documents."""
    min_percentile: Share
    """Percentile from which on a document belongs here."""
    epochs: float = pydantic.Field(ge=0)
    """Times that it is seen; with 0 it is dropped."""


class WebConfig(PageConfig):
    """GLM-5's web pipeline: pages, two classifiers of quality, rescued facts, tiers."""

    reference: ReferenceConfig = ReferenceConfig()
    """What the classifiers learn from where no model is given."""
    classifier: QualityClassifierConfig | None = None
    """fastText classifier; None: the run learns one. Tiers choose, not its thresholds."""
    training: ClassifierTrainingConfig = ClassifierTrainingConfig()
    """How that is learned."""
    embed: EmbedConfig = EmbedConfig()
    """How texts become vectors, for the classifiers that the run learns."""
    head: HeadConfig = HeadConfig()
    """How classifiers over vectors are learned."""
    embedding: EmbeddingClassifierConfig | None = EmbeddingClassifierConfig()
    """Add what the fastText classifier missed; None: do not."""
    knowledge: KnowledgeConfig | None = KnowledgeConfig()
    """Rescue pages which state facts; None: do not."""
    most_embedded: int | None = pydantic.Field(default=None, ge=1)
    """Documents that are embedded at most, by the hash of their ids; None: all. A sentence encoder
    needs a third of a second for each on one core: there 1,000 are enough to look at."""
    tiers: tuple[Tier, ...] = (
        Tier(name="top", min_percentile=0.90, epochs=3.2),
        Tier(name="high", min_percentile=0.75, epochs=1.0),
        Tier(name="middle", min_percentile=0.50, epochs=0.3),
        Tier(name="fair", min_percentile=0.25, epochs=0.0),
        Tier(name="low", min_percentile=0.0, epochs=0.0),
    )
    """Best tier first, the last from percentile 0."""
    quantiles: str = ""
    """`plan.json` of an earlier run whose percentiles hold here too, so that parts of a crawl have
    the same thresholds; empty: those of this run."""
    cache_dir: Runtime[str] = "~/.cache/fivefold"
    """Directory that keeps downloaded references."""

    @pydantic.model_validator(mode="after")
    def _check_models(self) -> "WebConfig":
        learned = [
            name
            for name, is_learned in (
                ("classifier", self.classifier is None),
                ("embedding", self.embedding is not None and not self.embedding.model),
            )
            if is_learned
        ]
        if self.quantiles and learned:
            raise ConfigError(
                expected="with `quantiles` of an earlier run, the models that they belong to",
                found=f"a run that learns {' and '.join(learned)}",
                fix="Give `classifier` and `embedding.model`, or leave `quantiles` empty",
            )
        return self

    @pydantic.model_validator(mode="after")
    def _check_tiers(self) -> "WebConfig":
        edges = [tier.min_percentile for tier in self.tiers]
        names = [tier.name for tier in self.tiers]
        is_descending = edges == sorted(set(edges), reverse=True)
        if (
            not is_descending
            or not edges
            or edges[-1] != 0
            or len({*names, KNOWLEDGE}) <= len(names)
        ):
            raise ConfigError(
                expected="`tiers` of different names and falling percentiles, the last from 0",
                found=", ".join(f"{one.name} from {one.min_percentile:g}" for one in self.tiers),
                fix=f"Order them; `{KNOWLEDGE}` is the tier of rescued documents",
            )
        unknown = set(self.knowledge.rescue_from if self.knowledge else ()) - set(names[1:])
        if unknown:
            raise ConfigError(
                expected="`knowledge.rescue_from` to name tiers below the first",
                found=", ".join(sorted(unknown)),
                fix=f"Choose among {', '.join(names[1:])}",
            )
        return self


KNOWLEDGE = "knowledge"
"""The tier of rescued documents."""
