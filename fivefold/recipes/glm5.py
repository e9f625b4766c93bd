"""The published shape with the published schedule: for planning, conversion and clusters.

Pre-training on 27T tokens at 4,096 tokens of context, learning rate 0 -> 2e-4 -> 4e-5, batch 16M ->
64M tokens over the first 500B; mid-training 4e-5 -> 1e-5 at 32K (1T tokens), 128K (500B) and
202,752 (50B); adaptation to sparse attention with a warm-up of 1000 steps of 14 rows, 5e-3 -> 2e-4,
then 20B tokens at 1e-5. Sources: GLM-5 report, sections 2.1.1 and 2.4; GLM-4.5 report, section 2.4,
for the batch. Assumed: mid-training keeps 64M tokens a step; the rotary base is the released one;
the shares of long documents.
"""

from fivefold.data.config import MixtureConfig, TokenizerTrainingConfig, TokensConfig
from fivefold.data.corpus_config import CurateStageConfig
from fivefold.data.corpus_stage import CurateStage
from fivefold.data.long.config import LongConfig
from fivefold.data.stages import TokenizerStage, TokensStage
from fivefold.models.preset import preset
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

_SHAPE = preset("glm5")
_DATA = {"tokens": "tokens", "tokenizer": "tokenizer"}
_STEP_TOKENS = 64 * 2**20
_CONTEXT = 4096
_MIDTRAIN = {32_768: 10**12, 131_072: 500 * 10**9, 202_752: 50 * 10**9}
"""Tokens at each context of mid-training."""
_LONG_SHARES = {32_768: 0.2, 131_072: 0.35, 202_752: 0.5}
"""Share of long pieces and sequences at each context; the report only says that it grows."""
_MAX_EPOCHS = 4
"""Most passes over any source and tier; ours, after arXiv:2305.16264."""


def glm5() -> list[Stage]:
    """Return the stages: corpus -> tokenizer -> tokens -> pretrain -> midtrain -> adapt_dsa."""
    return [
        CurateStage("corpus", CurateStageConfig(midtrain_long=LongConfig())),
        TokenizerStage(
            "tokenizer",
            TokenizerTrainingConfig(tokenizer=TokenizerConfig(vocab_size=_SHAPE.vocab_size)),
            needs={"corpus": "corpus"},
        ),
        TokensStage(
            "tokens",
            TokensConfig(
                contexts=(_CONTEXT, *_MIDTRAIN),
                long_contexts=tuple(_MIDTRAIN),
                mixture=MixtureConfig(max_epochs=_MAX_EPOCHS),
            ),
            needs={"corpus": "corpus", "tokenizer": "tokenizer"},
        ),
        PretrainStage("pretrain", _pretrain(), needs=_DATA),
        MidtrainStage("midtrain", _midtrain(), needs={"start": "pretrain", **_DATA}),
        AdaptDsaStage("adapt_dsa", _adapt_dsa(), needs={"start": "midtrain", **_DATA}),
    ]


def _pretrain() -> PretrainConfig:
    total_tokens = 27 * 10**12
    return PretrainConfig(
        model=_SHAPE,
        context_tokens=_CONTEXT,
        total_tokens=total_tokens,
        peak_lr=2e-4,
        final_lr=4e-5,
        batch_rows=_STEP_TOKENS // _CONTEXT,
        batch_rows_start=_STEP_TOKENS // 4 // _CONTEXT,
        batch_warmup_fraction=500e9 / total_tokens,
        microbatch_rows=1,
        compute_dtype="bfloat16",
    )


def _midtrain() -> MidtrainConfig:
    total_tokens = sum(_MIDTRAIN.values())
    phases = [
        PhaseConfig(
            context_tokens=context,
            share=tokens / total_tokens,
            batch_rows=_STEP_TOKENS // context,
            microbatch_rows=1,
            rope_theta=_SHAPE.rope_theta,
            mixture=MixtureConfig(shares={"long": _LONG_SHARES[context]}, max_epochs=_MAX_EPOCHS),
        )
        for context, tokens in _MIDTRAIN.items()
    ]
    return MidtrainConfig(
        total_tokens=total_tokens,
        kind="linear",
        peak_lr=4e-5,
        final_lr=1e-5,
        warmup_fraction=0.0,
        mtp_weight=0.1,
        router_bias_rate=0.0,
        microbatch_rows=1,
        compute_dtype="bfloat16",
        recompute=True,
        phases=tuple(phases),
    )


def _adapt_dsa() -> AdaptDsaConfig:
    context, rows = 202_752, 14
    part = {
        "batch_rows": rows,
        "batch_rows_start": rows,
        "microbatch_rows": 1,
        "compute_dtype": "bfloat16",
        "mtp_weight": 0.1,
        "router_bias_rate": 0.0,
    }
    return AdaptDsaConfig(
        context_tokens=context,
        index_topk=_SHAPE.index_topk,
        warm_up=GradientConfig(
            total_tokens=1000 * rows * context,
            kind="linear",
            peak_lr=5e-3,
            final_lr=2e-4,
            warmup_fraction=0.0,
            sample_count=0,
            **part,
        ),
        sparse=GradientConfig(
            total_tokens=20 * 10**9,
            kind="constant",
            peak_lr=1e-5,
            warmup_fraction=0.0,
            recompute=True,
            **part,
        ),
    )
