"""Configs of the synchronous loop, and of the two stages that run it: RL and distillation.

A batch is what one policy version samples; it may be trained on in several updates. GLM-5's
reasoning RL is one update a batch of 32 prompts with 32 rollouts each, indexers frozen (report,
section 3.2); its cross-stage distillation a batch of 1024 prompts with one rollout (section 3.5).
The report gives no learning rate for either. Surprise: neither top-k nor top-p can be set. The
policy that trains is the distribution that was sampled, and truncation makes it another one.
"""

from typing import Literal

import pydantic

from fivefold.config import Config, Runtime
from fivefold.envs.config import TaskConfig
from fivefold.errors import ConfigError
from fivefold.rl.config import AlgorithmConfig
from fivefold.rl.preset import distil, icepop
from fivefold.rl.rollout_config import RolloutConfig
from fivefold.rl.teacher_config import TeacherFaultConfig
from fivefold.serve.config import EngineConfig
from fivefold.train.optimizer_config import OptimizerConfig
from fivefold.verify.config import VerifierConfig


class SourceConfig(Config):
    """A task that prompts come from."""

    task: TaskConfig
    """Which problems."""
    heldout: TaskConfig | None = None
    """Problems to evaluate on; None: those that stand far ahead in the same task."""
    weight: float = pydantic.Field(default=1.0, gt=0)
    """Share of the prompts, relative to the other sources."""


class TeacherConfig(SourceConfig):
    """A task with the teacher that judges its rollouts."""

    teacher: str = pydantic.Field(min_length=1)
    """Input of the stage that holds the teacher's `checkpoint`, for example `teacher_a`."""


class SamplingConfig(Config):
    """How a batch is sampled."""

    batch_prompts: int = pydantic.Field(default=32, gt=0)
    """Groups of a batch that have to be of use (GLM-5: 32)."""
    max_new_tokens: int = pydantic.Field(default=128, gt=0)
    """Longest response."""
    temperature: float = pydantic.Field(default=1.0, gt=0)
    """Of the policy, in sampling and in training alike."""
    refill_rounds: int = pydantic.Field(default=3, ge=0)
    """How often groups that were dropped are made up for by new prompts (DAPO's dynamic sampling)
    before a smaller batch is trained on."""
    no_signal_limit: int = pydantic.Field(default=8, ge=1)
    """Batches in a row without any advantage, which are skipped, before the stage stops."""
    unjudged_limit: int = pydantic.Field(default=64, ge=1)
    """Rollouts, or held-out answers of one examination, that could not be judged, and fewer that
    could, before the stage stops at once: one whose reward hangs takes `verifier.limit_seconds`.
    Where a teacher alone teaches, judges of rollouts are then asked no more."""
    replays_routing: bool = False
    """Train through the experts that the engine chose, not through those of the trainer's own."""
    thinks: bool = True
    """Do prompts open a thinking block?"""


class EvaluationConfig(Config):
    """How the policy is examined on held-out prompts."""

    every_batches: int = pydantic.Field(default=10, gt=0)
    """Batches from one examination to the next; the first is before training, the last after."""
    prompts: int = pydantic.Field(default=32, ge=0)
    """Held-out prompts of each source, always the same; 0: no examination."""
    rollouts: int = pydantic.Field(default=1, gt=0)
    """Rollouts of each."""
    temperature: float = pydantic.Field(default=0.0, ge=0)
    """0: greedy; then one rollout says all."""
    pass_reward: float = 1.0
    """Least reward that counts as a pass, here and in training's own pass rate."""
    also: tuple[TaskConfig, ...] = ()
    """Tasks that do not train, examined as they stand: what is forgotten meanwhile."""


class UpdateConfig(Config):
    """How the policy is updated."""

    updates_per_batch: int = pydantic.Field(default=1, gt=0)
    """Optimizer steps on a batch, each on its own groups; 1 is entirely on-policy (GLM-5)."""
    row_tokens: int = pydantic.Field(default=1024, gt=0)
    """Most places of a packed row; a prompt with its longest response must fit."""
    microbatch_rows: int = pydantic.Field(default=8, gt=0)
    """Rows of that width whose places one forward and backward holds; narrower ones are more."""
    shares_prompts: bool = True
    """Compute a group's prompt once for the samples that share a row; never deterministically."""
    lr: float = pydantic.Field(default=1e-3, gt=0)
    """Learning rate after the warm-up; constant."""
    warmup_updates: int = pydantic.Field(default=0, ge=0)
    """Updates over which it rises from 0."""
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0)
    """Muon and AdamW."""
    optimizer_reset: Literal["never", "each_push"] = "never"
    """Forget the optimizer's averages when new weights go to the engine (GLM-5's agentic RL)."""
    clip_norm: float = pydantic.Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    router_bias_rate: float = pydantic.Field(default=0.0, ge=0)
    """Change of a router bias an update; 0: they stand, as experts must not change for balance."""
    nonfinite_limit: int = pydantic.Field(default=3, ge=0)
    """Updates in a row that may be skipped for a non-finite gradient or loss before the stage
    stops."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and activations of trainer and engine; the optimizer's weights stay fp32."""
    recompute: Runtime[bool] = False
    """Run each layer again in the backward pass: memory for time."""
    loss_chunk_tokens: int = pydantic.Field(default=2048, gt=0)
    """Tokens whose logits exist at a time."""


