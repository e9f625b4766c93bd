"""Config of supervised fine-tuning.

Defaults that differ from other gradient stages: the router's biases stand and its balance loss is
off, since both act on rows, and what is learned must not depend on how conversations were packed;
the batch is constant.
"""

import pydantic

from fivefold.data.config import MixtureConfig
from fivefold.data.conversation_config import ConversationsConfig
from fivefold.errors import ConfigError
from fivefold.train.config import GradientConfig


class SftConfig(GradientConfig):
    """Supervised fine-tuning on conversations: next-token and MTP loss on the assistant's tokens.

    Trains either for `total_tokens`, sources mixed by `mixture`, or through each source `epochs`
    times.
    """

    conversations: ConversationsConfig = ConversationsConfig()
    """How conversations are rendered, held out and packed."""
    total_tokens: int = pydantic.Field(default=0, ge=0)
    """Places of rows at which the stage ends; 0: after `epochs`."""
    mixture: MixtureConfig = MixtureConfig()
    """Weights of the sources, with `total_tokens`; empty mixes in proportion to tokens."""
    epochs: dict[str, float] = pydantic.Field(default_factory=dict)
    """Passes over each source, without `total_tokens`; those not named get one."""
    accept_other_template: bool = False
    """Train a checkpoint that carries another chat template; the outcome carries Fivefold's."""
    batch_rows_start: int = pydantic.Field(default=1, gt=0)
    """Rows of the first step, where the batch grows."""
    batch_warmup_fraction: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of the tokens over which the batch grows."""
    balance_loss_weight: float = pydantic.Field(default=0.0, ge=0)
    """Weight of the router's sequence balance loss, a mean over rows and not over answers."""
    router_bias_rate: float = pydantic.Field(default=0.0, ge=0)
    """Change of a router bias a step."""
    sample_prompts: tuple[str, ...] = ()
    """Users' messages that the model answers along training; empty: the first held-out prompts."""
    sample_conversations: int = pydantic.Field(default=3, ge=0)
    """How many held-out prompts, then."""

    @pydantic.model_validator(mode="after")
    def _check_length(self) -> "SftConfig":
        if self.total_tokens and self.epochs:
            raise ConfigError(
                expected="`total_tokens` or `epochs`",
                found="both",
                fix="Leave one of them out: passes over the sources decide where the stage ends",
            )
        if not self.total_tokens and self.mixture != MixtureConfig():
            raise ConfigError(
                expected="`total_tokens` beside `mixture`",
                found="none",
                fix="Set it, or give `epochs` instead of `mixture`",
            )
        if self.mixture.shares:
            raise ConfigError(
                expected="a `mixture` of conversation sources, by `weights`",
                found=f"`shares` of {', '.join(self.mixture.shares)}",
                fix="Leave `shares` out: `long` and `planted` are made of documents",
            )
        if any(passes < 0 for passes in self.epochs.values()):
            raise ConfigError(
                expected="`epochs` of at least 0", found=str(self.epochs), fix="Correct them"
            )
        return self
