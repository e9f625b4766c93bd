"""The published shape with the published schedule: for planning, conversion and clusters.

Pre-training on 27T tokens at 4,096 tokens of context, learning rate 0 -> 2e-4 -> 4e-5 (GLM-5
report, section 2.4), batch 16M -> 64M tokens over the first 500B (GLM-4.5 report, section 2.4).
"""

from fivefold.data.config import CorpusConfig, TokenizerTrainingConfig, TokensConfig
from fivefold.data.stages import CorpusStage, TokenizerStage, TokensStage
from fivefold.models.preset import preset
from fivefold.stage import Stage
from fivefold.text.config import TokenizerConfig
from fivefold.train.config import PretrainConfig
from fivefold.train.stages import PretrainStage

_CONTEXT = 4096


def glm5() -> list[Stage]:
    """Return the stages: corpus -> tokenizer -> tokens -> pretrain."""
    shape = preset("glm5")
    total_tokens = 27 * 10**12
    return [
        CorpusStage("corpus", CorpusConfig()),
        TokenizerStage(
            "tokenizer",
            TokenizerTrainingConfig(tokenizer=TokenizerConfig(vocab_size=shape.vocab_size)),
            needs={"corpus": "corpus"},
        ),
        TokensStage(
            "tokens",
            TokensConfig(contexts=(_CONTEXT,)),
            needs={"corpus": "corpus", "tokenizer": "tokenizer"},
        ),
        PretrainStage(
            "pretrain",
            PretrainConfig(
                model=shape,
                context_tokens=_CONTEXT,
                total_tokens=total_tokens,
                batch_rows=64 * 2**20 // _CONTEXT,
                batch_rows_start=16 * 2**20 // _CONTEXT,
                batch_warmup_fraction=500e9 / total_tokens,
                microbatch_rows=1,
            ),
            needs={"tokens": "tokens", "tokenizer": "tokenizer"},
        ),
    ]
