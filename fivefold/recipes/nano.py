"""A complete GLM-5-shaped model in minutes on two CPU cores.

Real text: documentation, essays and manuals curated by DCLM's recipe, code of installed packages
with fill in the middle, long sequences of hard negatives and of riffled documents; a tokenizer;
rows packed by source and mixed along training; pre-training dense with next-token and threefold MTP
loss under Muon Split; mid-training to four times the context; adaptation to sparse attention; then,
in `nano_post`, fine-tuning, reinforcement learning and distillation. The first file to read: every
stage up to the base model stands here with what it needs. Start it with `fivefold run nano`, or
only this half with `--until adapt_dsa`.
"""

from fivefold.data.code.config import CodeConfig, SamplingConfig, TierConfig
from fivefold.data.config import (
    MixtureConfig,
    PlantedConfig,
    TokenizerTrainingConfig,
    TokensConfig,
)
from fivefold.data.corpus_config import CurateStageConfig, OwnClassifierConfig
from fivefold.data.corpus_stage import CurateStage
from fivefold.data.curate.config import ClassifierTrainingConfig, CurateConfig, LanguageConfig
from fivefold.data.long.config import IndexConfig, LongConfig, NextLongConfig
from fivefold.data.stages import TokenizerStage, TokensStage
from fivefold.models.preset import preset
from fivefold.recipes.nano_post import post_training
from fivefold.stage import Stage
from fivefold.text.config import TokenizerConfig
from fivefold.train.config import (
    AdaptDsaConfig,
    GradientConfig,
    MidtrainConfig,
    PhaseConfig,
    PretrainConfig,
)
from fivefold.train.stages import AdaptDsaStage, MidtrainStage, PretrainStage

_SHAPE = preset("nano")
_DATA = {"tokens": "tokens", "tokenizer": "tokenizer"}
_PACKAGES = tuple(
    f"package:{name}"
    for name in ("fastapi", "h11", "httpx", "jinja2", "markupsafe", "rich", "starlette")
)
"""Code that is there wherever Fivefold runs: packages that it depends on, some of them small, for
code is held out by whole repositories."""


def _mixture(long: float) -> MixtureConfig:
    """Return a mixture of so many long pieces; nothing is seen more than four times.

    arXiv:2305.16264 finds up to four passes nearly as good as new text.
    """
    return MixtureConfig(shares={"long": long, "planted": 0.2}, max_epochs=4)


# Long pieces are up-sampled as the context grows (GLM-5 report, section 2.3).
_LONG_MIXTURE, _LONGEST_MIXTURE = _mixture(0.25), _mixture(0.35)


def nano() -> list[Stage]:
    """Return the stages: corpus -> tokenizer -> tokens -> pretrain -> midtrain -> adapt_dsa -> ...

    What follows is in `nano_post`. `dense_control` trains the mid-trained model on, dense, for as
    many tokens as the adaptation does sparsely: what sparse attention costs in quality is the
    difference.
    """
    return [
        CurateStage("corpus", curation()),
        TokenizerStage(
            "tokenizer",
            TokenizerTrainingConfig(tokenizer=TokenizerConfig(vocab_size=_SHAPE.vocab_size)),
            needs={"corpus": "corpus"},
        ),
        TokensStage(
            "tokens",
            TokensConfig(
                contexts=(256, 512, 1024),
                mixture=MixtureConfig(max_epochs=4),
                long_contexts=(512, 1024),
                planted=PlantedConfig(contexts=(512, 1024)),
            ),
            needs={"corpus": "corpus", "tokenizer": "tokenizer"},
        ),
        PretrainStage("pretrain", _pretrain(), needs=_DATA),
        MidtrainStage("midtrain", _midtrain(), needs={"start": "pretrain", **_DATA}),
        MidtrainStage("dense_control", _dense_control(), needs={"start": "midtrain", **_DATA}),
        AdaptDsaStage(
            "adapt_dsa",
            _adapt_dsa(),
            needs={"start": "midtrain", "control": "dense_control", **_DATA},
        ),
        *post_training(),
    ]


