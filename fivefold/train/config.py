"""Configs of the gradient stages."""

from typing import Literal

import pydantic

from fivefold.config import Config, Runtime
from fivefold.data.config import MixtureConfig
from fivefold.errors import ConfigError
from fivefold.models.config import ModelConfig
from fivefold.train.optimizer_config import OptimizerConfig, ScheduleConfig


class GradientConfig(ScheduleConfig):
    """What every gradient stage has: schedule, optimizer, loss, validation, samples, saving."""

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
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and activations of forward and backward; the optimizer's weights stay fp32."""
    recompute: Runtime[bool | tuple[pydantic.NonNegativeInt, ...]] = False
    """Keep each layer's input and selection, run it again in the backward: memory for time; or only
    these layers', the MTP layer being the one after the last."""
    offload: Runtime[bool | tuple[pydantic.NonNegativeInt, ...]] = False
    """Let what layers keep wait in the host's memory until their backward: all, or these."""
    activation_bytes: Runtime[int | None] = pydantic.Field(default=None, gt=0)
    """Most bytes that a rank's layers keep between forward and backward, of all microbatches in
    flight: each layer's are kept, moved to the host or computed again, whatever is cheapest; None:
    as `recompute` and `offload` say."""
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
    def _check_batch(self) -> "GradientConfig":
        if self.batch_rows % self.microbatch_rows:
            raise ConfigError(
                expected=f"`batch_rows` to be a multiple of `microbatch_rows` "
                f"({self.microbatch_rows})",
                found=str(self.batch_rows),
                fix="Change one of them",
            )
        if self.activation_bytes is not None and (self.recompute or self.offload):
            raise ConfigError(
                expected="`activation_bytes` alone, or `recompute` and `offload`",
                found=f"`recompute={self.recompute}` and `offload={self.offload}` beside it",
                fix="Leave them out: the bound decides for each layer",
            )
        return self


class PretrainConfig(GradientConfig):
    """Pre-training: next-token and MTP loss on packed rows, from nothing."""

    model: ModelConfig
    """Shape of the model."""
    context_tokens: int = pydantic.Field(default=4096, ge=2)
    """Tokens that a row predicts."""

    @pydantic.model_validator(mode="after")
    def _check_context(self) -> "PretrainConfig":
        if self.context_tokens > self.model.max_position_embeddings:
            raise ConfigError(
                expected="`context_tokens` within the model's `max_position_embeddings` "
                f"({self.model.max_position_embeddings})",
                found=str(self.context_tokens),
                fix="Shorten the rows or raise `model.max_position_embeddings`",
            )
        return self


class PhaseConfig(Config):
    """One step of a context curriculum."""

    context_tokens: int = pydantic.Field(ge=2)
    """Tokens that a row predicts."""
    share: float = pydantic.Field(gt=0, le=1)
    """Share of the stage's tokens; the phases' shares sum to one."""
    batch_rows: int = pydantic.Field(gt=0)
    """Rows of a step."""
    microbatch_rows: int = pydantic.Field(gt=0)
    """Rows of one forward and backward."""
    rope_theta: float = pydantic.Field(gt=0)
    """Rotary base of this phase; a longer context wants a larger one."""
    mixture: MixtureConfig | None = None
    """Weights of the sources; None takes those of the `tokens` stage."""


class MidtrainConfig(GradientConfig):
    """Mid-training: the same loss on longer contexts, learning rate falling linearly."""

    phases: tuple[PhaseConfig, ...] = pydantic.Field(min_length=1)
    """The context curriculum; GLM-5: 32K (1T tokens), 128K (500B), 202,752 (50B)."""

    @pydantic.model_validator(mode="after")
    def _check_phases(self) -> "MidtrainConfig":
        if abs(sum(phase.share for phase in self.phases) - 1) > 1e-6:
            raise ConfigError(
                expected="`phases` whose `share` sum to 1",
                found=str([phase.share for phase in self.phases]),
                fix="Correct the shares",
            )
        for phase in self.phases:
            if phase.batch_rows % phase.microbatch_rows:
                raise ConfigError(
                    expected="each phase's `batch_rows` to be a multiple of its `microbatch_rows`",
                    found=f"{phase.batch_rows} and {phase.microbatch_rows}",
                    fix="Change one of them",
                )
        return self


class AdaptDsaConfig(Config):
    """Adaptation to sparse attention: a dense warm-up of the indexers, then all weights, sparse."""

    context_tokens: int = pydantic.Field(ge=2)
    """Tokens that a row predicts; longer than `index_topk`, or nothing is selected."""
    index_topk: int = pydantic.Field(gt=0)
    """Keys that each query keeps; the checkpoint carries it from here on."""
    mixture: MixtureConfig | None = None
    """Weights of the sources; None takes those of the `tokens` stage."""
    index_loss_weight: float = pydantic.Field(default=1.0, gt=0)
    """Weight of the indexers' loss beside the language loss in the sparse part."""
    cost_contexts: Runtime[tuple[pydantic.PositiveInt, ...]] = (512, 1024, 2048, 4096, 8192)
    """Row lengths at which the report measures one layer's attention, dense and sparse; () none."""
    warm_up: GradientConfig
    """Only the indexers learn, from dense attention (GLM-5: 1000 steps, rate 5e-3 to 2e-4)."""
    sparse: GradientConfig
    """Everything learns on the selected keys (GLM-5: 20B tokens at a constant 1e-5)."""

    @pydantic.model_validator(mode="after")
    def _check_topk(self) -> "AdaptDsaConfig":
        if self.index_topk >= self.context_tokens:
            raise ConfigError(
                expected=f"`context_tokens` above `index_topk` ({self.index_topk}): up to there "
                "sparse and dense are the same",
                found=f"{self.context_tokens} tokens",
                fix="Lengthen the context or lower `index_topk`",
            )
        return self
