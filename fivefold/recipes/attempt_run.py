"""Attempts at a task of one's own: the stages of `fivefold attempts`.

    start -> task -> attempts -> choose [-> sft]

`start` and `task` are those of `fivefold rl`, and so are the prompts, the longest answer and the
problems held out: what is found out here holds there. `attempts` samples, `choose` keeps answers to
learn from and problems worth RL, `sft` fine-tunes the checkpoint on its own right answers
(rejection sampling; in rounds, expert iteration).
"""

from pathlib import Path
from typing import Literal

from fivefold.data.choose import ChooseStage
from fivefold.data.conversation_config import ChooseConfig, ConversationsConfig
from fivefold.models.config import read_config
from fivefold.recipes.rl_run import rl_stages
from fivefold.recipes.task_argument import OwnTask
from fivefold.rl.attempt_config import AttemptedConfig, AttemptsConfig
from fivefold.rl.attempt_stage import AttemptsStage
from fivefold.rl.loop_config import RlConfig
from fivefold.stage import Stage
from fivefold.train.sft_config import SftConfig
from fivefold.train.stages import SftStage


def attempt_stages(
    checkpoint: Path,
    task: OwnTask,
    run: Path,
    *,
    attempts: int = 8,
    problems: int = 200,
    take: Literal["passing", "best"] = "passing",
    learns: bool = False,
    thinking: Literal["auto", "on", "off"] = "auto",
) -> list[Stage]:
    """Return the stages that try a task's problems with a checkpoint, in the directory `run`.

    `learns` adds fine-tuning on the answers that are kept.

    Raises:
        FivefoldError: as `rl_stages`.
    """
    start, looks, *_, reinforces = rl_stages(checkpoint, task, run, thinking=thinking)
    rl = reinforces.config
    assert isinstance(rl, RlConfig), "the last stage is `rl`"
    config = AttemptsConfig(
        sources={task.name: AttemptedConfig(task=rl.sources[0].task, problems=problems)},
        attempts=attempts,
        max_new_tokens=rl.sampling.max_new_tokens,
        thinks=rl.sampling.thinks,
        engine=rl.engine,
    )
    needs = {"start": start.name, "tokenizer": start.name}
    stages = [
        start,
        looks,
        AttemptsStage("attempts", config, needs={**needs, "task": looks.name}),
        ChooseStage("choose", ChooseConfig(take=take), needs={"attempts": "attempts"}),
    ]
    if learns:
        context = min(read_config(checkpoint).max_position_embeddings, rl.update.row_tokens)
        stages.append(SftStage("sft", _sft(context), needs={**needs, "conversations": "choose"}))
    return stages


def _sft(context_tokens: int) -> SftConfig:
    return SftConfig(
        conversations=ConversationsConfig(context_tokens=context_tokens),
        kind="linear",
        # A tenth of what a base model takes: the checkpoint knows these answers.
        peak_lr=1e-3,
        final_lr=1e-4,
        warmup_fraction=0.05,
        batch_rows=4,
        microbatch_rows=1,
        mtp_weight=0.0,
        mtp_weight_late=0.0,
        validation_steps=20,
        sample_count=2,
        log_steps=10,
    )
