"""A complete GLM-5-shaped model in minutes on two CPU cores.

Real text from packages of documentation, essays and manuals; a tokenizer; packed rows; pre-training
dense with next-token and threefold MTP loss under Muon Split; mid-training to four times the
context; adaptation to sparse attention; then, in `nano_post`, fine-tuning, reinforcement learning
and distillation. The first file to read: every stage up to the base model stands here with what it
needs. Start it with `fivefold run nano`, or only this half with `--until adapt_dsa`.
"""

from fivefold.data.config import (
    CorpusConfig,
    MixtureConfig,
    PlantedConfig,
    TokenizerTrainingConfig,
    TokensConfig,
)
from fivefold.data.stages import CorpusStage, TokenizerStage, TokensStage
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
_LONG_MIXTURE = MixtureConfig(shares={"long": 0.3, "planted": 0.2})


def nano() -> list[Stage]:
    """Return the stages: corpus -> tokenizer -> tokens -> pretrain -> midtrain -> adapt_dsa -> ...

    What follows is in `nano_post`. `dense_control` trains the mid-trained model on, dense, for as
    many tokens as the adaptation does sparsely: what sparse attention costs in quality is the
    difference.
    """
    return [
        CorpusStage("corpus", CorpusConfig(max_bytes_per_source=3_000_000)),
        TokenizerStage(
            "tokenizer",
            TokenizerTrainingConfig(tokenizer=TokenizerConfig(vocab_size=_SHAPE.vocab_size)),
            needs={"corpus": "corpus"},
        ),
        TokensStage(
            "tokens",
            TokensConfig(
                contexts=(256, 512, 1024),
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


def _pretrain() -> PretrainConfig:
    return PretrainConfig(
        model=_SHAPE,
        context_tokens=256,
        total_tokens=1_600_000,
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
        total_tokens=600_000,
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
                mixture=_LONG_MIXTURE,
            ),
        ),
        validation_steps=40,
        checkpoint_steps=40,
        sample_count=2,
    )


_SPARSE_TOKENS = 300_000
_SPARSE_LR = 7.5e-4


def _dense_control() -> MidtrainConfig:
    phase = PhaseConfig(
        context_tokens=1024,
        share=1.0,
        batch_rows=4,
        microbatch_rows=2,
        rope_theta=50_000,
        mixture=_LONG_MIXTURE,
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
        "validation_rows": 32,
        "checkpoint_steps": 40,
    }
    return AdaptDsaConfig(
        context_tokens=1024,
        index_topk=_SHAPE.index_topk,
        mixture=_LONG_MIXTURE,
        warm_up=GradientConfig(
            total_tokens=200_000,
            kind="linear",
            # Muon's updates have a fixed size: GLM-5's 5e-3 over 1,000 steps is too little for 50.
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
