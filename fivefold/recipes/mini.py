"""Five times nano, in about an hour and a half on one CPU core: sparse attention at 2,048 tokens.

The same chain as `nano` up to the adaptation, on a model of 14M parameters with bf16 matrix
products: large enough for the table of `docs/experiments/dsa.md` to mean something, small enough
to repeat it overnight with other seeds.
"""

from fivefold.data.config import (
    MixtureConfig,
    PlantedConfig,
    TokenizerTrainingConfig,
    TokensConfig,
)
from fivefold.data.corpus_stage import CurateStage
from fivefold.data.stages import TokenizerStage, TokensStage
from fivefold.models.preset import preset
from fivefold.recipes.nano import curation
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

_SHAPE = preset("mini")
_DATA = {"tokens": "tokens", "tokenizer": "tokenizer"}
_CONTEXTS = (512, 1024, 2048)
_MIXTURES = tuple(
    MixtureConfig(shares={"long": long, "planted": 0.2}, max_epochs=4) for long in (0.25, 0.35)
)
"""Of the two phases of mid-training: long pieces are up-sampled as the context grows."""
_SPARSE_TOKENS = 400_000
_SPARSE_LR = 7.5e-4


def mini() -> list[Stage]:
    """Return the stages: corpus -> tokenizer -> tokens -> pretrain -> midtrain -> adapt_dsa.

    `dense_control` trains on, dense, for as many tokens as the adaptation does sparsely.
    """
    return [
        # nano's recipe on all of its packages.
        CurateStage("corpus", curation().model_copy(update={"max_bytes_per_source": None})),
        TokenizerStage(
            "tokenizer",
            TokenizerTrainingConfig(tokenizer=TokenizerConfig(vocab_size=_SHAPE.vocab_size)),
            needs={"corpus": "corpus"},
        ),
        TokensStage(
            "tokens",
            TokensConfig(
                contexts=_CONTEXTS,
                long_contexts=_CONTEXTS[1:],
                planted=PlantedConfig(contexts=_CONTEXTS[1:]),
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
    ]


def _pretrain() -> PretrainConfig:
    return PretrainConfig(
        model=_SHAPE,
        context_tokens=_CONTEXTS[0],
        total_tokens=2_400_000,
        peak_lr=1.5e-2,
        final_lr=3e-3,
        router_bias_rate=0.01,
        warmup_fraction=0.02,
        batch_rows=16,
        batch_rows_start=8,
        batch_warmup_fraction=0.05,
        microbatch_rows=8,
        compute_dtype="bfloat16",
    )


def _midtrain() -> MidtrainConfig:
    phases = tuple(
        PhaseConfig(
            context_tokens=context,
            share=0.5,
            batch_rows=8192 // context,
            microbatch_rows=4096 // context,
            rope_theta=rope_theta,
            mixture=mixture,
        )
        for context, rope_theta, mixture in zip(
            _CONTEXTS[1:], (20_000, 50_000), _MIXTURES, strict=True
        )
    )
    return MidtrainConfig(
        total_tokens=1_000_000,
        kind="linear",
        peak_lr=3e-3,
        final_lr=_SPARSE_LR,
        warmup_fraction=0.02,
        mtp_weight=0.1,
        router_bias_rate=0.0,
        phases=phases,
        compute_dtype="bfloat16",
        sample_count=2,
    )


def _dense_control() -> MidtrainConfig:
    phase = PhaseConfig(
        context_tokens=_CONTEXTS[-1],
        share=1.0,
        batch_rows=4,
        microbatch_rows=2,
        rope_theta=50_000,
        mixture=_MIXTURES[-1],
    )
    return MidtrainConfig(
        total_tokens=_SPARSE_TOKENS,
        kind="constant",
        peak_lr=_SPARSE_LR,
        mtp_weight=0.1,
        router_bias_rate=0.0,
        phases=(phase,),
        compute_dtype="bfloat16",
        sample_count=0,
    )


def _adapt_dsa() -> AdaptDsaConfig:
    part = {
        "batch_rows": 4,
        "batch_rows_start": 4,
        "microbatch_rows": 2,
        "mtp_weight": 0.1,
        "router_bias_rate": 0.0,
        "validation_rows": 32,
        "compute_dtype": "bfloat16",
    }
    return AdaptDsaConfig(
        context_tokens=_CONTEXTS[-1],
        index_topk=_SHAPE.index_topk,
        mixture=_MIXTURES[-1],
        warm_up=GradientConfig(
            total_tokens=400_000,
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
