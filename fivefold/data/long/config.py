"""Configs of long-context synthesis; values that a paper gives name it, the others are ours.

Sources: NExtLong (arXiv:2501.12766), EntropyLong (arXiv:2510.02330), MRCR (OpenAI's data set of
2025, after Michelangelo, arXiv:2409.12640), repository order (DeepSeek-Coder, arXiv:2401.14196).
The GLM-5 report names the methods and gives no number.
"""

from typing import Literal

import pydantic

from fivefold.config import Config
from fivefold.data.curate.config import EngineConfig, ExtractConfig, Share
from fivefold.errors import ConfigError

Variant = Literal[
    "ordinal",
    "from_end",
    "attribute",
    "version",
    "pair",
    "structured",
    "absent",
    "language",
    "tool",
    "paraphrase",
    "user_turn",
]
"""What the last request of a conversation asks for; `ordinal` is MRCR's own."""

VARIANTS: tuple[Variant, ...] = (
    "from_end",
    "attribute",
    "version",
    "pair",
    "structured",
    "absent",
    "language",
    "tool",
    "paraphrase",
    "user_turn",
)
"""The ten that differ from MRCR's own."""


class ModelSource(Config):
    """The model that scores tokens, brought in from outside; see `scorer.TokenModel`."""

    checkpoint: str = ""
    """Directory of the model and its tokenizer; empty: no model, nothing is scored."""
    factory: str = "fivefold.serve.token_model:open_checkpoint"
    """`MODULE:FUNCTION` that opens the directory and returns a `TokenModel`; ours by default."""


class IndexConfig(Config):
    """Chunks of all documents and the vectors by which similar ones are found."""

    chunk_tokens: int = pydantic.Field(default=512, ge=16)
    """Tokens of a chunk at most; NExtLong: 2,048 characters."""
    dimensions: int = pydantic.Field(default=1024, ge=64)
    """Width of the vectors: cosines of hashed vectors err by about 1/sqrt of it."""
    max_document_share: Share = 0.25
    """Words in more than this share of the chunks say nothing and are left out."""


class NaturalConfig(Config):
    """Documents that are long by themselves."""

    min_tokens: int = pydantic.Field(default=8_000, ge=1)
    """Tokens from which on a document is long."""
    max_self_overlap: Share = 0.3
    """Share of n-grams that stood in the document before: tables and logs are not long texts."""
    overlap_words: int = pydantic.Field(default=13, ge=1)
    """Words of such an n-gram."""
    perplexity_tails: Share = 0.02
    """Share of the long documents that goes at either end of bits per byte, if there is a model."""
    scored_windows: int = pydantic.Field(default=3, ge=1)
    """Windows of the model's context, evenly spread, whose bits are measured."""


class NextLongConfig(Config):
    """NExtLong: each part of a root is followed by hard negatives of other documents."""

    min_root_tokens: int = pydantic.Field(default=1_024, ge=1)
    """Tokens that a root must have."""
    root_share: Share = 0.5
    """Most of the context that the root may fill; a longer one is cut."""
    max_similarity: Share = 0.97
    """Cosine to a chunk of the root above which a chunk is a copy and no negative."""
    min_similarity: Share = 0.05
    """Cosine below which a chunk is no hard negative."""
    max_roots: int = pydantic.Field(default=400, ge=0)
    """Roots at most, chosen by the hash of their ids."""


class EntropyLongConfig(Config):
    """EntropyLong: contexts that lower the entropy where the model was uncertain; needs a model."""

    root_tokens: int = pydantic.Field(default=2_048, ge=64)
    """Tokens of a root: a longer document is cut. Root and chunk must fit the model's context."""
    min_root_tokens: int = pydantic.Field(default=256, ge=64)
    """Tokens that a root must have."""
    deviations: float = pydantic.Field(default=2.0, gt=0)
    """A position is uncertain when its entropy exceeds the root's mean by so many standard
    deviations (the paper's alpha)."""
    skipped_tokens: int = pydantic.Field(default=64, ge=1)
    """First tokens of a root, always uncertain, that are left out; ours."""
    apart_tokens: int = pydantic.Field(default=16, ge=1)
    """Of uncertain positions nearer than this, the most uncertain one counts; ours."""
    max_positions: int = pydantic.Field(default=32, ge=1)
    """Positions of a root at most, the most uncertain ones; ours."""
    window_tokens: int = pydantic.Field(default=16, ge=1)
    """Tokens before and after a position that make its query (the paper's w)."""
    candidates: int = pydantic.Field(default=8, ge=1)
    """Chunks looked at for a position (the paper's K)."""
    chunk_tokens: int = pydantic.Field(default=512, ge=16)
    """Tokens of a candidate at most; a longer chunk is cut."""
    min_gain: float = pydantic.Field(default=0.4, gt=0, lt=1)
    """Share of the entropy by which a chunk must lower it (the paper's epsilon)."""
    max_similarity: Share = 0.97
    """Cosine to a chunk of the root above which a chunk is a copy, which would answer anything."""
    max_roots: int = pydantic.Field(default=100, ge=0)
    """Roots at most, chosen by the hash of their ids: each takes some dozen forward passes."""


