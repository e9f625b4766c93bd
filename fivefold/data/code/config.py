"""Configs of code curation; defaults are published thresholds where a source is named.

Sources: StarCoder2 and The Stack v2 (arXiv:2402.19173, section 3), StarCoder's filters (its
released `bigcode-dataset` preprocessing), OpenCoder's RefineCode (arXiv:2411.04905 and its
released filter configuration), FIM (arXiv:2207.14255), GLM-4.5 (arXiv:2508.06471, section 2.2:
three tiers, high up-sampled, low dropped). Fields without a source are ours: GLM-5 publishes none.
"""

from typing import Literal

import pydantic

from fivefold.config import Config
from fivefold.data.curate.config import (
    ClassifierTrainingConfig,
    EngineConfig,
    MinHashConfig,
    Share,
)
from fivefold.errors import ConfigError


class AdmitConfig(Config):
    """Which files are read at all."""

    max_file_bytes: int = pydantic.Field(default=1 << 20, ge=1)
    """Bytes above which a file is not read (The Stack: 1 MiB)."""
    refused_folders: tuple[str, ...] = (
        "node_modules",
        "vendor",
        "_vendor",
        "third_party",
        "thirdparty",
        "site-packages",
        "__pycache__",
        ".venv",
        "dist",
        "build",
    )
    """Names of folders that hold copies of other projects, or what a build left."""
    refused_files: str = (
        r"(?:.*[.-]lock(?:\.json|file)?|package-lock\.json|yarn\.lock|go\.sum|pnpm-lock\.yaml"
        r"|.*\.min\.(?:js|css)|.*\.(?:map|ipynb|svg|po|pem|key))"
    )
    """Pattern of whole file names that are not read: locks, minified copies, keys."""


class RulesConfig(Config):
    """Thresholds for files of one kind; None leaves a rule out."""

    min_lines: int = pydantic.Field(default=10, ge=0)
    """Lines that are not empty (RefineCode: 10)."""
    max_lines: int = pydantic.Field(default=100_000, ge=1)
    """All lines (StarCoder2, RefineCode: 100,000)."""
    min_characters: int = pydantic.Field(default=50, ge=0)
    """Characters (RefineCode: 50)."""
    max_line_characters: int = pydantic.Field(default=1000, ge=1)
    """Characters of the longest line (StarCoder, StarCoder2, RefineCode: 1000)."""
    min_mean_line: float = pydantic.Field(default=5.0, ge=0)
    """Mean characters of lines that are not empty (RefineCode: 5)."""
    max_mean_line: float = pydantic.Field(default=100.0, ge=0)
    """Mean characters of lines that are not empty (StarCoder, StarCoder2, RefineCode: 100)."""
    min_alphabetic: Share = 0.5
    """Letters among characters that are not white space (RefineCode: 0.5 of all characters;
    StarCoder2: 0.25)."""
    max_digits: Share = 0.2
    """Digits among characters that are not white space (RefineCode: 0.2)."""
    max_spaces: Share = 0.5
    """White space among all characters (RefineCode: 0.5)."""
    min_comments: Share | None = None
    """Comments and documentation among characters (StarCoder: 0.01; RefineCode has no such)."""
    max_comments: Share = 0.8
    """Comments and documentation among characters (StarCoder, RefineCode: 0.8)."""
    max_strings: Share | None = 0.6
    """Literal strings among characters (RefineCode: 0.6)."""
    max_repeated_lines: Share = 0.7
    """Lines that stood before among lines that are not empty (RefineCode: 0.7)."""
    max_hex_words: Share = 0.4
    """Characters in hexadecimal words of 8 and more among characters (RefineCode: 0.4 of words)."""
    max_encoded: Share = 0.5
    """Characters in encoded data among characters (StarCoder2: 0.5)."""
    max_encoded_run: int = pydantic.Field(default=1024, ge=1)
    """Characters of one run of encoded data (StarCoder2: 1024)."""
    max_asserts: Share | None = 0.4
    """Assertions among lines that are not empty (RefineCode: 0.4)."""
    min_visible: Share | None = None
    """Text that a reader sees, among characters of markup (StarCoder2: 0.2 for HTML)."""
    min_visible_characters: int = pydantic.Field(default=0, ge=0)
    """Characters of that text (StarCoder2: 100 for HTML)."""


class PythonRulesConfig(Config):
    """Rules for Python alone (RefineCode)."""

    must_parse: bool = True
    """Drop what Python's own parser refuses; Python 2 is among it."""
    max_imports: Share = 0.3
    """Lines of imports among lines that are not empty."""
    max_passes: Share = 0.05
    """Lines that only say `pass`."""
    max_prints: Share = 0.4
    """Lines that only print."""


