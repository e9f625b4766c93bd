"""Configs of the RL algorithms: how advantages are made, what the loss is, what it is divided by.

The defaults are those of GLM-5's reasoning RL (report, section 3.2): GRPO advantages in groups of
32, IcePop with beta 2 and clipping at 0.2 / 0.28, a mean over each sample's tokens, no KL term.
What the report leaves open says so at its field. Surprise: Dr.GRPO and DAPO have no loss of their
own; they are PPO's clipped surrogate with another advantage and another denominator.
"""

from typing import Annotated, Literal

import pydantic

from fivefold.config import Config
from fivefold.errors import ConfigError


class AdvantageConfig(Config):
    """How the rewards of a group become advantages."""

    method: Literal["grpo", "mean", "rloo"] = "grpo"
    """GRPO (deviation over standard deviation), deviation alone (Dr.GRPO, GLM-5's agentic RL), or
    RLOO (against the mean of the others)."""
    group_size: int = pydantic.Field(default=32, ge=2)
    """Rollouts of a prompt (GLM-5: 32); one alone has no baseline."""
    std: Literal["sample", "population"] = "sample"
    """Divisor of the variance, n - 1 or n; the report does not say, its framework slime has n - 1.
    """
    std_epsilon: float = pydantic.Field(default=1e-6, ge=0)
    """Added to the standard deviation (slime: 1e-6)."""
    zero_variance: Literal["drop", "zero", "keep"] = "drop"
    """A group whose rewards, before shaping, are all equal: leaves the batch (DAPO's dynamic
    sampling), stays and counts in the denominators with advantages of exactly 0, or is treated as
    any other, so that a length penalty still tells its samples apart."""
    repair: Literal["repeat", "shrink"] = "repeat"
    """A group with more than half of its samples valid repeats them up to its size (GLM-5, section
    4.1) or stays smaller; with fewer it is dropped. Baselines see each valid sample once."""


class OverlongConfig(Config):
    """DAPO's soft punishment of long responses, added to the reward (arXiv 2503.14476, eq. 13)."""

    limit_tokens: int = pydantic.Field(default=20_480, gt=0)
    """Sampled tokens from which on the penalty is -1."""
    ramp_tokens: int = pydantic.Field(default=4096, gt=0)
    """Tokens before the limit over which the penalty grows from 0."""

    @property
    def begin_tokens(self) -> int:
        """Sampled tokens up to which there is no penalty."""
        return self.limit_tokens - self.ramp_tokens

    @pydantic.model_validator(mode="after")
    def _check_ramp(self) -> "OverlongConfig":
        if self.ramp_tokens > self.limit_tokens:
            raise ConfigError(
                expected=f"`ramp_tokens` of at most `limit_tokens` ({self.limit_tokens})",
                found=str(self.ramp_tokens),
                fix="Shorten the ramp",
            )
        return self


class DistillationConfig(Config):
    """On-policy distillation: the teacher's log-probability less the student's as an advantage."""

    discount: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Weight of the next token's return: 0 judges each token alone (GLM-5, eq. 2); 1 sums to the
    end, which makes the expected gradient that of the sequences' KL divergence."""
    weight: float = pydantic.Field(default=1.0, gt=0)
    """Factor of the teacher's advantage, beside the reward's where there is one."""


class _Clipped(Config):
    """A loss that clips the policy's ratio r = new / old to [1 - low, 1 + high]."""

    epsilon_low: float = pydantic.Field(default=0.2, ge=0, le=1)
    """How far below 1 (GLM-5, DAPO: 0.2)."""
    epsilon_high: float = pydantic.Field(default=0.28, ge=0)
    """How far above 1 (GLM-5, DAPO: 0.28)."""


class PpoClipConfig(_Clipped):
    """PPO's clipped surrogate on tokens."""

    kind: Literal["ppo_clip"] = "ppo_clip"
    """Name of the loss."""
    dual_clip: float | None = pydantic.Field(default=None, gt=1)
    """Largest ratio that a negative advantage is multiplied by (arXiv 1912.09729: 3); None: no
    bound."""


class IcePopConfig(_Clipped):
    """GLM-5's reasoning RL: the clipped surrogate where trainer and engine agree."""

    kind: Literal["icepop"] = "icepop"
    """Name of the loss."""
    beta: float = pydantic.Field(default=2.0, ge=1)
    """Tokens with old / rollout within [1 / beta, beta] train, weighted by it (GLM-5: 2)."""


class TisConfig(_Clipped):
    """The clipped surrogate times a truncated weight old / rollout."""

    kind: Literal["tis"] = "tis"
    """Name of the loss."""
    weight_low: float = pydantic.Field(default=0.0, ge=0)
    """Least weight."""
    weight_high: float = pydantic.Field(default=2.0, gt=0)
    """Largest weight (2 in the first experiments with it)."""

    @pydantic.model_validator(mode="after")
    def _check_bounds(self) -> "TisConfig":
        _check_order("weight_low", self.weight_low, "weight_high", self.weight_high)
        return self


