"""Attempts at a task of one's own: the stages of `fivefold attempts`.

    start -> task -> attempts [+ counted] -> choose [-> sft]

`start` and `task` are those of `fivefold rl`, and so are the prompts, the longest answer and the
problems held out: what is found out here holds there. `attempts` samples, `choose` keeps answers to
learn from and problems worth RL, `sft` fine-tunes the checkpoint on its own right answers
(rejection sampling; in rounds, expert iteration). `counted` adds what a run of RL on the same task
has found out about its problems.

Surprise: some settings of `task` come from `attempts`, as in `fivefold rl` they come from `rl`:
which problems are tried, so that none of them is held out, and how long a prompt may be. And what
passes for `counted` is what passes there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fivefold.config import Config, apply_overrides, validate
from fivefold.data.choose import ChooseStage
from fivefold.data.conversation_config import ChooseConfig, ConversationsConfig
from fivefold.envs.open_task import open_task
from fivefold.errors import MissingFileError
from fivefold.models.config import read_config
from fivefold.recipes.attempt_learn import LearnStage
from fivefold.recipes.rl_run import rl_stages
from fivefold.recipes.start_stage import hash_times
from fivefold.recipes.task_argument import OwnTask
from fivefold.recipes.task_length import longest_prompt
from fivefold.rl.attempt_config import AttemptsConfig, DumpCountsConfig
from fivefold.rl.attempt_stage import AttemptsStage, DumpCountsStage
from fivefold.rl.loop_config import RlConfig
from fivefold.rl.own_task import OwnTaskConfig
from fivefold.stage import Stage
from fivefold.train.sft_config import SftConfig


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
    counted: Path | None = None,
    overrides: Sequence[str] = (),
) -> list[Stage]:
    """Return the stages that try a task's problems with a checkpoint, in the directory `run`.

    `learns` adds fine-tuning on the answers that are kept; `counted` is a run of `fivefold rl`
    whose rollouts count too. `overrides` change single values, as `choose.trained.highest=0.5`.

    Raises:
        FivefoldError: as `rl_stages`; a run without rollouts.
    """
    mine = [override for override in overrides if override.partition(".")[0] == "task"]
    looked = rl_stages(checkpoint, task, run, thinking=thinking, overrides=mine)
    start, looks, *_, reinforces = looked
    rl = reinforces.config
    assert isinstance(rl, RlConfig), "the last stage is `rl`"
    fields = {
        "sources": {task.name: {"task": rl.sources[0].task, "problems": problems}},
        "attempts": attempts,
        "max_new_tokens": rl.sampling.max_new_tokens,
        "thinks": rl.sampling.thinks,
        "engine": rl.engine,
    }
    config = validate(AttemptsConfig, fields, where="attempts")
    needs = {"start": start.name, "tokenizer": start.name}
    known = {"attempts": "attempts"} | ({"counted": "counted"} if counted else {})
    stages = [
        start,
        looks,
        AttemptsStage("attempts", config, needs={**needs, "task": looks.name}),
        *([DumpCountsStage("counted", _counted(counted, task, looks))] if counted else []),
        ChooseStage("choose", ChooseConfig(take=take), needs=known),
    ]
    limit = read_config(checkpoint).max_position_embeddings
    if learns:
        context = min(limit, rl.update.row_tokens)
        stages.append(LearnStage("sft", _sft(context), needs={**needs, "conversations": "choose"}))
    configs = apply_overrides({stage.name: stage.config for stage in stages}, overrides)
    demands = _demands(configs["attempts"], rl.update.row_tokens, limit)
    configs["task"] = configs["task"].model_copy(update=demands)
    if counted:
        passes = {"pass_reward": configs["attempts"].model_dump()["pass_reward"]}
        configs["counted"] = configs["counted"].model_copy(update=passes)
    # What is said of these on the command line stands.
    configs |= apply_overrides(
        {name: configs[name] for name in ("task", "counted") if name in configs},
        [override for override in overrides if override.partition(".")[0] in ("task", "counted")],
    )
    return [stage.with_config(configs[stage.name]) for stage in stages]


def _demands(attempted: Config, row_tokens: int, limit: int) -> dict[str, object]:
    """Return what the stage `task` has to know of `attempts`: fields of its config."""
    assert isinstance(attempted, AttemptsConfig), "the stage is `attempts`"
    longest = longest_prompt(
        row_tokens, attempted.max_new_tokens, limit, setting="attempts.max_new_tokens"
    )
    return {
        "trained": max(source.begin + source.problems for source in attempted.sources.values()),
        "longest_prompt_tokens": longest,
        "thinks": attempted.thinks,
    }


def _counted(run: Path, task: OwnTask, looks: Stage) -> DumpCountsConfig:
    """Return what is counted of a run of `fivefold rl`: the dumps that it has now."""
    assert isinstance(looks.config, OwnTaskConfig), "the stage is `task`"
    place = run / "rl" / "state" / "rollouts"
    dumps = sorted(place.glob("batch_*.npz"))
    if not dumps:
        raise MissingFileError(
            expected=f"rollouts of RL in `{place}`",
            found="none",
            fix="Name the directory of a run of `fivefold rl` with `rl.record.dumps_kept` above 0",
        )
    return DumpCountsConfig(
        path=str(place),
        source=task.name,
        # RL's prompts go by the task itself: of `FILE.py:FUNCTION`, by the function alone.
        aliases=(open_task(looks.config.task).name,),
        dumps_hash=hash_times(dumps),
    )


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
