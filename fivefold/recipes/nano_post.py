"""The second half of `nano`: from a model that continues text to one that answers.

    tasks -> sft -> rl_a -> rl_b -> distill

GLM-5's chain in small (report, section 3): fine-tuning on solved problems, reinforcement learning
on one skill, then on another, by which the model loses some of the first, and a last stage in which
a model samples and both experts judge it, so that it knows what either of them knew. Skill A
reverses letters, skill B sorts digits, both with their steps in a thinking block.

Surprise: the first expert's rate is a tenth of fine-tuning's. Muon makes every update equally
long, however little a batch of rewards knows, and what a skill does not need is soon forgotten: 100
batches at 2e-3 left 1% of skill B, from which no reward could bring it back.
"""

from fivefold.data.conversation_config import ConversationsConfig
from fivefold.envs.config import ProceduralConfig, SkillName, SolvedConfig, TasksConfig
from fivefold.envs.stages import TasksStage
from fivefold.rl.loop_config import (
    DistillConfig,
    EvaluationConfig,
    RecordConfig,
    RlConfig,
    SamplingConfig,
    SourceConfig,
    TeacherConfig,
    UpdateConfig,
)
from fivefold.rl.preset import icepop
from fivefold.rl.stages import DistillStage, RlStage
from fivefold.serve.config import EngineConfig
from fivefold.stage import Stage
from fivefold.train.sft_config import SftConfig
from fivefold.train.stages import SftStage

SKILL_A: SkillName = "reverse"
"""What the first expert learns."""
SKILL_B: SkillName = "sort"
"""What the second expert learns, at the expense of the first skill."""
_ENGINE = EngineConfig(most_running=256, step_tokens=1024)
_MOST_TOKENS = 64
_TOKENIZER = {"tokenizer": "tokenizer"}


def post_training() -> list[Stage]:
    """Return the stages from `adapt_dsa` on: tasks -> sft -> rl_a -> rl_b -> distill."""
    return [
        TasksStage("tasks", _tasks()),
        SftStage(
            "sft", _sft(), needs={"start": "adapt_dsa", "conversations": "tasks", **_TOKENIZER}
        ),
        RlStage(
            "rl_a",
            _rl(SKILL_A, SKILL_B, lr=1.2e-3, batches=50),
            needs={"start": "sft", **_TOKENIZER},
        ),
        RlStage(
            "rl_b",
            _rl(SKILL_B, SKILL_A, lr=2e-3, batches=40),
            needs={"start": "rl_a", **_TOKENIZER},
        ),
        DistillStage(
            "distill",
            _distill(),
            needs={"start": "rl_b", "teacher_a": "rl_a", "teacher_b": "rl_b", **_TOKENIZER},
        ),
    ]


def _problems(skill: SkillName, **fields: object) -> ProceduralConfig:
    return ProceduralConfig.model_validate({"skill": skill, "levels": (1, 2, 3), **fields})


def _heldout(skill: SkillName) -> ProceduralConfig:
    """Return the problems that every stage is examined on."""
    return _problems(skill, split="heldout")


def _tasks() -> TasksConfig:
    return TasksConfig(
        sources={
            SKILL_A: SolvedConfig(task=_problems(SKILL_A), problems=4_000),
            SKILL_B: SolvedConfig(task=_problems(SKILL_B), problems=2_800),
        }
    )


def _sft() -> SftConfig:
    return SftConfig(
        conversations=ConversationsConfig(context_tokens=256),
        # Small steps of few answers: so many answers in half as many steps teach far less.
        batch_rows=4,
        microbatch_rows=4,
        kind="linear",
        peak_lr=1.2e-2,
        # Half of the peak: a model that is cooled down answers the same each time, right or wrong,
        # and reward finds nothing to choose from.
        final_lr=6e-3,
        warmup_fraction=0.05,
        mtp_weight=0.1,
        validation_steps=40,
        checkpoint_steps=40,
        sample_count=3,
    )


def _sampling(prompts: int) -> SamplingConfig:
    return SamplingConfig(batch_prompts=prompts, max_new_tokens=_MOST_TOKENS, refill_rounds=0)


def _evaluation(*also: SkillName) -> EvaluationConfig:
    """Sample as in training: what is shown is what RL improves."""
    return EvaluationConfig(
        every_batches=15,
        prompts=100,
        rollouts=2,
        temperature=1.0,
        also=tuple(_heldout(skill) for skill in also),
    )


def _rl(skill: SkillName, other: SkillName, *, lr: float, batches: int) -> RlConfig:
    return RlConfig(
        # In another order than fine-tuning's.
        sources=(SourceConfig(task=_problems(skill, seed=1), heldout=_heldout(skill)),),
        algorithm=icepop(group_size=16),
        batches=batches,
        sampling=_sampling(16),
        evaluation=_evaluation(other),
        update=UpdateConfig(row_tokens=256, microbatch_rows=16, lr=lr, warmup_updates=5),
        record=RecordConfig(log_batches=10),
        engine=_ENGINE,
    )


def _distill() -> DistillConfig:
    return DistillConfig(
        sources=(_taught(SKILL_A, "teacher_a"), _taught(SKILL_B, "teacher_b")),
        batches=20,
        sampling=_sampling(128),
        evaluation=_evaluation(),
        update=UpdateConfig(row_tokens=256, microbatch_rows=16, lr=1e-3, warmup_updates=3),
        record=RecordConfig(log_batches=10),
        engine=_ENGINE,
    )


def _taught(skill: SkillName, teacher: str) -> TeacherConfig:
    return TeacherConfig(task=_problems(skill, seed=2), heldout=_heldout(skill), teacher=teacher)