def curation() -> CurateStageConfig:
    """Return what the corpus is made of: about a minute's work, all of it recipes of their own."""
    return CurateStageConfig(
        max_bytes_per_source=8_000_000,
        profile_repositories=_PACKAGES,
        dclm_baseline=CurateConfig(
            # Languages are named and all kept: one's own text may be of any.
            language=LanguageConfig(keep=()),
            tasks=4,
            workers=2,
        ),
        classifier=OwnClassifierConfig(
            positive=("anarchism", "debian-reference-en"),
            # Some hundred pages instead of DCLM's 400,000: more passes at a higher rate.
            training=ClassifierTrainingConfig(
                dim=20,
                epochs=25,
                learning_rate=0.5,
                buckets=50_000,
                max_characters=4_000,
                heldout_share=0.2,
            ),
        ),
        glm5_code=CodeConfig(
            # Each file once, the worst left out: the mixture repeats text, and few files make no
            # classifier.
            tiers=TierConfig(high_epochs=1.0),
            sampling=SamplingConfig(temperature=1.0, min_share=0.0),
            classifier=None,
            issues=None,
            tasks=2,
            workers=2,
        ),
        midtrain_long=LongConfig(
            context_tokens=1024,
            characters_per_token=3.0,
            index=IndexConfig(chunk_tokens=128),
            nextlong=NextLongConfig(min_root_tokens=256),
            natural=None,
            entropylong=None,
            mrcr=None,
            repository=None,
            tasks=2,
            workers=2,
        ),
        long_bytes=1_500_000,
    )


def _pretrain() -> PretrainConfig:
    return PretrainConfig(
        model=_SHAPE,
        context_tokens=256,
        total_tokens=1_500_000,
        # Muon's updates have a fixed size, so a short run wants far larger rates than GLM-5's over
        # 27T tokens; found by a sweep, see docs/log.md.
        peak_lr=1.5e-2,
        final_lr=3e-3,
        router_bias_rate=0.01,
        warmup_fraction=0.02,
        batch_rows=16,
        batch_rows_start=8,
        batch_warmup_fraction=0.05,
        microbatch_rows=8,
        validation_steps=40,
        checkpoint_steps=40,
    )


def _midtrain() -> MidtrainConfig:
    return MidtrainConfig(
        total_tokens=300_000,
        kind="linear",
        peak_lr=3e-3,
        final_lr=7.5e-4,
        warmup_fraction=0.02,
        batch_rows=8,
        batch_rows_start=8,
        mtp_weight=0.1,
        router_bias_rate=0.0,
        phases=(
            PhaseConfig(
                context_tokens=512,
                share=0.5,
                batch_rows=8,
                microbatch_rows=4,
                rope_theta=20_000,
                mixture=_LONG_MIXTURE,
            ),
            PhaseConfig(
                context_tokens=1024,
                share=0.5,
                batch_rows=4,
                microbatch_rows=2,
                rope_theta=50_000,
                mixture=_LONGEST_MIXTURE,
            ),
        ),
        validation_steps=40,
        checkpoint_steps=40,
        sample_count=2,
    )


_SPARSE_TOKENS = 120_000
_SPARSE_LR = 7.5e-4


def _dense_control() -> MidtrainConfig:
    phase = PhaseConfig(
        context_tokens=1024,
        share=1.0,
        batch_rows=4,
        microbatch_rows=2,
        rope_theta=50_000,
        mixture=_LONGEST_MIXTURE,
    )
    return MidtrainConfig(
        total_tokens=_SPARSE_TOKENS,
        kind="constant",
        peak_lr=_SPARSE_LR,
        mtp_weight=0.1,
        router_bias_rate=0.0,
        phases=(phase,),
        validation_steps=40,
        checkpoint_steps=40,
        sample_count=0,
    )


def _adapt_dsa() -> AdaptDsaConfig:
    part = {
        "batch_rows": 4,
        "batch_rows_start": 4,
        "microbatch_rows": 2,
        "mtp_weight": 0.1,
        "router_bias_rate": 0.0,
        "validation_steps": 40,
        "validation_rows": 16,
        "checkpoint_steps": 40,
    }
    return AdaptDsaConfig(
        context_tokens=1024,
        index_topk=_SHAPE.index_topk,
        mixture=_LONGEST_MIXTURE,
        warm_up=GradientConfig(
            total_tokens=120_000,
            kind="linear",
            # Muon's updates have a fixed size: GLM-5's 5e-3 over 1,000 steps is too little for 30.
            peak_lr=4e-2,
            final_lr=2e-3,
            warmup_fraction=0.05,
            sample_count=0,
            **part,
        ),
        sparse=GradientConfig(
            total_tokens=_SPARSE_TOKENS,
            kind="constant",
            peak_lr=_SPARSE_LR,
            sample_count=2,
            **part,
        ),
    )
