"""Config of the corpus stage: which text, and which recipe of curation makes what of it.

A field that bears a recipe's name holds that recipe's config, or None to leave it out;
`corpus_stage.recipe_table` says what each reads.
"""

import pydantic

from fivefold.config import Config, Runtime
from fivefold.data.code.config import CodeConfig
from fivefold.data.config import CorpusConfig
from fivefold.data.curate.config import ClassifierTrainingConfig, CurateConfig, Share
from fivefold.data.long.config import LongConfig
from fivefold.data.maths.config import MathsConfig
from fivefold.data.web.config import WebConfig
from fivefold.errors import ConfigError


class OwnClassifierConfig(Config):
    """A quality classifier that the stage trains on its own pages before it selects with it."""

    positive: tuple[str, ...] = pydantic.Field(min_length=1)
    """Sources whose distinct pages are good; those of all others are what they are told from."""
    keep_share: Share = 0.9
    """Share of pages that stay, the best ones (DCLM-Baseline: 0.1, of a far larger pool)."""
    training: ClassifierTrainingConfig = ClassifierTrainingConfig(dim=20, max_characters=4_000)
    """How it is trained; narrow and short, so that it takes seconds."""


class CurateStageConfig(CorpusConfig):
    """Pages and repositories, the recipes that curate them, and the split of what they keep."""

    profile_repositories: tuple[str, ...] = ()
    """Repositories that go with a profile of packages, as `fivefold data run glm5_code` takes
    them; empty: the running Python's own library, where the profile has it."""
    repositories: tuple[str, ...] = ()
    """Repositories of one's own, beside any pages."""
    dclm_baseline: CurateConfig | None = CurateConfig()
    """Pages to documents."""
    classifier: OwnClassifierConfig | None = None
    """The last step of `dclm_baseline`, trained here; left out where no page is of its sources."""
    glm5_web: WebConfig | None = None
    """Pages to documents in tiers."""
    glm5_math: MathsConfig | None = None
    """Pages of maths and science to documents in tiers."""
    glm5_code: CodeConfig | None = CodeConfig()
    """Repositories to texts and issue sequences."""
    midtrain_long: LongConfig | None = None
    """Training documents to long sequences, for the source `long` of a mixture."""
    long_bytes: int | None = pydantic.Field(default=None, gt=0)
    """UTF-8 bytes of training documents, by the hash of their ids, that those are made of; None:
    all."""
    public_benchmarks: tuple[str, ...] = ()
    """The public benchmarks in the cache, where a recipe keeps those out: the stage itself says
    which, so that another one that is fetched makes another corpus."""
    work_dir: Runtime[str] = ""
    """Directory of the recipes' own stages, kept between runs, so that a changed config redoes only
    what is downstream; empty: inside the stage's output, and removed at its end."""

    @pydantic.model_validator(mode="after")
    def _check_classifier(self) -> "CurateStageConfig":
        pages = self.dclm_baseline
        if self.classifier and (pages is None or pages.classifier):
            raise ConfigError(
                expected="`classifier` with a `dclm_baseline` that has none of its own",
                found="no `dclm_baseline`" if pages is None else "a model in it",
                fix="Leave one of them out",
            )
        return self
