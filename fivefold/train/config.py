"""Configs of the gradient stages."""

import pydantic

from fivefold.config import Runtime
from fivefold.errors import ConfigError
from fivefold.models.config import ModelConfig
from fivefold.train.optimizer_config import OptimizerConfig, ScheduleConfig


class PretrainConfig(ScheduleConfig):
    """Pre-training: next-token and MTP loss on packed rows, schedule fields included."""

    model: ModelConfig
    """Shape of the model."""
    context_tokens: int = pydantic.Field(default=4096, ge=2)
    """Tokens that a row predicts."""
    microbatch_rows: int = pydantic.Field(default=8, gt=0)
    """Rows of one forward and backward; the batch is a multiple of it."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Muon and AdamW."""
    clip_norm: float = pydantic.Field(default=1.0, gt=0)
    """Largest gradient norm of each parameter group; longer gradients are scaled down."""
    balance_loss_weight: float = pydantic.Field(default=1e-4, ge=0)
    """Weight of the router's sequence balance loss (DeepSeek-V3 and GLM-4.5: 1e-4)."""
    nonfinite_limit: int = pydantic.Field(default=5, ge=0)
    """Steps in a row that may be skipped for a non-finite gradient before training stops."""
    loss_chunk_tokens: int = pydantic.Field(default=2048, gt=0)
    """Tokens whose logits exist at a time."""
    validation_steps: int = pydantic.Field(default=50, gt=0)
    """Steps between validations on a part of the held-out rows; the end validates on all."""
    validation_rows: int = pydantic.Field(default=64, gt=0)
    """Held-out rows of a validation during training."""
    sample_prompts: tuple[str, ...] = ("The function returns", "In the beginning", "To install")
    """Texts that the model continues along training, for the report."""
    sample_count: int = pydantic.Field(default=4, ge=0)
    """Moments of training at which it does so, the first and last step included."""
    sample_tokens: int = pydantic.Field(default=48, gt=0)
    """Tokens of each continuation."""
    checkpoint_steps: Runtime[int] = pydantic.Field(default=100, gt=0)
    """Steps between saved states, from which a killed run resumes; the last two are kept."""
    log_steps: Runtime[int] = pydantic.Field(default=10, gt=0)
    """Steps between lines on the console; every step is in `metrics.jsonl`."""

    @pydantic.model_validator(mode="after")
    def _check_fit(self) -> "PretrainConfig":
        if self.batch_rows % self.microbatch_rows:
            raise ConfigError(
                expected=f"`batch_rows` to be a multiple of `microbatch_rows` "
                f"({self.microbatch_rows})",
                found=str(self.batch_rows),
                fix="Change one of them",
            )
        if self.context_tokens > self.model.max_position_embeddings:
            raise ConfigError(
                expected="`context_tokens` within the model's `max_position_embeddings` "
                f"({self.model.max_position_embeddings})",
                found=str(self.context_tokens),
                fix="Shorten the rows or raise `model.max_position_embeddings`",
            )
        return self