def _data_rules() -> RulesConfig:
    # StarCoder2: JSON and YAML of at most 512 lines; the others are RefineCode's kind `data`.
    return RulesConfig(
        max_lines=512,
        max_line_characters=20_000,
        max_mean_line=15_000,
        min_alphabetic=0.3,
        max_comments=0.8,
        max_strings=None,
        max_repeated_lines=0.75,
        max_asserts=None,
    )


def _markup_rules() -> RulesConfig:
    # StarCoder2: long lines are allowed in markup up to 100,000 characters.
    return RulesConfig(
        max_line_characters=100_000,
        max_mean_line=100_000,
        min_alphabetic=0.25,
        max_strings=None,
        max_asserts=None,
        min_visible=0.2,
        min_visible_characters=100,
    )


def _prose_rules() -> RulesConfig:
    return RulesConfig(
        min_lines=5,
        max_line_characters=100_000,
        max_mean_line=100_000,
        min_alphabetic=0.25,
        max_comments=1.0,
        max_strings=None,
        max_asserts=None,
    )


class CodeHeuristicsConfig(Config):
    """Rules by kind of file, and what only some languages have."""

    code: RulesConfig = RulesConfig()
    """Programs."""
    data: RulesConfig = _data_rules()
    """JSON, YAML, TOML and the like."""
    markup: RulesConfig = _markup_rules()
    """HTML and XML."""
    prose: RulesConfig = _prose_rules()
    """Markdown, reStructuredText, plain text."""
    python: PythonRulesConfig = PythonRulesConfig()
    """What only Python has."""
    generated_lines: int = pydantic.Field(default=5, ge=0)
    """First lines that are searched for `generated` notices (StarCoder2: 5)."""
    text_names: tuple[str, ...] = (
        "readme",
        "notes",
        "todo",
        "description",
        "cmakelists",
        "requirement",
    )
    """Beginnings of names of plain text files that stay (StarCoder2)."""


class SecretConfig(Config):
    """What counts as a secret beside the known formats."""

    min_value_characters: int = pydantic.Field(default=8, ge=4)
    """Characters of a value that is assigned to a name such as `password`."""
    min_value_entropy: float = pydantic.Field(default=2.8, ge=0)
    """Shannon entropy of such a value, bits a character."""
    min_token_characters: int = pydantic.Field(default=32, ge=16)
    """Characters of a literal that is a secret whatever its name."""
    min_token_entropy: float = pydantic.Field(default=4.3, ge=0)
    """Shannon entropy of such a literal, bits a character; hexadecimal cannot exceed 4."""


class CodeClassifierConfig(Config):
    """fastText classifiers for languages, families and all of them, with back-off."""

    shrinkage: float = pydantic.Field(default=500.0, gt=0)
    """k in n / (n + k): labels at which a language counts as much as its family."""
    min_labels: int = pydantic.Field(default=50, ge=2)
    """Good, and other, files below which a language or family gets no model of its own; so many
    there must be in all."""
    max_labels: int = pydantic.Field(default=600, ge=20)
    """Good, and other, files of a language that are used, by the hash of their ids."""
    labelled_share: float = pydantic.Field(default=0.3, gt=0, le=0.5)
    """Share of a language's files with the best, and worst, rule score that are labels."""
    training: ClassifierTrainingConfig = ClassifierTrainingConfig(
        dim=20, epochs=5, learning_rate=0.2, buckets=50_000, max_characters=6_000
    )
    """How each model is trained."""


class TierConfig(Config):
    """Three tiers in each language, by the score's rank."""

    high_share: Share = 0.3
    """Share of a language's files in the tier `high`."""
    low_share: Share = 0.2
    """Share in the tier `low`."""
    min_files: int = pydantic.Field(default=10, ge=1)
    """Files below which a language is not ranked and counts as `mid`."""
    high_epochs: float = pydantic.Field(default=2.5, ge=0)
    """Times that files of the tier `high` are seen, before temperature (GLM-4.5: up-sampled)."""
    mid_epochs: float = pydantic.Field(default=1.0, ge=0)
    """Times that files of the tier `mid` are seen, before temperature."""
    low_epochs: float = pydantic.Field(default=0.0, ge=0)
    """Times that files of the tier `low` are seen (GLM-4.5: dropped)."""

    @pydantic.model_validator(mode="after")
    def _check_shares(self) -> "TierConfig":
        if self.high_share + self.low_share > 1:
            raise ConfigError(
                expected="`high_share` and `low_share` of at most 1 together",
                found=f"{self.high_share} and {self.low_share}",
                fix="Lower one of them",
            )
        return self


