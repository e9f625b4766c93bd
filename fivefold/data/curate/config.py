"""Configs of web curation; defaults are the published thresholds.

Sources: Gopher (arXiv:2112.11446, table A1 and appendix A.1.1), DCLM-Baseline (arXiv:2406.11794
and its released recipe), C4 (JMLR 21:140), FineWeb (arXiv:2406.17557), datatrove's defaults for
the last two. Fields without such a source say so.
"""

from typing import Annotated, Literal

import pydantic

from fivefold.config import Config, Runtime
from fivefold.data.curate.cluster_config import ExecutorConfig
from fivefold.data.curate.decontaminate_config import DecontaminationConfig
from fivefold.errors import ConfigError

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
"""A share of a whole, 0 to 1."""


class RepetitionConfig(Config):
    """Gopher's repetition rules; a page above any of these shares is dropped."""

    lines: Share = 0.30
    """Share of lines that are duplicates."""
    paragraphs: Share = 0.30
    """Share of paragraphs that are duplicates."""
    line_characters: Share = 0.20
    """Share of characters in duplicate lines."""
    paragraph_characters: Share = 0.20
    """Share of characters in duplicate paragraphs."""
    top: tuple[tuple[int, Share], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    """Words in an n-gram, share of characters in the most frequent one; n ascending."""
    duplicate: tuple[tuple[int, Share], ...] = (
        (5, 0.15),
        (6, 0.14),
        (7, 0.13),
        (8, 0.12),
        (9, 0.11),
        (10, 0.10),
    )
    """Words in an n-gram, share of characters in repeated ones; n ascending."""
    chinese_characters_per_word: int = pydantic.Field(default=2, ge=1, le=4)
    """In Chinese, n words count as this many times n characters; ours, without a source."""

    @pydantic.model_validator(mode="after")
    def _check_sizes(self) -> "RepetitionConfig":
        for name in ("top", "duplicate"):
            sizes = [n for n, _ in getattr(self, name)]
            if sizes != sorted(set(sizes)) or min(sizes, default=1) < 1:
                raise ConfigError(
                    expected=f"n-grams of ascending sizes from 1 on in `repetition.{name}`",
                    found=str(sizes),
                    fix="Order them, each size once",
                )
        return self


class QualityConfig(Config):
    """Gopher's quality rules."""

    min_words: int = pydantic.Field(default=50, ge=1)
    """Fewest words of a page."""
    max_words: int = pydantic.Field(default=100_000, ge=1)
    """Most words of a page."""
    min_mean_word_characters: float = 3
    """Least mean length of a word; not asked of Chinese."""
    max_mean_word_characters: float = 10
    """Greatest mean length of a word; not asked of Chinese."""
    symbols_per_word: float = 0.1
    """Most hashes, and most ellipses, for each word (DCLM: of both together)."""
    bullet_lines: Share = 0.9
    """Most lines that begin with a bullet."""
    ellipsis_lines: Share = 0.3
    """Most lines that end in an ellipsis."""
    non_alphabetic_words: Share = 0.2
    """Most words without any letter."""
    min_stop_words: int = pydantic.Field(default=2, ge=0)
    """Fewest stop words (datatrove: different ones; DCLM: occurrences)."""


class C4Config(Config):
    """C4's rules for lines and pages."""

    terminal_punctuation: bool = False
    """Keep only lines that end in punctuation; FineWeb leaves this out."""
    min_sentences: int = pydantic.Field(default=5, ge=0)
    """Fewest sentences of a page, after its lines were cut."""
    min_line_words: int = pydantic.Field(default=3, ge=0)
    """Fewest words of a line (Chinese: characters)."""
    max_word_characters: int = pydantic.Field(default=1000, ge=1)
    """A line with a longer word goes."""


class FineWebConfig(Config):
    """FineWeb's own rules."""

    min_punctuated_lines: Share = 0.12
    """Fewest lines that end in terminal punctuation."""
    short_lines: Share = 0.67
    """Most lines of at most `short_line_characters`."""
    short_line_characters: int = pydantic.Field(default=30, ge=0)
    """Characters of a short line."""
    duplicate_characters: Share = 0.01
    """Most characters in repeated lines."""
    newlines_per_word: float = 0.3
    """Most line ends for each word."""


class LineEditConfig(Config):
    """RefinedWeb's line edits as DCLM applies them."""

    upper_case: Share = 0.5
    """A line with a greater share of capitals goes."""
    min_line_words: int = pydantic.Field(default=2, ge=0)
    """Fewest words of a line (Chinese: characters)."""
    phrase_line_words: int = pydantic.Field(default=10, ge=0)
    """Longest line, in words, in which phrases of shops and log-ins are looked for."""
    removed_words: Share = 0.05
    """Most words that the edits may take before the page goes as a whole."""


class HeuristicsConfig(Config):
    """The heuristics chain in one of two ways of counting."""

    mode: Literal["dclm", "datatrove"] = "dclm"
    """`dclm`: DCLM-Baseline's rules; `datatrove`: FineWeb's chain as datatrove counts."""
    repetition: RepetitionConfig = RepetitionConfig()
    """Gopher's repetition rules."""
    quality: QualityConfig = QualityConfig()
    """Gopher's quality rules."""
    c4: C4Config = C4Config()
    """C4's rules; mode `datatrove` only."""
    fineweb: FineWebConfig = FineWebConfig()
    """FineWeb's rules; mode `datatrove` only."""
    edits: LineEditConfig = LineEditConfig()
    """RefinedWeb's line edits; mode `dclm` only."""


class ExtractConfig(Config):
    """How raw pages become text; thresholds are ours, without a source."""

    main_content: bool = True
    """Leave out navigation and page furniture."""
    extractor: Literal["resiliparse", "auto", "trafilatura"] = "resiliparse"
    """Who finds the main content; `auto` asks trafilatura (extra `extract`) where resiliparse finds
    little."""
    max_page_bytes: int = pydantic.Field(default=20_000_000, ge=1)
    """A larger page goes unread."""
    max_replaced: Share = 0.01
    """Most characters that may be U+FFFD before a page counts as wrongly decoded."""
    damaged_files: Literal["stop", "quarantine"] = "stop"
    """A cut or altered input file ends the run, or is quarantined: what came before it counts."""


class UrlConfig(Config):
    """Which addresses are refused. The word lists are short and ours; a crawl needs others."""

    domain_file: str = ""
    """A file of domains, one a line; their pages and those of subdomains go. Empty: none."""
    strict_words: tuple[str, ...] = (
        "porn",
        "xxxvideo",
        "sexcam",
        "camgirl",
        "hentai",
        "onlinecasino",
    )
    """Dropped wherever they stand in the address, `-` and `.` being ignored."""
    hard_words: tuple[str, ...] = ("xxx", "sex", "nude", "escorts", "viagra", "casino")
    """Dropped when they stand as a whole word."""
    soft_words: tuple[str, ...] = (
        "adult",
        "webcam",
        "dating",
        "poker",
        "betting",
        "bonus",
        "pills",
    )
    """Two different ones as whole words drop the page."""


class LanguageConfig(Config):
    """Which languages stay."""

    keep: tuple[str, ...] = ("en",)
    """Codes of ISO 639-1; empty keeps every language and only labels."""
    min_probability: Share = 0.65
    """Least probability of the language (DCLM-Baseline)."""
    model: str = ""
    """Path of a fastText model such as lid.176.ftz; empty uses scripts and function words."""


class MinHashConfig(Config):
    """Near-duplicates: documents that share a band of MinHash values."""

    bands: int = pydantic.Field(default=14, ge=1)
    """Bands; with 14 x 8 a pair of similarity 0.72 is found half of the time (FineWeb)."""
    rows: int = pydantic.Field(default=8, ge=1)
    """Values in a band."""
    shingle_words: int = pydantic.Field(default=5, ge=1)
    """Words of a shingle; Chinese characters count as words."""
    seed: int = pydantic.Field(default=1, ge=0)
    """Seed of the hash functions."""


class BloomConfig(Config):
    """Repeated paragraphs and pages, by DCLM's rule `old-both`."""

    max_ngram_words: int = pydantic.Field(default=13, ge=1)
    """Words, punctuation included, of an n-gram."""
    min_ngram_words: int = pydantic.Field(default=13, ge=1)
    """A shorter paragraph of so many words is one n-gram; with fewer it always stays."""
    threshold: Share = 0.8
    """A paragraph, or page, goes when a greater share of its n-grams was seen before."""
    false_positives: float = pydantic.Field(default=0.01, gt=0, lt=1)
    """Share of new n-grams that the full filter takes for seen ones."""
    expected_ngrams: int = pydantic.Field(default=20_000_000, ge=1)
    """n-grams that the filter is made for: about one a word; 20 million take 24 MB."""

    @pydantic.model_validator(mode="after")
    def _check_ngrams(self) -> "BloomConfig":
        if self.min_ngram_words > self.max_ngram_words:
            raise ConfigError(
                expected="`min_ngram_words` of at most `max_ngram_words`",
                found=f"{self.min_ngram_words} above {self.max_ngram_words}",
                fix="Lower `min_ngram_words`",
            )
        return self


class QualityClassifierConfig(Config):
    """Which documents a fastText classifier lets stay; thresholds belong to one model."""

    model: str
    """Path of the model, for example one that `fivefold data train-classifier` made."""
    label: str = "high"
    """The label whose probability is the score."""
    keep_share: Share | None = 0.1
    """Share of documents that stay, the best ones (DCLM-Baseline: 0.1)."""
    min_score: Share | None = None
    """Least score, instead of a share."""

    @pydantic.model_validator(mode="after")
    def _check_choice(self) -> "QualityClassifierConfig":
        if (self.keep_share is None) == (self.min_score is None):
            raise ConfigError(
                expected="one of `keep_share` and `min_score`",
                found=f"keep_share {self.keep_share}, min_score {self.min_score}",
                fix="Set the other one to null",
            )
        return self


class ClassifierTrainingConfig(Config):
    """How a fastText quality classifier is trained; values of DCLM's script but for those noted."""

    dim: int = pydantic.Field(default=100, ge=10, multiple_of=10)
    """Width of the word vectors, in tens: fastText fills its matrix in ten equal blocks and leaves
    a rest as it lies in memory."""
    epochs: int = pydantic.Field(default=5, ge=1)
    """Passes over the text."""
    learning_rate: float = pydantic.Field(default=0.1, gt=0)
    """Initial learning rate."""
    word_ngrams: int = pydantic.Field(default=2, ge=1)
    """Words of the longest n-gram; the released model's."""
    buckets: int = pydantic.Field(default=200_000, ge=1)
    """Places for hashed n-grams; ours: fastText's two million make a model of 800 MB."""
    heldout_share: float = pydantic.Field(default=0.1, gt=0, lt=1)
    """Share of documents, by the hash of their ids, on which the model is measured."""
    max_characters: int = pydantic.Field(default=20_000, ge=1)
    """Characters of a document that are looked at."""
    seed: int = pydantic.Field(default=1, ge=0)
    """Seed of the training."""


class EngineConfig(Config):
    """What every recipe takes: how its tasks are cut and run, what its documents must not hold."""

    tasks: int = pydantic.Field(default=8, ge=1)
    """Shares into which the input files are cut; fixed for a run, whatever the workers."""
    workers: Runtime[int] = pydantic.Field(default=1, ge=1)
    """Processes at work at once."""
    page_seconds: Runtime[float] = pydantic.Field(default=60.0, gt=0)
    """Time after which a step gives a page up and quarantines it."""
    executor: Runtime[ExecutorConfig] = ExecutorConfig()
    """Where tasks run; it changes no result."""
    max_quarantined: Share = 0.001
    """Share of pages that may be quarantined before the run fails."""
    benchmarks: DecontaminationConfig | None = DecontaminationConfig()
    """Drop what holds benchmark items."""


class PageConfig(EngineConfig):
    """From raw pages to distinct texts, in DCLM-Baseline's order; None leaves a part out."""

    extract: ExtractConfig = ExtractConfig()
    """Read raw pages as text; documents pass through."""
    url: UrlConfig | None = UrlConfig()
    """Refuse addresses."""
    language: LanguageConfig | None = LanguageConfig()
    """Label and choose languages."""
    heuristics: HeuristicsConfig | None = HeuristicsConfig()
    """Drop and edit pages by rules."""
    minhash: MinHashConfig | None = MinHashConfig()
    """Drop near-duplicates over the whole corpus; exact copies always go."""
    bloom: BloomConfig | None = BloomConfig()
    """Drop repeated paragraphs and pages over the whole corpus."""


class CurateConfig(PageConfig):
    """DCLM-Baseline: pages, then the best of them."""

    classifier: QualityClassifierConfig | None = None
    """Keep the documents that a classifier finds good."""
