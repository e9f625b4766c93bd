"""A complete GLM-5-shaped model in minutes on two CPU cores.

Real text from packages of documentation, essays and manuals; a tokenizer; packed rows; pre-training
dense with next-token and threefold MTP loss under Muon Split. The first file to read: every stage
of the run stands here with what it needs. Start at `fivefold run nano`.
"""

from fivefold.data.config import CorpusConfig, TokenizerTrainingConfig, TokensConfig
from fivefold.data.stages import CorpusStage, TokenizerStage, TokensStage
from fivefold.models.preset import preset
from fivefold.stage import Stage
from fivefold.text.config import TokenizerConfig
from fivefold.train.config import PretrainConfig
from fivefold.train.stages import PretrainStage


def nano() -> list[Stage]:
    """Return the stages: corpus -> tokenizer -> tokens -> pretrain."""
    shape = preset("nano")
    return [
        CorpusStage("corpus", CorpusConfig(max_bytes_per_source=3_000_000)),
        TokenizerStage(
            "tokenizer",
            TokenizerTrainingConfig(tokenizer=TokenizerConfig(vocab_size=shape.vocab_size)),
            needs={"corpus": "corpus"},
        ),
        TokensStage(
            "tokens",
            TokensConfig(contexts=(256,)),
            needs={"corpus": "corpus", "tokenizer": "tokenizer"},
        ),
        PretrainStage(
            "pretrain",
            PretrainConfig(
                model=shape,
                context_tokens=256,
                total_tokens=2_000_000,
                # Muon's updates have a fixed size, so a short run wants far larger rates than
                # GLM-5's over 27T tokens; found by a sweep, see docs/log.md.
                peak_lr=1.5e-2,
                final_lr=1.5e-3,
                router_bias_rate=0.01,
                warmup_fraction=0.02,
                batch_rows=16,
                batch_rows_start=8,
                batch_warmup_fraction=0.05,
                microbatch_rows=8,
                validation_steps=40,
                checkpoint_steps=40,
            ),
            needs={"tokens": "tokens", "tokenizer": "tokenizer"},
        ),
    ]