class SamplingConfig(Config):
    """How often languages are seen."""

    temperature: float = pydantic.Field(default=0.7, gt=0, le=1)
    """Exponent of a language's size; 1 leaves sizes as they are, small ones favour the rare."""
    min_share: Share = 0.01
    """Share of the mixture below which no language falls, as far as `max_epochs` lets it rise."""
    max_epochs: float = pydantic.Field(default=4.0, gt=0)
    """Most times that any file is seen (StarCoder2: at most 5; repeated data: arXiv:2305.16264)."""
    seed: int = pydantic.Field(default=1, ge=0)
    """Seed of the draw for the fraction of an epoch."""


class FimConfig(Config):
    """Fill in the middle."""

    rate: Share = 0.5
    """Share of files that are rearranged (StarCoder2, arXiv:2207.14255: 0.5)."""
    spm_share: Share = 0.5
    """Share of those in suffix-prefix-middle order; the rest is prefix-suffix-middle."""
    min_characters: int = pydantic.Field(default=64, ge=3)
    """Characters below which a file stays as it is."""
    seed: int = pydantic.Field(default=1, ge=0)
    """Seed of the cuts."""


class PackConfig(Config):
    """Files of a repository as one text."""

    max_characters: int = pydantic.Field(default=120_000, ge=1000)
    """Characters of one text, about 32K tokens; a longer file stands alone."""
    fim: FimConfig = FimConfig()
    """Which of the files are rearranged."""


class IssueConfig(Config):
    """Which changes of a git history become issue sequences, and how long these are."""

    dump: str = ""
    """JSON lines of issues {repository, number, title, body, comments, created, author}; empty:
    the change's own words, or its changelog fragment, stand for the issue."""
    max_changes: int = pydantic.Field(default=2000, ge=1)
    """Latest changes of the main line that are looked at."""
    min_words: int = pydantic.Field(default=8, ge=0)
    """Words of title and body of an issue without a traceback or code; few, for a fragment or a
    message is short. With a dump of real issues 30 is a better choice."""
    max_files: int = pydantic.Field(default=10, ge=1)
    """Source and test files that a change touches."""
    min_changed_lines: int = pydantic.Field(default=3, ge=1)
    """Lines added and removed."""
    max_changed_lines: int = pydantic.Field(default=1000, ge=1)
    """Lines added and removed."""
    max_file_bytes: int = pydantic.Field(default=200_000, ge=1)
    """Bytes of a touched file above which its change is left out."""
    max_characters: int = pydantic.Field(default=400_000, ge=1000)
    """Characters of a sequence, about 100K tokens; issue, diff and touched files are never cut, so
    that a change which does not fit is left out."""
    retrieved_files: int = pydantic.Field(default=12, ge=0)
    """Most files beside the touched ones."""
    ranked_files: int = pydantic.Field(default=40, ge=0)
    """Files whose identifiers are compared with the issue, the best by their paths."""
    files_first_share: Share = 0.3
    """Share of sequences in which files stand before the issue."""
    without_text_share: Share = 0.3
    """Share of sequences without the pull request's own text."""
    seed: int = pydantic.Field(default=1, ge=0)
    """Seed of order and variants."""


class CodeConfig(EngineConfig):
    """The whole code pipeline; None leaves a part out."""

    admit: AdmitConfig = AdmitConfig()
    """Which files are read."""
    heuristics: CodeHeuristicsConfig | None = CodeHeuristicsConfig()
    """Drop files by rules."""
    secrets: SecretConfig | None = SecretConfig()
    """Scrub secrets."""
    minhash: MinHashConfig | None = MinHashConfig(bands=25, rows=10)
    """Drop near-duplicates over all repositories: Jaccard similarity of about 0.72 (The Stack:
    0.7); exact copies always go."""
    classifier: CodeClassifierConfig | None = CodeClassifierConfig()
    """Learn the quality score beside the rule; None takes the rule alone."""
    tiers: TierConfig = TierConfig()
    """Quality tiers."""
    sampling: SamplingConfig = SamplingConfig()
    """Languages and epochs."""
    pack: PackConfig = PackConfig()
    """Files to texts."""
    issues: IssueConfig | None = IssueConfig()
    """Issue sequences from git histories."""


Kind = Literal["code", "data", "markup", "prose"]
"""What sort of file a language makes."""
