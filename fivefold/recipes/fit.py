"""Do the stages of a recipe fit each other? Checked before the first of them runs.

Each config checks itself; what one stage makes and another needs is seen here alone, so that a
mistake shows in `plan` and at the start of `run` instead of after the hours between the two.
"""

from collections.abc import Sequence

from fivefold.data.config import TokenizerTrainingConfig, TokensConfig
from fivefold.errors import ConfigError
from fivefold.stage import Stage
from fivefold.train.config import AdaptDsaConfig, MidtrainConfig, PretrainConfig


def check_fit(stages: Sequence[Stage]) -> None:
    """Compare vocabularies, contexts and the indexer over all stages.

    Raises:
        ConfigError: a stage asks for what an earlier one does not make.
    """
    packed = {c for s in stages if isinstance(s.config, TokensConfig) for c in s.config.contexts}
    models = [s.config.model for s in stages if isinstance(s.config, PretrainConfig)]
    for stage in stages:
        for context in _contexts(stage):
            if packed and context not in packed:
                raise _unfit(stage, f"a context among `tokens.contexts` {sorted(packed)}", context)
            longest = min((model.max_position_embeddings for model in models), default=context)
            if context > longest:
                raise _unfit(
                    stage, f"contexts up to `max_position_embeddings` ({longest})", context
                )
        rows = min((model.vocab_size for model in models), default=None)
        if isinstance(stage.config, TokenizerTrainingConfig) and rows is not None:
            ids = stage.config.tokenizer.vocab_size
            if ids > rows:
                raise _unfit(stage, f"at most the model's `vocab_size` of {rows} ids", ids)
        is_adapted = isinstance(stage.config, AdaptDsaConfig)
        if is_adapted and not all(model.has_indexer for model in models):
            raise _unfit(stage, "a model with an indexer", "`index_n_heads` null")


def _contexts(stage: Stage) -> list[int]:
    if isinstance(stage.config, PretrainConfig | AdaptDsaConfig):
        return [stage.config.context_tokens]
    if isinstance(stage.config, MidtrainConfig):
        return [phase.context_tokens for phase in stage.config.phases]
    return []


def _unfit(stage: Stage, expected: str, found: object) -> ConfigError:
    return ConfigError(
        expected=f"{expected} for stage `{stage.name}`",
        found=str(found),
        fix="Change the two stages together; overrides may name both",
    )