class InterleaveConfig(Config):
    """Similar documents, cut into blocks and riffled into one sequence."""

    block_tokens: int = pydantic.Field(default=512, ge=16)
    """Tokens of a block at most."""
    min_documents: int = pydantic.Field(default=3, ge=2)
    """Documents that a sequence needs."""
    max_documents: int = pydantic.Field(default=8, ge=2)
    """Documents of a sequence at most; each gets an equal share of the context."""
    min_similarity: Share = 0.3
    """Cosine from which on documents are similar."""
    max_similarity: Share = 0.95
    """Cosine above which they are copies."""
    header_share: Share = 0.5
    """Probability that a block says from which document it is, where the document changes."""

    @pydantic.model_validator(mode="after")
    def _check_documents(self) -> "InterleaveConfig":
        if self.min_documents > self.max_documents:
            raise ConfigError(
                expected="`interleave.min_documents` of at most `max_documents`",
                found=f"{self.min_documents} above {self.max_documents}",
                fix="Lower `min_documents`",
            )
        return self


class MrcrConfig(Config):
    """Conversations with several answers to the same request, of which one is asked for."""

    variants: tuple[Variant, ...] = ("ordinal", *VARIANTS)
    """Kinds of conversation, in turn."""
    needles: tuple[int, ...] = (2, 4, 8)
    """Equal requests in a conversation, in turn; MRCR: 2, 4 and 8."""
    conversations: int = pydantic.Field(default=132, ge=0)
    """How many: every variant with every number of needles as often as it goes."""
    min_passage_characters: int = pydantic.Field(default=200, ge=40)
    """Characters of an answer at least."""
    max_passage_characters: int = pydantic.Field(default=1_200, ge=80)
    """Characters of an answer at most."""

    @pydantic.model_validator(mode="after")
    def _check_counts(self) -> "MrcrConfig":
        if not self.variants or not self.needles or min(self.needles) < 2:
            raise ConfigError(
                expected="a variant, and numbers of needles of at least 2",
                found=f"{len(self.variants)} variants, needles {self.needles}",
                fix="Correct `mrcr.variants` and `mrcr.needles`",
            )
        return self


class RepositoryConfig(Config):
    """Files of one repository in one sequence, what is used before what uses it."""

    min_files: int = pydantic.Field(default=2, ge=2)
    """Files that a pack needs."""
    max_file_share: Share = 0.5
    """Most of the context that one file may fill; a longer one is left out."""


class LongConfig(EngineConfig):
    """The whole recipe; None leaves a method out."""

    extract: ExtractConfig = ExtractConfig()
    """Read raw pages as text; documents pass through."""
    context_tokens: int = pydantic.Field(default=32_768, ge=256)
    """Context of the sequences; 32K, 128K and 200K in the GLM-5 report."""
    min_fill: Share = 0.5
    """Share of the context that a synthetic sequence must fill."""
    tokenizer: str = ""
    """Directory of the tokenizer that measures; empty: that of the model, else characters."""
    characters_per_token: float = pydantic.Field(default=4.0, gt=0)
    """Used where there is no tokenizer."""
    model: ModelSource = ModelSource()
    """What scores tokens, for EntropyLong and the perplexity of natural documents."""
    index: IndexConfig = IndexConfig()
    """Chunks and vectors."""
    natural: NaturalConfig | None = NaturalConfig()
    """Keep long documents."""
    nextlong: NextLongConfig | None = NextLongConfig()
    """Hard negatives between the parts of a root."""
    entropylong: EntropyLongConfig | None = EntropyLongConfig()
    """Verified contexts; left out, with a warning, where there is no model."""
    interleave: InterleaveConfig | None = InterleaveConfig()
    """Riffled similar documents."""
    mrcr: MrcrConfig | None = MrcrConfig()
    """Conversations with needles."""
    repository: RepositoryConfig | None = RepositoryConfig()
    """Repositories, from documents whose language is one of programming."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of every choice."""