class DoubleSidedConfig(Config):
    """GLM-5's asynchronous RL: the engine's own log-probabilities are the old policy (eq. 3-5).

    The report gives no bounds; these are IcePop's window, so that both agree on-policy.
    """

    kind: Literal["double_sided"] = "double_sided"
    """Name of the loss."""
    epsilon_low: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Tokens with new / rollout of at most 1 less this are masked."""
    epsilon_high: float = pydantic.Field(default=1.0, gt=0)
    """Tokens with new / rollout of at least 1 plus this are masked."""


class GspoConfig(_Clipped):
    """GSPO: one ratio a sequence, the geometric mean of its tokens' (arXiv 2507.18071)."""

    kind: Literal["gspo"] = "gspo"
    """Name of the loss."""
    epsilon_low: float = pydantic.Field(default=3e-4, ge=0, le=1)
    """How far below 1 (the paper's section 5.1: 3e-4)."""
    epsilon_high: float = pydantic.Field(default=4e-4, ge=0)
    """How far above 1 (the paper's section 5.1: 4e-4)."""


class CispoConfig(Config):
    """CISPO: REINFORCE with a bounded weight, so that no token loses its gradient."""

    kind: Literal["cispo"] = "cispo"
    """Name of the loss."""
    ratio_low: float = pydantic.Field(default=0.0, ge=0)
    """Least weight; MiniMax-M1 (arXiv 2506.13585) sets none."""
    ratio_high: float = pydantic.Field(default=5.0, gt=0)
    """Largest weight; to be tuned, the paper gives no figure."""

    @pydantic.model_validator(mode="after")
    def _check_bounds(self) -> "CispoConfig":
        _check_order("ratio_low", self.ratio_low, "ratio_high", self.ratio_high)
        return self


LossConfig = Annotated[
    IcePopConfig | DoubleSidedConfig | PpoClipConfig | TisConfig | GspoConfig | CispoConfig,
    pydantic.Field(discriminator="kind"),
]
"""One of the losses; in JSON its `kind` says which."""


class ReductionConfig(Config):
    """What the sum over tokens is divided by; always counted over the whole step."""

    kind: Literal["sequence_mean", "token_mean", "fixed"] = "sequence_mean"
    """Mean over each sample's tokens, then over samples (GLM-5, GRPO); mean over all tokens
    (DAPO); sum over samples and `fixed_tokens` (Dr.GRPO)."""
    fixed_tokens: int | None = pydantic.Field(default=None, gt=0)
    """Tokens that stand for each sample's length in `fixed`, for example the longest response."""

    @pydantic.model_validator(mode="after")
    def _check_fixed(self) -> "ReductionConfig":
        if (self.kind == "fixed") != (self.fixed_tokens is not None):
            raise ConfigError(
                expected="`fixed_tokens` with the reduction `fixed`, and with no other",
                found=f"`{self.kind}` and {self.fixed_tokens}",
                fix="Set the longest response as `fixed_tokens`, or choose another reduction",
            )
        return self


class AlgorithmConfig(Config):
    """An RL algorithm: how it fills the samples' streams and what loss reads them."""

    advantage: AdvantageConfig | None = AdvantageConfig()
    """From rewards; None where a teacher alone judges."""
    distillation: DistillationConfig | None = None
    """From a teacher; None where rewards alone judge."""
    loss: LossConfig = IcePopConfig()
    """The loss of a token."""
    reduction: ReductionConfig = ReductionConfig()
    """Its denominators."""
    overlong: OverlongConfig | None = None
    """Penalty of long responses; None: none."""
    masks_truncated: bool = False
    """Do responses cut at the token limit train nothing (DAPO's overlong filtering)? Their rewards
    still count in the group's baseline."""

    @pydantic.model_validator(mode="after")
    def _check_parts(self) -> "AlgorithmConfig":
        if self.advantage is None and self.distillation is None:
            raise ConfigError(
                expected="`advantage`, `distillation` or both",
                found="neither",
                fix="Say where advantages come from",
            )
        if self.loss.kind == "gspo" and self.reduction.kind != "sequence_mean":
            raise ConfigError(
                expected="the reduction `sequence_mean` with the loss `gspo`, whose ratio belongs "
                "to a whole sequence",
                found=f"`{self.reduction.kind}`",
                fix='Set `reduction.kind="sequence_mean"`',
            )
        if self.advantage is None and self.overlong is not None:
            raise ConfigError(
                expected="`overlong` beside `advantage`, for it changes rewards",
                found="no `advantage`",
                fix="Remove `overlong` or use `masks_truncated`",
            )
        return self


def _check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    if low > high:
        raise ConfigError(
            expected=f"`{low_name}` of at most `{high_name}` ({high})",
            found=str(low),
            fix="Change one of them",
        )