class RecordConfig(Config):
    """What is kept of a run, and how often."""

    checkpoint_batches: Runtime[int] = pydantic.Field(default=20, gt=0)
    """Batches between saved states, from which a killed run goes on; the last two are kept."""
    log_batches: Runtime[int] = pydantic.Field(default=1, gt=0)
    """Batches between lines on the console; every batch is in `metrics.jsonl`."""
    dump_batches: Runtime[int] = pydantic.Field(default=1, gt=0)
    """Batches between rollout dumps."""
    dumps_kept: Runtime[int] = pydantic.Field(default=8, ge=0)
    """Dumps on disk, the newest; 0: none."""
    shown_rollouts: int = pydantic.Field(default=2, ge=0)
    """Rollouts that the report shows of each examined moment."""


class LoopConfig(Config):
    """The synchronous loop, whoever judges."""

    algorithm: AlgorithmConfig
    """How advantages, loss and denominators are made."""
    batches: int = pydantic.Field(default=100, gt=0)
    """Batches of the stage."""
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    update: UpdateConfig = UpdateConfig()
    record: RecordConfig = RecordConfig()
    engine: EngineConfig = EngineConfig()
    """The engine; `deterministic` also makes the trainer compute as it does: rho is exactly 1."""
    rollout: RolloutConfig = RolloutConfig()
    """Who samples: that engine, or a server by its URL."""
    verifier: VerifierConfig = VerifierConfig()
    """Limits of the verifier's workers."""

    @property
    def group_size(self) -> int:
        """Rollouts of a prompt; 1 where a teacher alone judges."""
        return self.algorithm.advantage.group_size if self.algorithm.advantage else 1

    @property
    def needs_rewards(self) -> bool:
        """Is a rollout without a reward of no use? To a teacher it is."""
        return self.algorithm.advantage is not None

    @pydantic.model_validator(mode="after")
    def _check_whole(self) -> "LoopConfig":
        if self.engine.deterministic and self.update.recompute:
            raise ConfigError(
                expected="`engine.deterministic` or `update.recompute`",
                found="both",
                fix="Keep the deterministic trainer's activations: a recomputation would round "
                "otherwise",
            )
        if self.engine.deterministic and self.sampling.replays_routing:
            raise ConfigError(
                expected="`engine.deterministic` or `sampling.replays_routing`",
                found="both",
                fix="Leave routing replay out: the deterministic trainer chooses the same experts",
            )
        if self.engine.draft_tokens:
            raise ConfigError(
                expected="`engine.draft_tokens` of 0 in post-training",
                found=str(self.engine.draft_tokens),
                fix="Leave speculation out: the MTP layer is not trained along with the policy",
            )
        if self.sampling.max_new_tokens > self.update.row_tokens:
            raise ConfigError(
                expected="`update.row_tokens` that hold a prompt and `sampling.max_new_tokens`",
                found=f"rows of {self.update.row_tokens} and responses of up to "
                f"{self.sampling.max_new_tokens} tokens",
                fix="Raise `update.row_tokens`, or lower `sampling.max_new_tokens`",
            )
        overlong = self.algorithm.overlong
        if overlong is not None and overlong.begin_tokens >= self.sampling.max_new_tokens:
            raise ConfigError(
                expected="`algorithm.overlong` to begin within `sampling.max_new_tokens` "
                f"({self.sampling.max_new_tokens})",
                found=f"penalties beyond {overlong.begin_tokens} tokens, which no response has",
                fix="Set `algorithm.overlong.limit_tokens` to the longest response and "
                "`algorithm.overlong.ramp_tokens` to a part of it, or leave `overlong` out",
            )
        if self.update.updates_per_batch > self.sampling.batch_prompts:
            raise ConfigError(
                expected="at least one group for each update of a batch",
                found=f"{self.update.updates_per_batch} updates on "
                f"{self.sampling.batch_prompts} groups",
                fix="Lower `updates_per_batch`",
            )
        return self


class RlConfig(LoopConfig):
    """Reinforcement learning from verified rewards."""

    sources: tuple[SourceConfig, ...] = pydantic.Field(min_length=1)
    """Tasks to learn."""
    algorithm: AlgorithmConfig = icepop()

    @pydantic.model_validator(mode="after")
    def _check_judge(self) -> "RlConfig":
        if self.algorithm.advantage is None or self.algorithm.distillation is not None:
            raise ConfigError(
                expected="an algorithm with `advantage` alone in the stage `rl`",
                found="one with a teacher",
                fix="Use the stage `distill`",
            )
        return self


class DistillConfig(LoopConfig):
    """On-policy distillation from several teachers, each on prompts of its own."""

    sources: tuple[TeacherConfig, ...] = pydantic.Field(min_length=1)
    """Tasks and who judges them."""
    algorithm: AlgorithmConfig = distil()
    sampling: SamplingConfig = SamplingConfig(batch_prompts=1024)
    """GLM-5, section 3.5: 1024 prompts with one rollout each."""
    scores_rewards: bool = True
    """Let the verifier judge rollouts too; for the record alone."""
    faults: TeacherFaultConfig = TeacherFaultConfig()
    """What becomes of tokens that a teacher has no finite log-probability for."""

    @pydantic.model_validator(mode="after")
    def _check_judge(self) -> "DistillConfig":
        if self.algorithm.distillation is None:
            raise ConfigError(
                expected="an algorithm with `distillation` in the stage `distill`",
                found="one without",
                fix="Use the stage `rl`, or `fivefold.rl.preset.distil`",
            )
        if self.sampling.temperature != 1:
            raise ConfigError(
                expected="`sampling.temperature` of 1: teachers report plain probabilities",
                found=str(self.sampling.temperature),
                fix="Leave it at 1",
            )
        return self
