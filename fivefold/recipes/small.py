"""GLM-4.7-Flash's proportions cut to one accelerator: hours, not minutes.

Data and pre-training at 4,096 tokens of context. The packages hold some 15M tokens, far fewer than
the 2B that it trains on: give it text of your own with `corpus.files` and `corpus.repositories`.
`fivefold plan small` states its cost.
"""

from fivefold.data.config import TokenizerTrainingConfig, TokensConfig
from fivefold.data.corpus_config import CurateStageConfig
from fivefold.data.corpus_stage import CurateStage
from fivefold.data.stages import TokenizerStage, TokensStage
from fivefold.models.preset import preset
from fivefold.stage import Stage
from fivefold.text.config import TokenizerConfig
from fivefold.train.config import PretrainConfig
from fivefold.train.stages import PretrainStage


def small() -> list[Stage]:
    """Return the stages: corpus -> tokenizer -> tokens -> pretrain."""
    shape = preset("small")
    return [
        CurateStage("corpus", CurateStageConfig()),
        TokenizerStage(
            "tokenizer",
            TokenizerTrainingConfig(tokenizer=TokenizerConfig(vocab_size=shape.vocab_size)),
            needs={"corpus": "corpus"},
        ),
        TokensStage(
            "tokens",
            TokensConfig(contexts=(4096,)),
            needs={"corpus": "corpus", "tokenizer": "tokenizer"},
        ),
        PretrainStage(
            "pretrain",
            PretrainConfig(
                model=shape,
                context_tokens=4096,
                total_tokens=2_000_000_000,
                compute_dtype="bfloat16",
                peak_lr=2e-3,
                final_lr=2e-4,
                batch_rows=64,
                batch_rows_start=16,
                microbatch_rows=4,
                validation_steps=200,
                checkpoint_steps=200,
            ),
            needs={"tokens": "tokens", "tokenizer": "tokenizer"},
        ),
    ]
